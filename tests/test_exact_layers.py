"""Blocks of layers other than Dense and Conv2D against the Gauss-Newton matrix of autodiff.

Scale-and-shift blocks hold the exact 2×2 block of every unit; embeddings are exact in deep linear
networks; a diagonal is exact for one example and unbiased for many.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from reference import ggn_of_variables, relative_error

import tfkfac

pytestmark = pytest.mark.usefixtures("float64")

TOLERANCE = 1e-9
N = 3


def trained(model: Any, x: Any, y: Any, sample_weight: Any = None, **options: Any) -> tfkfac.KFAC:
    """The model's optimizer after one step."""
    optimizer = tfkfac.KFAC(**{"fisher": "exact", "factor_decay": 0.0, "seed": 0, **options})
    model.compile(optimizer, keras.losses.MeanSquaredError(), run_eagerly=True)
    model.train_on_batch(x, y, sample_weight=sample_weight)
    return optimizer


def exact(model: Any, layer: Any, x: Any, y: Any, sample_weight: Any = None) -> np.ndarray:
    """The Gauss-Newton block of all variables of a layer, one variable after the other."""
    loss = keras.losses.MeanSquaredError()
    return ggn_of_variables(model, layer.trainable_variables, x, y, loss, sample_weight)


def randomised(model: Any) -> Any:
    """The model with scales, shifts and biases that are neither zero nor one."""
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(size=variable.shape) / np.sqrt(max(1, variable.shape[0])))
    return model


def around(layer: Any, shape: tuple[int, ...], outputs: int = 2) -> Any:
    """A network with the layer in its midst and something non-linear on both sides."""
    width = shape[-1]
    return randomised(
        keras.Sequential(
            [
                keras.Input(shape),
                layers.Dense(width, activation="tanh"),
                layer,
                layers.Activation("tanh"),
                layers.Flatten(),
                layers.Dense(outputs),
            ]
        )
    )


def units_of(matrix: np.ndarray, variables: int) -> np.ndarray:
    """The 2×2 (or 1×1) blocks of single units in a matrix, the rest zero."""
    units = len(matrix) // variables
    same = np.kron(np.ones((variables, variables)), np.eye(units))
    return matrix * same


NORMALIZATIONS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "layer": (lambda: layers.LayerNormalization(), (4,)),
    "layer, of a sequence": (lambda: layers.LayerNormalization(), (5, 4)),
    "layer, two axes": (lambda: layers.LayerNormalization(axis=(1, 2)), (3, 4)),
    "layer, another axis": (lambda: layers.LayerNormalization(axis=1), (3, 4)),
    "layer, no shift": (lambda: layers.LayerNormalization(center=False), (5, 4)),
    "layer, no scale": (lambda: layers.LayerNormalization(scale=False), (5, 4)),
    "layer, rms": (lambda: layers.LayerNormalization(rms_scaling=True), (5, 4)),
    "rms": (lambda: layers.RMSNormalization(), (5, 4)),
    "group": (lambda: layers.GroupNormalization(2), (2, 3, 4)),
    "group, each its own": (lambda: layers.GroupNormalization(-1), (3, 4)),
    "group, another axis": (lambda: layers.GroupNormalization(3, axis=1), (6, 4)),
    "group, no scale": (lambda: layers.GroupNormalization(2, scale=False), (3, 4)),
    "PReLU": (lambda: layers.PReLU(), (3, 4)),
    "PReLU, shared": (lambda: layers.PReLU(shared_axes=[1]), (3, 4)),
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", NORMALIZATIONS)
def test_scale_and_shift_of_a_unit_are_exact(kind: str, weighted: bool) -> None:
    make, shape = NORMALIZATIONS[kind]
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(N, *shape)), rng.normal(size=(N, 2))
    weights = np.array([0.5, 0.0, 3.0]) if weighted else None
    model = around(make(), shape)
    layer = model.layers[1]
    expected = units_of(exact(model, layer, x, y, weights), len(layer.trainable_variables))
    block = trained(model, x, y, weights).layer_collection[layer.name]
    assert isinstance(block, tfkfac.blocks.ScaleShiftBlock)
    dense = block.to_dense()
    assert relative_error(dense, expected) < TOLERANCE
    assert float(block.trace()) == pytest.approx(np.trace(dense))
    gradients = [rng.normal(size=variable.shape) for variable in block.variables]
    solved = block.precondition(list(map(tf.constant, gradients)), damping=0.3)
    found, flat = (np.concatenate([np.ravel(v) for v in each]) for each in (solved, gradients))
    wanted = np.linalg.solve(dense + 0.3 * np.eye(len(dense)), flat)
    assert relative_error(found, wanted) < TOLERANCE


def test_scale_and_shift_of_a_layer_used_twice_are_exact() -> None:
    inputs = keras.Input((4,))
    norm = layers.LayerNormalization(name="norm")
    hidden = layers.Activation("tanh")(norm(layers.Dense(4)(inputs)))
    model = randomised(keras.Model(inputs, layers.Dense(2)(norm(hidden))))
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(N, 4)), rng.normal(size=(N, 2))
    expected = units_of(exact(model, model.get_layer("norm"), x, y), 2)
    block = trained(model, x, y).layer_collection["norm"]
    assert relative_error(block.to_dense(), expected) < TOLERANCE


def test_rows_of_one_example_are_added_before_they_are_squared() -> None:
    """A reshape puts several rows of an example on the leading axis."""

    class Folded(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head = layers.LayerNormalization(name="norm"), layers.Dense(2)

        def call(self, inputs: Any) -> Any:
            rows = self.norm(tf.reshape(inputs, [-1, 4]))
            return self.head(tf.tanh(tf.reshape(rows, [-1, 8])))

    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(N, 8)), rng.normal(size=(N, 2))
    model = Folded()
    model(x)
    expected = units_of(exact(randomised(model), model.norm, x, y), 2)
    block = trained(model, x, y).layer_collection["norm"]
    assert relative_error(block.to_dense(), expected) < TOLERANCE


def test_frozen_part_of_a_normalization_has_no_block() -> None:
    model = around(layers.LayerNormalization(name="norm"), (4,))
    model.get_layer("norm").gamma.trainable = False
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(N, 4)), rng.normal(size=(N, 2))
    expected = units_of(exact(model, model.get_layer("norm"), x, y), 1)
    block = trained(model, x, y).layer_collection["norm"]
    assert block.variables == [model.get_layer("norm").beta]
    assert relative_error(block.to_dense(), expected) < TOLERANCE


# --- batch normalisation: its examples depend on each other ------------------------------------


BATCH_NORMALIZATIONS: dict[str, tuple[dict[str, Any], bool, bool]] = {
    "of the batch": ({}, True, False),
    "moving": ({}, False, False),
    "masked": ({}, True, True),
    "another axis": ({"axis": 1}, True, False),
    "no shift": ({"center": False}, True, False),
}


@pytest.mark.parametrize("kind", BATCH_NORMALIZATIONS)
def test_normalized_inputs_are_those_of_the_layer(kind: str) -> None:
    """γ·x̂ + β is what the layer returned."""
    arguments, training, masked = BATCH_NORMALIZATIONS[kind]
    layer = layers.BatchNormalization(**arguments)
    rng = np.random.default_rng(1)
    x = tf.constant(rng.normal(2.0, 3.0, size=(N, 5, 4)))
    mask = tf.constant(rng.integers(0, 2, size=(N, 5)) > 0) if masked else None
    layer.build(x.shape)
    for variable in layer.weights:
        variable.assign(rng.uniform(1, 2, size=variable.shape))
    block = tfkfac.registry.build_blocks(layer, [layer])[0]
    outputs = layer(x, training=training, mask=mask)
    use = tfkfac.blocks.Use(x, outputs, mask, {"training": training})
    if training:
        for variable in layer.non_trainable_weights:
            variable.assign(rng.uniform(1, 2, size=variable.shape))  # are not looked at
    shape = [1, 1, 1]
    shape[layer.axis] = x.shape[layer.axis]
    beta = tf.reshape(layer.beta, shape) if layer.center else 0.0
    rebuilt = block._normalized(use) * tf.reshape(layer.gamma, shape) + beta
    np.testing.assert_allclose(rebuilt, outputs, rtol=1e-10)


def test_batch_normalization_in_a_model_is_observed_in_the_mode_it_runs_in() -> None:
    """F of (γ, β) from the injected gradients of each example: sums over places, then squares."""
    model = around(layers.BatchNormalization(name="norm"), (5, 4))
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(N, 5, 4)), rng.normal(size=(N, 2))
    norm = model.get_layer("norm")
    hidden = keras.Model(model.inputs, norm.input)(x, training=True)
    mean, variance = tf.nn.moments(hidden, [0, 1])
    normalized = (hidden - mean) / tf.sqrt(variance + norm.epsilon)
    tail = keras.Sequential(model.layers[2:])
    expected = np.zeros((8, 8))
    for scalar in range(2):
        with tf.GradientTape() as tape:
            seen = norm.gamma * normalized + norm.beta
            tape.watch(seen)
            outputs = tail(seen)[:, scalar]
        g = tape.gradient(outputs, seen)  # ∂y_n/∂s_n: the tail does not mix examples
        parts = tf.concat([tf.reduce_sum(g * normalized, 1), tf.reduce_sum(g, 1)], axis=-1)
        expected += (2.0 / 2.0) * np.einsum("ni,nj->ij", parts, parts) / N
    block = trained(model, x, y).layer_collection["norm"]
    assert relative_error(block.to_dense(), units_of(expected, 2)) < TOLERANCE


# --- embeddings --------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
def test_embedding_is_exact_in_a_linear_network(weighted: bool) -> None:
    model = randomised(
        keras.Sequential(
            [
                keras.Input((1,), dtype="int32"),
                layers.Embedding(5, 3, name="tokens"),
                layers.Flatten(),
                layers.Dense(2),
            ]
        )
    )
    x, y = np.array([[1], [4], [1], [2]]), np.random.default_rng(1).normal(size=(4, 2))
    weights = np.array([0.5, 0.0, 3.0, 1.0]) if weighted else None
    expected = exact(model, model.get_layer("tokens"), x, y, weights)
    optimizer = trained(model, x, y, weights)
    block = optimizer.layer_collection["tokens"]
    assert block.factor_shapes == {"A": (5,), "G": (3, 3)}
    assert relative_error(block.to_dense(), expected) < TOLERANCE
    assert optimizer.layer_collection.coverage() == 1.0


# --- diagonals ---------------------------------------------------------------------------------


class Warp(layers.Layer):
    """A layer that no builder knows: a bend of its own for each unit."""

    def build(self, input_shape: Any) -> None:
        self.bend = self.add_weight(shape=(input_shape[-1],), name="bend")

    def call(self, inputs: Any) -> Any:
        return tf.tanh(inputs * tf.exp(self.bend.value))


def test_diagonal_of_one_example_is_exact() -> None:
    model = around(Warp(name="warp"), (5, 4))
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(1, 5, 4)), rng.normal(size=(1, 2))
    expected = np.diag(np.diag(exact(model, model.get_layer("warp"), x, y)))
    with pytest.warns(UserWarning, match="warp"):
        block = trained(model, x, y).layer_collection["warp"]
    assert relative_error(block.to_dense(), expected) < TOLERANCE


@pytest.mark.parametrize("fisher", ["mc", "exact", "empirical"])
def test_diagonal_of_a_batch_is_unbiased(fisher: str) -> None:
    """The mean of many estimates is within its own error of the diagonal."""
    model = around(Warp(name="warp"), (4,))
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(N, 4)), rng.normal(size=(N, 2))
    diagonal = np.diag(exact(model, model.get_layer("warp"), x, y))
    if fisher == "empirical":
        losses = []
        for i in range(N):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((model(x[i : i + 1]) - y[i]) ** 2)
            losses.append(np.square(tape.gradient(loss, model.get_layer("warp").bend)))
        # √(N·c_u) weighs the injected gradients: here c_u = 1/(N·D), of D = 2 scalars a unit.
        diagonal = 2.0 * np.mean(losses, axis=0)
    optimizer = tfkfac.KFAC(0.0, fisher=fisher, factor_decay=0.0, seed=0, weight_decay=None)
    model.compile(optimizer, keras.losses.MeanSquaredError())
    estimates = []
    with pytest.warns(UserWarning, match="warp"):
        for _ in range(500):
            model.train_on_batch(x, y)
            estimates.append(optimizer.layer_collection["warp"].factors["F0"].numpy())
    error = np.mean(estimates, axis=0) - diagonal
    deviation = np.std(estimates, axis=0) / np.sqrt(len(estimates))
    assert np.all(np.abs(error) < 4.5 * deviation + 1e-12)
    assert np.all(deviation < 0.2 * diagonal)
