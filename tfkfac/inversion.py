"""Draws from finite distributions, by inversion of their cumulative sums."""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf

WIDE = 256
"""Positions from which on a draw has two stages: sums are quick, cumulative sums are not."""


def drawn(weights: tf.Tensor, uniform: tf.Tensor) -> tf.Tensor:
    """Draws from distributions over K positions: of many, first a block, then a position in it.

    Args:
        weights: ``[..., K]``, non-negative; they need not add up to one. Half precision is summed
            in single precision.
        uniform: ``float32 [...]``, in [0, 1].

    Returns:
        Positions ``int32 [...]``, of positive weight.
    """
    weights = tf.cast(weights, tf.float64 if weights.dtype == tf.float64 else tf.float32)
    uniform = tf.cast(uniform, weights.dtype)
    count = weights.shape[-1]
    if count < WIDE:
        return _inverted(weights, uniform)[0]
    width = math.isqrt(count)
    leading = tf.shape(weights)[:-1]
    paddings = [[0, 0]] * (weights.shape.rank - 1) + [[0, -count % width]]
    blocks = tf.reshape(tf.pad(weights, paddings), [*tf.unstack(leading), -1, width])
    block, rest = _inverted(tf.reduce_sum(blocks, axis=-1), uniform)
    inside = tf.gather(blocks, block, batch_dims=block.shape.rank)
    return block * width + _inverted(inside, rest)[0]


def _inverted(weights: tf.Tensor, uniform: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The position at which the cumulative sum passes `uniform` of the total, and how far into it.

    Returns:
        ``(int32 [...], [...])``, the second in [0, 1].
    """
    cumulative = tf.cumsum(weights, axis=-1)
    below_one = 1.0 - float(np.finfo(weights.dtype.as_numpy_dtype).eps)
    threshold = cumulative[..., -1] * tf.minimum(uniform, below_one)
    passed = tf.cast(cumulative <= threshold[..., None], tf.int32)
    position = tf.reduce_sum(passed, axis=-1)
    weight = tf.gather(weights, position, batch_dims=position.shape.rank)
    end = tf.gather(cumulative, position, batch_dims=position.shape.rank)
    return position, tf.clip_by_value(1.0 - (end - threshold) / weight, 0.0, 1.0)
