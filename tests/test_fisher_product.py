"""Products with the generalised Gauss-Newton matrix, against its dense self."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfkfac
from tests import reference

layers = keras.layers


def _image_network() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((5, 5, 2)),
            layers.Conv2D(3, 2, strides=2, activation="tanh"),
            layers.BatchNormalization(),
            layers.DepthwiseConv2D(2, padding="same", activation="silu"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )


def _token_network() -> keras.Model:
    tokens = keras.Input((4,), dtype="int32")
    hidden = layers.Embedding(5, 3)(tokens)
    hidden += layers.MultiHeadAttention(1, 2)(hidden, hidden)
    return keras.Model(tokens, layers.Dense(3)(layers.LayerNormalization()(hidden)))


def _recurrent_network(layer: Callable[..., Any]) -> keras.Model:
    return keras.Sequential(
        [keras.Input((4, 2)), layer(3, return_sequences=True), layer(2), layers.Dense(3)]
    )


def _data(model: keras.Model) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (3, *model.input_shape[1:])
    if model.inputs[0].dtype == "int32":
        return rng.integers(5, size=shape), rng.integers(3, size=(3, 4))
    return rng.normal(size=shape), rng.integers(3, size=3)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "factory",
    [
        _image_network,
        _token_network,
        lambda: _recurrent_network(layers.LSTM),
        lambda: _recurrent_network(layers.GRU),
    ],
    ids=["image", "tokens", "LSTM", "GRU"],
)
def test_equals_the_dense_matrix(factory: Callable[[], keras.Model]) -> None:
    model = factory()
    x, y = _data(model)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    rng = np.random.default_rng(1)
    v = [rng.normal(size=variable.shape) for variable in model.trainable_variables]
    matrix = reference.ggn_of_variables(model, model.trainable_variables, x, y, loss)
    expected = matrix @ np.concatenate([each.ravel() for each in v])
    for function in (tfkfac.fisher_vector_product, tf.function(tfkfac.fisher_vector_product)):
        product = function(model, loss, tf.constant(x), [tf.constant(each) for each in v])
        flat = np.concatenate([each.numpy().ravel() for each in product])
        np.testing.assert_allclose(flat, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("float64")
def test_losses_of_several_outputs_add_up() -> None:
    inputs = keras.Input((2,))
    heads = {"a": layers.Dense(3, name="a")(inputs), "b": layers.Dense(1, name="b")(inputs)}
    model = keras.Model(inputs, heads)
    x = np.random.default_rng(0).normal(size=(4, 2))
    v = [np.ones(variable.shape) for variable in model.trainable_variables]
    crossentropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    both = tfkfac.fisher_vector_product(model, {"a": crossentropy, "b": "mse"}, x, v)
    alone = tfkfac.fisher_vector_product(keras.Model(inputs, heads["b"]), "mse", x, v[2:])
    rows = np.concatenate([x, np.ones((4, 1))], axis=1)
    expected = 2 / 4 * rows.T @ rows @ np.ones((3, 1))
    for product in (both[2:], alone):
        flat = np.concatenate([each.numpy().ravel() for each in product])
        np.testing.assert_allclose(flat, expected.ravel(), rtol=1e-10)


def test_a_vector_that_does_not_fit_is_refused() -> None:
    model = keras.Sequential([keras.Input((2,)), layers.Dense(3)])
    with pytest.raises(ValueError, match=r"`v` must have a tensor for each .*\(2, 3\).*\(3, 2\)"):
        tfkfac.fisher_vector_product(model, "mse", np.ones((1, 2)), [np.ones((3, 2))])
    with pytest.raises(ValueError, match="no known predictive distribution"):
        v = [np.ones((2, 3)), np.ones(3)]
        tfkfac.fisher_vector_product(model, "mean_absolute_error", np.ones((1, 2)), v)


def test_two_losses_for_three_outputs_are_refused() -> None:
    inputs = keras.Input((2,))
    model = keras.Model(inputs, [layers.Dense(1)(inputs) for _ in range(3)])
    v = [np.ones(variable.shape) for variable in model.trainable_variables]
    with pytest.raises(ValueError, match=r"one for each of the 3 outputs of the model; got 2"):
        tfkfac.fisher_vector_product(model, ["mse", "mse"], np.ones((4, 2)), v)
