"""The convolutional block's factors and layout against NumPy and autodiff."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from convolutions import Case, Convolution, input_error, statistics
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reference import add_variable, output_factor, relative_error

from tfkfac.blocks import DenseBlock, KroneckerBlock, Use
from tfkfac.blocks.use import UseWeights


@st.composite
def geometries(draw: Any) -> Convolution:
    pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
    return Convolution(
        size=draw(pairs),
        strides=draw(pairs),
        dilation=draw(pairs),
        padding=draw(st.sampled_from(["valid", "same"])),
        groups=draw(st.integers(1, 3)),
        channels_first=draw(st.booleans()),
    )


@st.composite
def cases(draw: Any) -> Case:
    geometry = draw(geometries())
    spare = draw(st.tuples(st.integers(0, 4), st.integers(0, 4)))
    least = [
        (size - 1) * dilation + 1 if geometry.padding == "valid" else 1
        for size, dilation in zip(geometry.size, geometry.dilation, strict=True)
    ]
    return Case(
        geometry,
        batch=draw(st.integers(1, 3)),
        image=(least[0] + spare[0], least[1] + spare[1]),
        channels=geometry.groups * draw(st.integers(1, 2)),
        filters=geometry.groups * draw(st.integers(1, 2)),
        bias=draw(st.booleans()),
        weights=draw(st.sampled_from(["none", "places", "examples"])),
    )


@settings(max_examples=30, deadline=None)
@given(geometries(), st.integers(1, 8), st.integers(1, 8))
def test_the_transcription_is_tensorflows_convolution(
    geometry: Convolution, height: int, width: int
) -> None:
    """Patches times kernel are what ``tf.nn.conv2d`` computes."""
    geometry = dataclasses.replace(geometry, groups=1, channels_first=False)
    extents = [(s - 1) * d + 1 for s, d in zip(geometry.size, geometry.dilation, strict=True)]
    if geometry.padding == "valid":
        height, width = height + extents[0] - 1, width + extents[1] - 1
    rng = np.random.default_rng(0)
    images, kernel = rng.normal(size=(2, height, width, 2)), rng.normal(size=(*geometry.size, 2, 3))
    output = tf.nn.conv2d(
        images, kernel, geometry.strides, geometry.padding.upper(), dilations=geometry.dilation
    )
    assert tuple(output.shape[1:3]) == geometry.output_shape(images)
    rows = geometry.rows(images, bias=False)[0] @ kernel.reshape(-1, 3)
    assert relative_error(output.numpy().reshape(-1, 3), rows) < 1e-12


STRIDE_OVER_PATCH = Case(Convolution((1, 1), (3, 2), padding="same"), image=(3, 4))
"""Some pixels are seen by no patch, so that there is nothing to pad."""


@settings(max_examples=40, deadline=None)
@given(cases(), st.integers(0, 99))
@example(STRIDE_OVER_PATCH, 0)
def test_factors_equal_the_transcription(case: Case, seed: int) -> None:
    rng = np.random.default_rng(seed)
    images, g, omega = case.images(rng), case.gradients(rng), case.omega(rng)
    block = case.block()
    found = statistics(
        block, tf.constant(images), None if omega is None else tf.constant(omega), case.places
    )
    assert input_error(case, found, images, omega) < 1e-12
    places = tf.constant(np.float64(case.batch * np.prod(case.places)))
    G = block.output_statistics([tf.constant(g)], [UseWeights(None, places, places)])["G"].numpy()
    expected = np.stack([output_factor(rows) for rows in case.geometry.gradient_rows(g)])
    assert relative_error(np.tril(G).reshape(expected.shape), np.tril(expected)) < 1e-12


def test_output_factor_is_the_golden_one() -> None:
    case = Case(Convolution((2, 2), padding="same"), image=(2, 2))
    assert case.places == (2, 2)
    places = tf.constant(8.0, tf.float64)
    gradients = tf.reshape(tf.range(1.0, 17.0, dtype=tf.float64), [2, 2, 2, 2])
    G = case.block().output_statistics([gradients], [UseWeights(None, places, places)])["G"]
    assert np.array_equal(np.tril(G), [[85, 0], [93, 102]])


# --- layout ------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_gradients_are_matrices_with_the_bias_last(groups: int, bias: bool) -> None:
    """The gradient by the kernel is Σ a gᵀ; the block's matrix must be laid out as a and g are."""
    case = Case(Convolution((3, 2), (2, 1), groups=groups), channels=4, filters=6, bias=bias)
    layer = keras.layers.Conv2D(
        6, (3, 2), strides=(2, 1), groups=groups, use_bias=bias, dtype="float64"
    )
    rng = np.random.default_rng(1)
    images, g = case.images(rng), case.gradients(rng)
    layer.build(images.shape)
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(layer(tf.constant(images)) * g)
    gradients = tape.gradient(value, [variable.value for variable in layer.trainable_variables])
    rows, outputs = case.geometry.rows(images, bias), case.geometry.gradient_rows(g)
    expected = np.swapaxes(rows, -1, -2) @ outputs
    found = case.block().to_matrix(gradients).numpy().reshape(expected.shape)
    assert relative_error(found, expected) < 1e-12


@pytest.mark.parametrize("channels_first", [False, True])
@pytest.mark.parametrize("method", ["cholesky", "eigen"])
@pytest.mark.parametrize("padding", ["valid", "same"])
def test_a_convolution_of_single_pixels_is_a_dense_layer(
    channels_first: bool, method: str, padding: str
) -> None:
    """The same factors, and the same direction."""
    rng = np.random.default_rng(2)
    a, g, omega = rng.normal(size=(9, 3)), rng.normal(size=(9, 2)), rng.uniform(size=9)
    kernel, bias = rng.normal(size=(3, 2)), rng.normal(size=2)
    layer = keras.layers.Dense(2, dtype="float64")
    layer.build((None, 3))
    case = Case(Convolution((1, 1), (2, 2), (1, 1), padding, 1, channels_first), 9, (1, 1), 3)
    images = [np.expand_dims(x, (2, 3) if channels_first else (1, 2)) for x in (a, g)]
    pixels = learn(case.block(method), *images, omega[:, None, None])
    rows = learn(DenseBlock(layer, layer.kernel, layer.bias, method=method), a, g, omega)
    assert relative_error(pixels.to_dense(), rows.to_dense()) < 1e-14
    found = pixels.precondition([tf.constant(kernel[None, None]), tf.constant(bias)], 0.1)
    expected = rows.precondition([tf.constant(kernel), tf.constant(bias)], 0.1)
    assert relative_error(found[0][0, 0], expected[0]) < 1e-13
    assert relative_error(found[1], expected[1]) < 1e-13


def learn(block: KroneckerBlock, a: np.ndarray, g: np.ndarray, omega: np.ndarray) -> KroneckerBlock:
    """A block that has seen one batch."""
    weights = UseWeights(*[tf.constant(x) for x in (omega, omega.sum(), np.float64(len(omega)))])
    block.build(add_variable, lambda: tf.constant(0.1))
    use, batch = Use(tf.constant(a), tf.constant(0.0)), tf.constant(len(a))
    found = block.input_statistics([use], [weights], batch)
    found |= block.output_statistics([tf.constant(g)], [weights])
    block.update(found, tf.constant(0.0), tf.constant(1.0))
    return block
