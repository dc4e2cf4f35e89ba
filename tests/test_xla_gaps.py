"""What XLA cannot compile does not stop a training."""

from __future__ import annotations

import warnings

import keras
import numpy as np
import pytest
from keras import layers

import tfkfac


def _compiled(policy: str, pooling: dict[str, str], **arguments: float) -> keras.Model:
    keras.config.set_dtype_policy(policy)
    try:
        model = keras.Sequential(
            [
                keras.Input((4, 4, 1)),
                layers.Conv2D(2, 3, padding="same", activation="tanh"),
                keras.Sequential([layers.MaxPooling2D(name="nested", **pooling)]),
                layers.Flatten(),
                layers.Dense(3),
            ]
        )
    finally:
        keras.config.set_dtype_policy("float32")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tfkfac.KFAC(**arguments), loss, jit_compile=True)
    return model


def _train(model: keras.Model) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(16, 4, 4, 1)), rng.integers(3, size=16)
    history = model.fit(x, y, batch_size=8, epochs=4, verbose=0).history["loss"]
    assert history[-1] < history[0]


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "float64"])
def test_maximum_pooling_in_other_precisions(policy: str) -> None:
    with pytest.warns(UserWarning, match="dtype='float32' to the layers nested, or numbers"):
        model = _compiled(policy, {})
    assert not model.jit_compile
    _train(model)


@pytest.mark.parametrize(
    ("policy", "pooling", "arguments"),
    [
        ("float32", {}, {}),
        ("mixed_bfloat16", {"dtype": "float32"}, {}),
        ("mixed_bfloat16", {}, {"learning_rate": 0.1, "momentum": 0.9, "damping": 1e-2}),
    ],
    ids=["single", "as the warning tells: dtype", "as the warning tells: numbers"],
)
def test_maximum_pooling_that_xla_compiles(
    policy: str, pooling: dict[str, str], arguments: dict[str, float]
) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*without XLA.*")
        model = _compiled(policy, pooling, **arguments)
    assert model.jit_compile
    _train(model)
