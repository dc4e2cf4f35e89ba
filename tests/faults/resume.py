"""Trainings that stop and go on, each step in a process of its own.

python resume.py FOLDER whole|saved|killed|restarted|deterministic
"""

from __future__ import annotations

import os
import pathlib
import signal
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
import tensorflow as tf

import tfkfac

EPOCHS, STOP = 5, 2


def model() -> keras.Model:
    """With everything that has a state: dropout, moving averages, recurrent noise."""
    keras.utils.set_random_seed(0)
    made = keras.Sequential(
        [
            keras.Input((4, 6)),
            keras.layers.LSTM(8, dropout=0.2),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(16, activation="relu"),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(3),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    made.compile(tfkfac.KFAC(seed=1, use_ema=True, weight_decay=1e-3), loss)
    return made


def fit(made: keras.Model, epochs: int = EPOCHS, **options: object) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(72, 4, 6)).astype("float32"), rng.integers(3, size=72)
    made.fit(x, y, batch_size=16, shuffle=False, epochs=epochs, verbose=0, **options)


def state(made: keras.Model) -> dict[str, np.ndarray]:
    variables = [*made.variables, *made.optimizer.variables]
    return {f"{i}: {v.path}": v.numpy() for i, v in enumerate(variables)}


class Saves(keras.callbacks.Callback):
    def __init__(self, folder: pathlib.Path) -> None:
        super().__init__()
        self.folder = folder

    def on_epoch_end(self, epoch: int, logs: object = None) -> None:
        if epoch + 1 == STOP:
            self.model.save(self.folder / "model.keras")
            self.model.save_weights(self.folder / "model.weights.h5")
            checkpoint = tf.train.Checkpoint(model=self.model, optimizer=self.model.optimizer)
            checkpoint.write(f"{self.folder}/checkpoint")


def whole(folder: pathlib.Path) -> None:
    """Never stops, but saves in every way; then writes what there is at the end."""
    made = model()
    every_epoch = keras.callbacks.ModelCheckpoint(str(folder / "checkpoint.{epoch}.keras"))
    fit(made, callbacks=[every_epoch, Saves(folder)])
    np.savez(folder / "whole.npz", **state(made))


def loaded_weights(folder: pathlib.Path) -> keras.Model:
    made = model()
    made.load_weights(folder / "model.weights.h5")
    return made


def restored(folder: pathlib.Path) -> keras.Model:
    made = model()
    made.optimizer.build(made.trainable_variables)
    checkpoint = tf.train.Checkpoint(model=made, optimizer=made.optimizer)
    checkpoint.read(f"{folder}/checkpoint").assert_existing_objects_matched()
    return made


WAYS = {
    "model": lambda folder: keras.models.load_model(folder / "model.keras"),
    "callback": lambda folder: keras.models.load_model(folder / f"checkpoint.{STOP}.keras"),
    "weights": loaded_weights,
    "checkpoint": restored,
}


def saved(folder: pathlib.Path) -> None:
    """Goes on from every kind of file."""
    for name, load in WAYS.items():
        made = load(folder)
        fit(made, initial_epoch=STOP)
        np.savez(folder / f"{name}.npz", **state(made))


class Killed(keras.callbacks.Callback):
    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        if self.model.optimizer.iterations.numpy() == 5 * STOP + 3:
            os.kill(os.getpid(), signal.SIGKILL)


def backup(folder: pathlib.Path) -> keras.callbacks.Callback:
    return keras.callbacks.BackupAndRestore(folder / "backup")


def killed(folder: pathlib.Path) -> None:
    fit(model(), callbacks=[backup(folder), Killed()])


def restarted(folder: pathlib.Path) -> None:
    made = model()
    fit(made, callbacks=[backup(folder)])
    np.savez(folder / "backup.npz", **state(made))


def deterministic(folder: pathlib.Path) -> None:
    """With TensorFlow's own switch, which refuses operations that are not."""
    tf.config.experimental.enable_op_determinism()
    ends = []
    for _ in range(2):
        keras.utils.clear_session()  # or layers have other names
        made = model()
        fit(made, 2)
        ends.append(state(made))
    assert all(np.array_equal(ends[0][key], ends[1][key]) for key in ends[0])
    (folder / "deterministic").touch()


HOW = {each.__name__: each for each in (whole, saved, killed, restarted, deterministic)}

if __name__ == "__main__":
    HOW[sys.argv[2]](pathlib.Path(sys.argv[1]))
