"""Blocks of the real optimizer that are exact: they equal the Gauss-Newton block of autodiff.

Kronecker factors are no approximation in deep linear networks with squared loss, nor for a single
example whose layers are used once (maths.md §2; Bernacchia et al. 2018).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from reference import ggn_block, relative_error

import tfkfac

pytestmark = pytest.mark.usefixtures("float64")

TOLERANCE = 1e-9


def compare(
    model: Any,
    x: Any,
    y: Any,
    loss: Any = None,
    *,
    sample_weight: Any = None,
    eagerly: bool = True,
    **options: Any,
) -> None:
    """Trains one step and compares every block with the exact one at the weights before it."""
    loss = loss or keras.losses.MeanSquaredError()
    trained = [layer for layer in model.layers if layer.trainable_variables]
    exact = {layer.name: ggn_block(model, layer, x, y, loss, sample_weight) for layer in trained}
    optimizer = tfkfac.KFAC(fisher="exact", factor_decay=0.0, **options)
    model.compile(optimizer=optimizer, loss=loss, run_eagerly=eagerly)
    if eagerly:
        model.train_on_batch(x, y, sample_weight=sample_weight)
    else:  # the size of the batch is not known in the graph
        slices = (x, y) if sample_weight is None else (x, y, sample_weight)
        dataset = tf.data.Dataset.from_tensor_slices(slices)
        model.fit(dataset.batch(len(y)), shuffle=False, verbose=0)
    assert optimizer.layer_collection.coverage() == 1.0
    for name, expected in exact.items():
        block = optimizer.layer_collection[name]
        assert np.abs(expected).max() > 1e-6
        assert relative_error(block.to_dense(), expected) < TOLERANCE, name


def randomised(model: Any) -> Any:
    """The model with biases that are not zero."""
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(size=variable.shape) / np.sqrt(variable.shape[0]))
    return model


def data(*shape: int, outputs: tuple[int, ...], seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape), rng.normal(size=(shape[0], *outputs))


def weights_of(*shape: int) -> np.ndarray:
    """Very different weights, zero among them."""
    weights = np.random.default_rng(2).uniform(0, 4, size=shape)
    weights.flat[1] = 0.0
    return weights


# --- deep linear networks ----------------------------------------------------------------------


def linear(*input_shape: int, bias: bool = True) -> Any:
    """Three linear layers on the last axis."""
    sizes = (4, 3, 2)
    stack = [layers.Dense(size, use_bias=bias, name=f"dense_{size}") for size in sizes]
    return randomised(keras.Sequential([keras.Input(input_shape), *stack]))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("weighted", [False, True])
def test_deep_linear_networks(bias: bool, weighted: bool) -> None:
    x, y = data(7, 5, outputs=(2,))
    compare(linear(5, bias=bias), x, y, sample_weight=weights_of(7) if weighted else None)


@pytest.mark.parametrize("weights", [None, (4, 1), (4, 3)], ids=["none", "examples", "steps"])
def test_deep_linear_networks_over_time(weights: tuple[int, ...] | None) -> None:
    """Every time step is a use: |T| = 3, and weights belong to examples or to steps."""
    x, y = data(4, 3, 5, outputs=(3, 2))
    compare(linear(3, 5), x, y, sample_weight=weights and weights_of(*weights))


class Folded(keras.Model):
    """Linear layers that see time steps as examples, as in attention over windows."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = [layers.Dense(size, name=f"dense_{size}") for size in (4, 2)]

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        rows = tf.reshape(inputs, [-1, inputs.shape[-1]])
        for layer in self.stack:
            rows = layer(rows)
        return tf.reshape(rows, [-1, 2 * inputs.shape[1]])


@pytest.mark.parametrize(("weighted", "eagerly"), [(False, True), (True, True), (True, False)])
def test_deep_linear_networks_on_folded_batches(weighted: bool, eagerly: bool) -> None:
    """The rows of a layer are not the examples of the model: |T| = 3, weights are repeated."""
    x, y = data(4, 3, 5, outputs=(6,))
    model = Folded()
    model(x)
    weights = weights_of(4) if weighted else None
    compare(randomised(model), x, y, sample_weight=weights, eagerly=eagerly)


@pytest.mark.parametrize("reduction", ["sum", "mean_with_sample_weight"])
def test_deep_linear_networks_whatever_the_reduction(reduction: str) -> None:
    """A sum is taken as N times a mean."""
    x, y = data(5, 4, outputs=(2,))
    weights = weights_of(5)
    loss = keras.losses.MeanSquaredError(reduction=reduction)
    model = linear(4)
    layer = model.layers[0]
    expected = ggn_block(model, layer, x, y, loss, weights) / (5 if reduction == "sum" else 1)
    optimizer = tfkfac.KFAC(fisher="exact", factor_decay=0.0)
    model.compile(optimizer, loss, run_eagerly=True)
    model.train_on_batch(x, y, sample_weight=weights)
    found = optimizer.layer_collection[layer.name].to_dense()
    assert relative_error(found, expected) < TOLERANCE


def test_masked_steps_of_deep_linear_networks() -> None:
    x, y = data(4, 3, 5, outputs=(3, 2))
    x[0, 2] = x[2, 1:] = 0.0
    stack = [layers.Masking(), layers.Dense(4, name="a"), layers.Dense(2, name="b")]
    compare(randomised(keras.Sequential([keras.Input((3, 5)), *stack])), x, y)


def test_a_layer_that_is_used_twice() -> None:
    """Both uses reach outputs of their own in the same way: one average over both."""
    shared = layers.Dense(2, name="shared")
    inputs = [keras.Input((3,)), keras.Input((3,))]
    rows = [layers.Reshape((1, 2))(shared(each)) for each in inputs]
    model = randomised(keras.Model(inputs, layers.Concatenate(axis=1)(rows)))
    x, y = data(6, 3, outputs=(2, 2))
    compare(model, [x, data(6, 3, outputs=(), seed=3)[0]], y)


def test_linear_convolutions_of_pixels() -> None:
    """1×1 kernels: every pixel is a use, and a dense network of its own."""
    stack = [layers.Conv2D(3, 1, name="a"), layers.Conv2D(2, 1, name="b")]
    x, y = data(3, 2, 4, 3, outputs=(2, 4, 2))
    model = randomised(keras.Sequential([keras.Input((2, 4, 3)), *stack]))
    compare(model, x, y, sample_weight=weights_of(3, 1, 1))


def test_the_factored_approximation_is_one() -> None:
    """Two examples and a nonlinearity are not exact: the comparisons above can fail."""
    x, y = data(2, 4, outputs=(2,))
    with pytest.raises(AssertionError):
        compare(multilayer_perceptron(), x, y)


# --- one example -------------------------------------------------------------------------------

LOSSES: dict[str, tuple[Callable[[], Any], Any]] = {
    "mse": (keras.losses.MeanSquaredError, [[0.3, -1.0, 2.0]]),
    "categorical": (
        lambda: keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1),
        [[0.0, 1.0, 0.0]],
    ),
    "sparse": (lambda: keras.losses.SparseCategoricalCrossentropy(from_logits=True), [2]),
    "binary": (lambda: keras.losses.BinaryCrossentropy(from_logits=True), [[1.0, 0.0, 0.3]]),
}


def multilayer_perceptron(outputs: int = 2) -> Any:
    stack = [
        layers.Dense(5, "tanh", name="a"),
        layers.Dense(4, "softplus", use_bias=False, name="b"),
        layers.Dense(outputs, name="c"),
    ]
    return randomised(keras.Sequential([keras.Input((4,)), *stack]))


def convolutional(outputs: int, *image: int, **options: Any) -> Any:
    """One output location at each convolution."""
    stack = [
        layers.Conv2D(4, (3, 2), activation="tanh", name="a", **options),
        layers.Conv2D(3, 3, padding="same", activation="tanh", use_bias=False, name="b"),
        layers.Conv2D(5, 1, name="c"),
        layers.Flatten(),
        layers.Dense(outputs, name="d"),
    ]
    return randomised(keras.Sequential([keras.Input((*(image or (3, 2)), 2)), *stack]))


@pytest.mark.parametrize("loss", LOSSES)
def test_one_example_through_a_perceptron(loss: str) -> None:
    make, y = LOSSES[loss]
    x, _ = data(1, 4, outputs=())
    compare(multilayer_perceptron(3), x, np.array(y), make())


@pytest.mark.parametrize("loss", LOSSES)
def test_one_example_through_convolutions(loss: str) -> None:
    make, y = LOSSES[loss]
    x, _ = data(1, 3, 2, 2, outputs=())
    compare(convolutional(3), x, np.array(y), make())


@pytest.mark.parametrize(
    ("image", "options"),
    [
        ((3, 4), {"strides": (1, 3)}),
        ((5, 2), {"dilation_rate": (2, 1)}),
        ((2, 1), {"padding": "same", "strides": (2, 1)}),
    ],
    ids=["strides", "dilation", "same"],
)
def test_one_example_through_a_convolution_of_any_geometry(image: Any, options: Any) -> None:
    make, y = LOSSES["mse"]
    x, _ = data(1, *image, 2, outputs=())
    compare(convolutional(3, *image, **options), x, np.array(y), make())


def test_one_example_of_which_all_steps_but_one_are_masked() -> None:
    """The masked steps pass through the layer, but are no uses of it."""
    x, y = data(1, 3, 4, outputs=(2,))
    x[0, 1:] = 0.0
    hidden = layers.Dense(5, "tanh", name="a")
    stack = [layers.Masking(), hidden, layers.GlobalAveragePooling1D(), layers.Dense(2, name="b")]
    model = randomised(keras.Sequential([keras.Input((3, 4)), *stack]))
    compare(model, x, y)
    assert model.optimizer.layer_collection["a"].uses == 1


def test_groups_of_a_convolution_are_blocks_of_their_own() -> None:
    """One example: the blocks on the diagonal are exact, those between groups are left out."""
    make, y = LOSSES["categorical"]
    x, _ = data(1, 3, 2, 2, outputs=())
    model = convolutional(3, groups=2)
    expected = ggn_block(model, model.layers[0], x, np.array(y), make())
    half = len(expected) // 2
    expected[half:, :half] = expected[:half, half:] = 0.0
    optimizer = tfkfac.KFAC(fisher="exact", factor_decay=0.0)
    model.compile(optimizer, make(), run_eagerly=True)
    model.train_on_batch(x, np.array(y))
    assert relative_error(optimizer.layer_collection["a"].to_dense(), expected) < TOLERANCE


def test_one_example_in_a_traced_step_with_a_weight() -> None:
    make, y = LOSSES["categorical"]
    x, _ = data(1, 4, outputs=())
    weights = np.array([9.0])
    model = multilayer_perceptron(3)
    compare(model, x, np.array(y), make(), sample_weight=weights, eagerly=False, method="eigen")


def test_a_step_of_a_convolution_of_pixels_is_that_of_a_dense_network() -> None:
    """1×1 inputs: the same blocks, and the same weights after a step."""
    x, y = data(6, 4, outputs=(2,))
    dense = multilayer_perceptron()
    stack = [
        layers.Conv2D(5, 1, activation="tanh", name="a"),
        layers.Conv2D(4, 3, padding="same", activation="softplus", use_bias=False, name="b"),
        layers.Conv2D(2, 1, strides=2, name="c"),
    ]
    pixels = keras.Sequential([keras.Input((1, 1, 4)), *stack])
    for conv, layer in zip(pixels.layers, dense.layers, strict=True):
        kernel = np.zeros(conv.kernel.shape)
        kernel[kernel.shape[0] // 2, kernel.shape[1] // 2] = layer.kernel
        conv.set_weights([kernel, *layer.get_weights()[1:]])
    for model, shape in [(dense, (6,)), (pixels, (6, 1, 1))]:
        options = {"fisher": "exact", "factor_decay": 0.0, "damping": 0.1, "method": "eigen"}
        model.compile(tfkfac.KFAC(kl_clip=None, **options), "mse", run_eagerly=True)
        model.train_on_batch(x.reshape(*shape, 4), y.reshape(*shape, 2))
    for conv, layer in zip(pixels.layers, dense.layers, strict=True):
        after = conv.kernel.numpy()[conv.kernel.shape[0] // 2, conv.kernel.shape[1] // 2]
        assert relative_error(after, layer.kernel) < 1e-12
    for name in ("a", "c"):
        found, expected = (m.optimizer.layer_collection[name] for m in (pixels, dense))
        assert relative_error(found.to_dense(), expected.to_dense()) < 1e-12
