"""Guards of the length of a step (mathematics.md §3)."""

from __future__ import annotations

import tensorflow as tf


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
