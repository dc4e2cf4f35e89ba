"""Jacobian-vector products through a forward pass that was recorded (mathematics.md §5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfkfac import indexed_slices, keras_internals


def push_forward(
    tape: tf.GradientTape,
    targets: Sequence[tf.Tensor],
    variables: Sequence[Any],
    directions: Sequence[Sequence[Any]],
) -> list[list[tf.Tensor]]:
    """``J v`` for several directions v, without another forward pass.

    A backward pass ``Jᵀu`` is linear in u, so the derivative of ``⟨Jᵀu, v⟩`` in u is ``J v``: two
    products a layer and direction. The values of u and of ``Jᵀu`` play no part; in a graph they are
    never computed. One direction is pushed after the other: side by side, all their tangents would
    be in memory.

    Args:
        tape: A persistent tape that watched the variables while the targets were computed.
        targets: The outputs of the forward pass.
        variables: What the directions are directions of: Keras variables, or tensors.
        directions: For each direction, a tensor for each variable (rows of it, if it is an
            embedding's).

    Returns:
        For each direction, a tangent of the shape of each target.

    Raises:
        ValueError: TensorFlow has no second derivative of some operation.
    """
    cotangents = [tf.zeros_like(target) for target in targets]
    sources = [_source(variable) for variable in variables]
    with tf.GradientTape(persistent=True) as outer:
        outer.watch(cotangents)
        gradients = tape.gradient(list(targets), sources, output_gradients=cotangents)
        pulled = [indexed_slices.values_of(g) for g in gradients if g is not None]
    pushed: list[list[tf.Tensor]] = []
    for direction in directions:
        vectors = [
            tf.cast(_at_rows(vector, gradient), indexed_slices.values_of(gradient).dtype)
            for vector, gradient in zip(direction, gradients, strict=True)
            if gradient is not None
        ]
        try:
            with tf.control_dependencies(tf.nest.flatten(pushed[-1:])):
                pushed.append(
                    outer.gradient(
                        pulled, cotangents, output_gradients=vectors, unconnected_gradients="zero"
                    )
                )
        except LookupError as error:
            raise ValueError(
                "learning_rate, momentum and damping that are 'auto' need second derivatives of "
                f"all operations of the model, but TensorFlow has none here ({error}). Give "
                "numbers: KFAC(learning_rate=0.1, momentum=0.9, damping=1e-3)."
            ) from error
    return pushed


def _source(variable: Any) -> Any:
    """The TensorFlow variable behind a Keras variable; tensors stay as they are."""
    is_keras = isinstance(variable, keras.Variable)
    return keras_internals.uncast(variable) if is_keras else variable


def _at_rows(vector: Any, gradient: Any) -> tf.Tensor:
    """A direction at the places that a gradient holds: rows of embeddings that were looked up.

    Such a gradient has no second derivative as a whole, but its rows have.
    """
    if not isinstance(gradient, tf.IndexedSlices):
        return tf.convert_to_tensor(vector)
    if isinstance(vector, tf.IndexedSlices):
        vector = tf.convert_to_tensor(vector)
    return tf.gather(vector, gradient.indices)
