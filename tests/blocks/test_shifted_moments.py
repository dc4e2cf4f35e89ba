"""Second moments of patches without the patches: the same numbers as with them."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers
from reference import relative_error

from tfkfac.blocks import ConvBlock, Use, shifted_moments
from tfkfac.blocks.use import UseWeights
from tfkfac.blocks.window import Window
from tfkfac.registry import build_blocks


def _statistics(block: ConvBlock, x: tf.Tensor, places: int) -> np.ndarray:
    count = tf.constant(float(len(x) * places), block.dtype)
    use, weights = [Use(x, x)], [UseWeights(None, count, count)]
    return np.tril(block.input_statistics(use, weights, tf.constant(len(x)))["A"])


def _both(size: tuple[int, int], padding: str, shape: tuple[int, ...], **arguments: Any) -> float:
    """How far shifted moments are from those of patches."""
    layer = layers.Conv2D(2, size, padding=padding, dtype="float64", **arguments)
    x = tf.constant(np.random.default_rng(0).normal(size=shape))
    places = int(np.prod(layer(x).shape[1:3]))
    (block,) = build_blocks(layer, [layer])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shifted_moments, "WORTHWHILE", -1.0)
        expected = _statistics(block, x, places)
        patch.setattr(shifted_moments, "WORTHWHILE", 1e9)
        assert block._takes_shifted_moments(x.shape)
        return relative_error(_statistics(block, x, places), expected)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.tuples(st.integers(1, 4), st.integers(1, 4)).filter(lambda size: max(size) > 1),
    st.sampled_from(["valid", "same"]),
    st.tuples(st.integers(4, 7), st.integers(4, 7)),
    st.booleans(),
)
def test_moments_are_those_of_the_patches(
    size: tuple[int, int], padding: str, space: tuple[int, int], use_bias: bool
) -> None:
    assert _both(size, padding, (2, *space, 3), use_bias=use_bias) < 1e-10


def test_single_precision_keeps_five_digits() -> None:
    layer = layers.Conv2D(2, 3, padding="same")
    x = tf.constant(np.random.default_rng(0).normal(1.0, size=(16, 20, 20, 8)), tf.float32)
    layer(x)
    (block,) = build_blocks(layer, [layer])
    assert block._takes_shifted_moments(x.shape)
    shifted = _statistics(block, x, 400)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shifted_moments, "WORTHWHILE", -1.0)
        assert relative_error(shifted, _statistics(block, x, 400)) < 1e-5


@pytest.mark.parametrize("jit", [False, True])
def test_moments_are_the_same_in_graphs(jit: bool) -> None:
    layer = layers.Conv2D(2, 3, padding="same", dtype="float64")
    x = tf.constant(np.random.default_rng(0).normal(size=(4, 20, 20, 2)))
    layer(x)
    (block,) = build_blocks(layer, [layer])
    spec = tf.TensorSpec([None if not jit else 4, 20, 20, 2], x.dtype)

    @tf.function(jit_compile=jit, input_signature=[spec])
    def moment(x: tf.Tensor) -> tf.Tensor:
        count = tf.constant(1600.0, tf.float64)
        return block.input_moment(x, UseWeights(None, count, count))

    expected = block.input_moment(x, UseWeights(None, *[tf.constant(1600.0, tf.float64)] * 2))
    assert relative_error(np.tril(moment(x)), np.tril(expected)) < 1e-10


@pytest.mark.parametrize(
    ("window", "space", "taken"),
    [
        (Window((3, 3), padding="same"), (32, 32), True),
        (Window((3, 3)), (32, 32), True),
        (Window((5, 5), padding="same"), (32, 32), True),
        (Window((3, 3), padding="same"), (6, 6), False),
        (Window((3, 3), (2, 2), padding="same"), (32, 32), False),
        (Window((3, 3), dilation=(2, 2), padding="same"), (32, 32), False),
        (Window((1, 1)), (32, 32), False),
        (Window((3, 3), padding="same"), (None, 32), False),
        (Window((3,), padding="same"), (32,), False),
    ],
)
def test_where_they_are_taken(window: Window, space: tuple[Any, ...], taken: bool) -> None:
    shape = tf.TensorShape([None, *space, 8])
    assert shifted_moments.is_worthwhile(window, shape) == taken


def test_no_patches_of_the_whole_image_are_made() -> None:
    """Only those of the rim: no tensor of the graph has all of them."""
    layer = layers.Conv2D(2, 3, padding="same")
    x = tf.zeros([4, 32, 32, 8])
    layer(x)
    (block,) = build_blocks(layer, [layer])
    count = tf.constant(4096.0)
    graph = tf.function(lambda: block.input_moment(x, UseWeights(None, count, count)))
    operations = graph.get_concrete_function().graph.get_operations()
    sizes = [out.shape.num_elements() or 0 for each in operations for out in each.outputs]
    assert max(sizes) < 4 * 32 * 32 * 8 * 9 / 3
    assert keras.config.floatx() == "float32"
