"""Every convolution of Keras as rows and matrices: against Keras' own output and gradients.

If ``rows · matrix(K) + b`` is the layer's pre-activation, and ``rowsᵀ · g`` the gradient of its
kernel, then the patches, their order and the kernel's are right. The factors are made of the rows.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers
from reference import input_factor, relative_error

import tfkfac
from tfkfac.blocks import ConvBlock, DenseBlock, Use, chunks
from tfkfac.blocks.use import UseWeights

TOLERANCE = 1e-10
N = 2

Case = tuple[type, dict[str, Any], tuple[int, ...]]

CASES: dict[str, Case] = {
    "1d": (layers.Conv1D, {"filters": 3, "kernel_size": 3}, (7, 2)),
    "1d causal": (
        layers.Conv1D,
        {"filters": 3, "kernel_size": 3, "padding": "causal", "dilation_rate": 2},
        (7, 2),
    ),
    "1d strided same": (
        layers.Conv1D,
        {"filters": 4, "kernel_size": 4, "strides": 3, "padding": "same", "groups": 2},
        (8, 4),
    ),
    "2d": (layers.Conv2D, {"filters": 3, "kernel_size": (3, 2), "padding": "same"}, (5, 6, 2)),
    "2d groups": (
        layers.Conv2D,
        {"filters": 4, "kernel_size": 2, "groups": 2, "strides": 2},
        (5, 6, 4),
    ),
    "3d": (layers.Conv3D, {"filters": 3, "kernel_size": (2, 3, 1)}, (4, 5, 3, 2)),
    "3d strided same": (
        layers.Conv3D,
        {"filters": 2, "kernel_size": 3, "strides": 2, "padding": "same"},
        (4, 5, 3, 2),
    ),
    "3d dilated": (
        layers.Conv3D,
        {"filters": 2, "kernel_size": 2, "dilation_rate": 2},
        (4, 5, 4, 2),
    ),
    "1d transposed": (layers.Conv1DTranspose, {"filters": 3, "kernel_size": 3}, (5, 2)),
    "1d transposed same": (
        layers.Conv1DTranspose,
        {"filters": 3, "kernel_size": 4, "strides": 2, "padding": "same"},
        (5, 2),
    ),
    "2d transposed": (
        layers.Conv2DTranspose,
        {"filters": 3, "kernel_size": (2, 3), "strides": (3, 2)},
        (3, 4, 2),
    ),
    "2d transposed same": (
        layers.Conv2DTranspose,
        {"filters": 3, "kernel_size": 5, "strides": 2, "padding": "same"},
        (3, 4, 2),
    ),
    "2d transposed, output padding": (
        layers.Conv2DTranspose,
        {
            "filters": 3,
            "kernel_size": 3,
            "strides": 2,
            "padding": "same",
            "output_padding": 1,
        },
        (3, 4, 2),
    ),
    "2d transposed, kernel smaller than strides": (
        layers.Conv2DTranspose,
        {"filters": 3, "kernel_size": 2, "strides": 4, "padding": "same"},
        (3, 2, 2),
    ),
    "2d transposed dilated": (
        layers.Conv2DTranspose,
        {"filters": 3, "kernel_size": 3, "dilation_rate": 2},
        (3, 4, 2),
    ),
    "3d transposed": (
        layers.Conv3DTranspose,
        {"filters": 2, "kernel_size": 2, "strides": 2},
        (3, 2, 2, 3),
    ),
    "1d depthwise": (layers.DepthwiseConv1D, {"kernel_size": 3, "depth_multiplier": 2}, (6, 3)),
    "2d depthwise": (
        layers.DepthwiseConv2D,
        {"kernel_size": 3, "depth_multiplier": 2, "padding": "same"},
        (4, 5, 3),
    ),
    "2d depthwise strided": (
        layers.DepthwiseConv2D,
        {"kernel_size": (3, 3), "strides": 2, "use_bias": False},
        (5, 6, 2),
    ),
    "2d depthwise of one channel": (layers.DepthwiseConv2D, {"kernel_size": 2}, (4, 4, 1)),
    "1d separable": (
        layers.SeparableConv1D,
        {"filters": 4, "kernel_size": 3, "depth_multiplier": 2},
        (6, 3),
    ),
    "2d separable": (
        layers.SeparableConv2D,
        {"filters": 4, "kernel_size": 3, "strides": 2, "padding": "same"},
        (5, 6, 3),
    ),
    "2d separable dilated": (
        layers.SeparableConv2D,
        {"filters": 2, "kernel_size": 2, "dilation_rate": 2, "depth_multiplier": 3},
        (5, 6, 2),
    ),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))


def built(case: Case) -> tuple[Any, tf.Tensor]:
    """The layer in double precision with random weights, and its input."""
    layer_class, arguments, shape = case
    rng = np.random.default_rng(0)
    layer = layer_class(**arguments, dtype="float64")
    x = tf.constant(rng.normal(size=(N, *shape)))
    layer.build(x.shape)
    for weight in layer.weights:
        weight.assign(rng.normal(size=weight.shape))
    return layer, x


def blocks_of(layer: Any, **options: Any) -> list[ConvBlock]:
    return tfkfac.registry.build_blocks(layer, [layer], **options)


def rows_of(block: ConvBlock, x: tf.Tensor) -> tf.Tensor:
    """The block's input rows, with a one for the bias."""
    images = block.window.pad(block.window.channels_last(block.cast_inputs(x)))
    rows = block.patch_rows(images)
    if block.has_bias:
        rows = tf.concat([rows, tf.ones_like(rows[..., :1])], axis=-1)
    return rows


def check(case: Case) -> None:
    layer, x = built(case)
    g = tf.constant(np.random.default_rng(1).normal(size=layer.compute_output_shape(x.shape)))

    # TensorFlow's own kernels on a CPU know no dilated transposed convolution, XLA does.
    @tf.function(jit_compile="Transpose" in type(layer).__name__)
    def outputs_and_gradients() -> tuple[tf.Tensor, list[tf.Tensor]]:
        with tf.GradientTape() as tape:
            outputs = layer(x)
            value = tf.reduce_sum(outputs * g)
        return outputs, tape.gradient(value, layer.weights)

    outputs, found_gradients = outputs_and_gradients()
    gradients = dict(zip(map(id, layer.weights), found_gradients, strict=True))
    blocks = blocks_of(layer)
    assert sorted(id(v) for b in blocks for v in b.variables) == sorted(gradients)
    for block in blocks:
        rows, of_outputs = rows_of(block, x), block.output_rows(g)
        expected = block.to_matrix([gradients[id(variable)] for variable in block.variables])
        found = tf.matmul(rows, of_outputs, transpose_a=True)
        assert relative_error(found, expected) < TOLERANCE
        for variable, back in zip(
            block.variables, block.from_matrix(block.to_matrix(block.variables)), strict=True
        ):
            np.testing.assert_array_equal(back, variable)
    if len(blocks) == 1:
        (block,) = blocks
        product = tf.matmul(rows_of(block, x), block.to_matrix(block.variables))
        assert relative_error(product, block.output_rows(outputs)) < TOLERANCE


@every_case
def test_rows_and_matrices_are_those_of_keras(case: Case) -> None:
    check(case)


@st.composite
def convolutions(draw: st.DrawFn) -> Case:
    """Any convolution that Keras accepts."""
    rank = draw(st.integers(1, 2))
    transposed, depthwise = draw(st.sampled_from([(0, 0), (1, 0), (0, 1)]))
    size = tuple(draw(st.integers(1, 4)) for _ in range(rank))
    stride, dilation = draw(st.sampled_from([(1, 1), (2, 1), (3, 1), (1, 2), (1, 3)]))
    arguments: dict[str, Any] = {
        "kernel_size": size,
        "strides": stride,
        "dilation_rate": dilation,
        "padding": draw(st.sampled_from(["valid", "same"])),
        "use_bias": draw(st.booleans()),
    }
    groups = 1 if transposed or depthwise else draw(st.integers(1, 3))
    channels = groups * draw(st.integers(1, 2))
    if depthwise:
        arguments["depth_multiplier"] = draw(st.integers(1, 2))
        layer_class = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)[rank - 1]
    elif transposed:
        arguments["filters"] = draw(st.integers(1, 3))
        layer_class = (layers.Conv1DTranspose, layers.Conv2DTranspose)[rank - 1]
    else:
        arguments |= {"filters": groups * draw(st.integers(1, 2)), "groups": groups}
        layer_class = (layers.Conv1D, layers.Conv2D)[rank - 1]
    space = [draw(st.integers((n - 1) * dilation + 1, 11)) for n in size]
    return layer_class, arguments, (*space, channels)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(convolutions())
def test_any_convolution_is_that_of_keras(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("budget", [1, 10**9])
@every_case
def test_factors_are_the_moments_of_the_rows(
    case: Case, budget: int, weighted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one piece and row by row, with and without weights."""
    monkeypatch.setattr(chunks, "PATCH_BYTES", budget)
    layer, x = built(case)
    outputs = tf.zeros(layer.compute_output_shape(x.shape), x.dtype)
    places = outputs.shape[1:-1]
    rng = np.random.default_rng(2)
    omega = rng.uniform(0.1, 2, size=(N, *places)) if weighted else None
    count = tf.constant(float(N * np.prod(places)), tf.float64)
    total = count if omega is None else tf.constant(omega.sum())
    weights = UseWeights(None if omega is None else tf.constant(omega), total, count)
    for block in blocks_of(layer):
        found = block.input_statistics([Use(x, outputs)], [weights], tf.constant(N))
        rows = rows_of(block, x).numpy()
        stacked = rows.reshape(-1, *rows.shape[-2:])
        expected = np.stack([np.tril(input_factor(each, omega)) for each in stacked])
        lower = np.tril(found["A"]).reshape(expected.shape)
        assert relative_error(lower, expected) < TOLERANCE
        assert found["uses"] == np.prod(places)


@pytest.mark.parametrize("jit", [False, True], ids=["graph", "jit"])
@pytest.mark.parametrize(
    "name", ["1d causal", "2d groups", "3d", "2d transposed same", "2d depthwise", "2d separable"]
)
def test_rows_are_the_same_in_graphs(name: str, jit: bool) -> None:
    layer, x = built(CASES[name])
    for block in blocks_of(layer):
        unknown = tf.TensorSpec([None, *x.shape[1:]] if not jit else x.shape, x.dtype)
        rows = tf.function(
            lambda x, block=block: rows_of(block, x), input_signature=[unknown], jit_compile=jit
        )
        assert relative_error(rows(x), rows_of(block, x)) < TOLERANCE


def test_images_of_unknown_size() -> None:
    """Fully convolutional networks leave the size of images open."""
    for name in ("2d", "2d transposed same", "2d transposed, kernel smaller than strides"):
        layer, x = built(CASES[name])
        (block,) = blocks_of(layer)
        unknown = tf.TensorSpec([None, None, None, x.shape[-1]], x.dtype)
        rows = tf.function(lambda x, block=block: rows_of(block, x), input_signature=[unknown])
        assert relative_error(rows(x), rows_of(block, x)) < TOLERANCE


def test_kernel_of_size_one_is_a_dense_layer() -> None:
    for name in ("1d", "2d", "3d", "2d transposed"):
        layer_class, _, shape = CASES[name]
        layer, x = built((layer_class, {"filters": 3, "kernel_size": 1}, shape))
        (block,) = blocks_of(layer)
        dense = layers.Dense(3, dtype="float64")
        dense(x)
        expected = DenseBlock(dense, dense.kernel, dense.bias)
        count = tf.constant(float(np.prod(x.shape[:-1])), tf.float64)
        use, weights = [Use(x, layer(x))], [UseWeights(None, count, count)]
        found, wanted = (
            each.input_statistics(use, weights, tf.constant(N)) for each in (block, expected)
        )
        assert relative_error(np.tril(found["A"]), np.tril(wanted["A"])) < TOLERANCE
        assert found["uses"] == wanted["uses"]


@pytest.mark.parametrize("kind", [layers.SeparableConv1D, layers.SeparableConv2D])
@pytest.mark.parametrize("frozen", ["depthwise_kernel", "pointwise_kernel"])
def test_frozen_half_of_a_separable_convolution_has_no_block(kind: type, frozen: str) -> None:
    layer = kind(4, 3)
    layer.build((None, *(6,) * layer.rank, 3))
    getattr(layer, frozen).trainable = False
    other = {"depthwise_kernel": layer.pointwise_kernel, "pointwise_kernel": layer.depthwise_kernel}
    (block,) = blocks_of(layer)
    assert block.variables[0] is other[frozen]


@pytest.mark.slow
def test_convolutions_train_alike_in_every_mode() -> None:
    """All in one network; the loss falls, and every mode gives the same losses."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(16, 8, 8, 2)), rng.integers(0, 3, size=16)
    histories = []
    for options in ({}, {"run_eagerly": True}, {"jit_compile": True}):
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [
                keras.Input((8, 8, 2)),
                layers.SeparableConv2D(4, 3, activation="tanh"),
                layers.DepthwiseConv2D(3, strides=2),
                layers.Conv2DTranspose(3, 3, strides=2, padding="same", activation="tanh"),
                layers.Reshape((4, 12)),
                layers.Conv1D(3, 2, padding="causal"),
                layers.Flatten(),
                layers.Dense(3),
            ]
        )
        optimizer = tfkfac.KFAC(0.1, seed=0)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer, loss, **options)
        history = model.fit(x, y, batch_size=16, epochs=4, verbose=0, shuffle=False)
        histories.append(history.history["loss"])
        assert optimizer.layer_collection.coverage() == 1.0
    assert histories[0][-1] < histories[0][0]
    for history in histories[1:]:
        np.testing.assert_allclose(history, histories[0], atol=1e-4)
