"""A long training with everything on: nothing grows, nothing is traced anew, nothing is lost."""

from __future__ import annotations

import pathlib
import resource

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_digits

import tfkfac

EPOCHS, STEPS = 100, 200
"""20,000 updates."""
SETTLED = EPOCHS // 5
"""Epochs after which memory may not grow any more."""


class Watch(keras.callbacks.Callback):
    """Notes loss and memory at the end of every epoch."""

    def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
        super().__init__()
        self.data = x, y
        self.losses: list[float] = []
        self.memory: list[int] = []

    def on_epoch_end(self, epoch: int, logs: object = None) -> None:
        self.losses.append(self.model.evaluate(*self.data, batch_size=1797, verbose=0))
        self.memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


class Counted(keras.Sequential):
    """Counts the times that its training step is traced."""

    traces = 0

    def train_step(self, *arguments: object) -> object:
        self.traces += 1
        return super().train_step(*arguments)


@pytest.mark.slow
def test_a_long_training(tmp_path: pathlib.Path) -> None:
    x, y = load_digits(return_X_y=True)
    x = x.astype("float32")[..., None].reshape(-1, 8, 8, 1) / 16.0
    keras.utils.set_random_seed(0)
    model = Counted(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False),
            keras.layers.BatchNormalization(),
            keras.layers.Activation("relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.LayerNormalization(),
            keras.layers.Dropout(0.05),
            keras.layers.Dense(10),
        ]
    )
    optimizer = tfkfac.KFAC(
        seed=0,
        factor_decay=keras.optimizers.schedules.ExponentialDecay(0.95, 10_000, 0.999),
        use_ema=True,
        ema_overwrite_frequency=None,
        global_clipnorm=1e3,
        burn_in=2,
    )
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    batches = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(1797, seed=0).repeat().batch(128)
    watch = Watch(x, y)
    monitor = tfkfac.callbacks.CurvatureMonitor()
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    history = model.fit(
        batches,
        epochs=EPOCHS,
        steps_per_epoch=STEPS,
        verbose=0,
        callbacks=[monitor, backup, watch],
    )
    assert optimizer.counts()["updates"] == EPOCHS * STEPS
    assert optimizer.counts()["skipped"] == 0
    assert len(history.history["damping"]) == EPOCHS
    assert model.traces <= 2
    assert watch.memory[-1] <= 1.01 * watch.memory[SETTLED]
    best = min(watch.losses)
    assert watch.losses[-1] <= max(1.05 * best, best + 1e-4)
