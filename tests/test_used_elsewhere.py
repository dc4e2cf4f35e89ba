"""Kernels that are used outside of their layers, where no curvature of them can be seen."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfkfac
from tfkfac.blocks import PlainGradient


class TiedAutoencoder(keras.Model):
    """Decodes with the transpose of the encoder's kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = layers.Dense(5, "tanh", name="encoder")

    def call(self, x: Any) -> Any:
        return ops.matmul(self.encoder(x), ops.transpose(self.encoder.kernel))


class WeightNorm(layers.Wrapper):
    """Exchanges the kernel of a Dense layer for a scaled one while it runs."""

    def call(self, x: Any) -> Any:
        kernel = self.layer._kernel
        vars(self.layer)["_kernel"] = kernel / ops.norm(kernel, axis=0)
        try:
            return self.layer(x)
        finally:
            vars(self.layer)["_kernel"] = kernel


class Siamese(keras.Model):
    """Uses a layer twice, as a layer: nothing is hidden."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = layers.Dense(6, kernel_regularizer="l2", name="encoder")

    def call(self, x: Any) -> Any:
        return self.encoder(x) - self.encoder(-x)


def tied() -> keras.Model:
    model = TiedAutoencoder()
    model(np.zeros((1, 6)))
    return model


def wrapped() -> keras.Model:
    return keras.Sequential(
        [keras.Input((6,)), WeightNorm(layers.Dense(6, use_bias=False, name="encoder"))]
    )


def shared() -> keras.Model:
    model = Siamese()
    model(np.zeros((1, 6)))
    return model


def stacked_cells() -> keras.Model:
    cells = [layers.LSTMCell(4, dropout=0.2), layers.GRUCell(6)]
    return keras.Sequential(
        [keras.Input((6,)), layers.Reshape((3, 2)), layers.RNN(cells, name="encoder")]
    )


def trained(model: keras.Model, **options: Any) -> tuple[tfkfac.KFAC, list[str]]:
    """The optimizer after some steps, and the warnings of tfkfac."""
    x = np.random.default_rng(0).normal(size=(32, 6)).astype("float32")
    optimizer = tfkfac.KFAC(0.05, seed=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.compile(optimizer, "mse", **options)
        losses = model.fit(x, x, batch_size=32, epochs=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    return optimizer, [str(w.message) for w in caught if "tfkfac" in str(w.message)]


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("make", [tied, wrapped])
def test_a_kernel_used_elsewhere_follows_the_plain_gradient(make: Any, jit: bool) -> None:
    optimizer, messages = trained(make(), jit_compile=jit)
    block = optimizer.layer_collection["encoder"]
    assert isinstance(block, PlainGradient)
    assert block.reason == "kernel is used outside of the layer too"
    assert sum("plain gradient for encoder" in message for message in messages) == 1


@pytest.mark.parametrize("make", [shared, stacked_cells])
def test_uses_within_layers_and_regularisers_are_seen(make: Any) -> None:
    optimizer, messages = trained(make())
    assert optimizer.layer_collection.coverage() == 1.0
    assert not messages
