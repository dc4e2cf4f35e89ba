"""In which order a graph makes the statistics of a batch: what decides about its peak memory."""

from __future__ import annotations

import time
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfkfac
from tfkfac.blocks.kronecker import KroneckerBlock

LAYERS = ("front", "middle", "back")


@pytest.mark.parametrize(
    ("method", "statistic", "order"),
    [("pass_statistics", "G", LAYERS[::-1]), ("input_statistics", "A", LAYERS)],
)
def test_statistics_are_made_one_at_a_time_as_the_passes_come_by(
    method: str, statistic: str, order: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    events = []
    original = getattr(KroneckerBlock, method)

    def watched(self: KroneckerBlock, *arguments: Any) -> dict[str, tf.Tensor]:
        statistics = original(self, *arguments)
        moment = statistics[statistic]

        def slow(value: np.ndarray) -> np.ndarray:
            events.append(("begin", self.layers[0].name))
            time.sleep(0.05)
            events.append(("end", self.layers[0].name))
            return value

        slowed = tf.numpy_function(slow, [moment], moment.dtype, stateful=False)
        return statistics | {statistic: tf.ensure_shape(slowed, moment.shape)}

    monkeypatch.setattr(KroneckerBlock, method, watched)
    dense = [keras.layers.Dense(3, activation="tanh", name=name) for name in LAYERS]
    model = keras.Sequential([keras.Input((2,)), *dense])
    model.compile(optimizer=tfkfac.KFAC(learning_rate=0.1, damping=0.1), loss="mse")
    model.train_on_batch(np.ones((4, 2)), np.ones((4, 3)))
    assert events == [(what, name) for name in order for what in ("begin", "end")]
