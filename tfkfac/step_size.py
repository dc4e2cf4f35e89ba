"""Guards of the length of a step (mathematics.md §3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfkfac import indexed_slices


def kl_clip_scale(clip: tf.Tensor, learning_rate: tf.Tensor, decrement: tf.Tensor) -> tf.Tensor:
    """ν = min(1, √(c / (α² gᵀF̂⁻¹g))): bounds the KL divergence of a step, to second order.

    Args:
        clip: c, scalar.
        learning_rate: α, scalar.
        decrement: gᵀF̂⁻¹g, scalar.

    Returns:
        ν, scalar in (0, 1].
    """
    length = tf.square(learning_rate) * decrement
    return tf.sqrt(clip / tf.maximum(length, clip))


def clipped_step(
    learning_rate: tf.Tensor,
    clip: Any,
    gradients: Sequence[tf.Tensor],
    directions: Sequence[tf.Tensor],
) -> tf.Tensor:
    """ν·α: the learning rate, within the bound of the KL clip.

    Args:
        learning_rate: α, scalar.
        clip: c, or None for no bound.
        gradients: g, one tensor a variable.
        directions: F̂⁻¹g, likewise.
    """
    if clip is None:
        return learning_rate
    decrement = tf.add_n(
        [
            tf.cast(indexed_slices.dot(g, p), learning_rate.dtype)
            for g, p in zip(gradients, directions, strict=True)
        ]
    )
    bound = tf.cast(clip, learning_rate.dtype)
    return learning_rate * kl_clip_scale(bound, learning_rate, decrement)
