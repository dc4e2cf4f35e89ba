"""The step with its momentum: what is assigned to the weights."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfkfac import indexed_slices, keras_internals


def move(
    variable: Any, velocity: Any, direction: Any, scale: tf.Tensor, momentum: tf.Tensor
) -> None:
    """``δ ← μ·δ − s·p``, ``θ ← θ + δ``.

    One operation for both, where p is a whole tensor: memory is gone through once.

    Args:
        variable: θ, a Keras variable.
        velocity: δ, a Keras variable.
        direction: p, a tensor, or only some of its rows.
        scale: s = ν·α, scalar.
        momentum: μ, scalar.
    """
    scale, momentum = (tf.cast(each, velocity.dtype) for each in (scale, momentum))
    values = tf.cast(indexed_slices.values_of(direction), velocity.dtype)
    if isinstance(direction, tf.IndexedSlices) or variable.dtype != velocity.dtype:
        velocity.assign(momentum * velocity)
        indexed_slices.add_to(velocity, indexed_slices.with_values(direction, -scale * values))
        kept = keras_internals.uncast(variable)
        kept.assign_add(tf.cast(velocity, kept.dtype))
        return
    tf.raw_ops.ResourceApplyKerasMomentum(
        var=keras_internals.uncast(variable).handle,
        accum=keras_internals.uncast(velocity).handle,
        lr=scale,
        grad=values,
        momentum=momentum,
    )
