"""Gradients that hold only some rows (``tf.IndexedSlices``), as embeddings have."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfkfac import linalg


def unique(gradient: Any) -> Any:
    """Adds up the rows of equal index; a gradient that is a tensor stays as it is.

    Shapes stay as they are (XLA has no others): behind the sums come rows of zeros for index 0.
    """
    if not isinstance(gradient, tf.IndexedSlices):
        return tf.convert_to_tensor(gradient)
    order = tf.argsort(gradient.indices)
    indices = tf.gather(gradient.indices, order)
    begins = tf.concat([tf.zeros([1], tf.bool), indices[1:] != indices[:-1]], axis=0)[
        : tf.size(indices)
    ]
    segments = tf.cumsum(tf.cast(begins, tf.int32))
    count = tf.size(indices)
    values = tf.math.unsorted_segment_sum(tf.gather(gradient.values, order), segments, count)
    indices = tf.maximum(tf.math.unsorted_segment_max(indices, segments, count), 0)
    return tf.IndexedSlices(values, indices, gradient.dense_shape)


def values_of(gradient: Any) -> tf.Tensor:
    """The numbers that a gradient holds."""
    return gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient


def with_values(gradient: Any, values: tf.Tensor) -> Any:
    """The gradient with other numbers in the same places."""
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)
    return values


def dot(left: Any, right: Any) -> tf.Tensor:
    """The inner product of a gradient (rows unique) and its preconditioned self.

    Args:
        left: The gradient.
        right: Of the same rows, or a whole tensor.
    """
    of_left = values_of(left)
    if isinstance(left, tf.IndexedSlices) and not isinstance(right, tf.IndexedSlices):
        right = tf.gather(right, left.indices)
    return linalg.dot(of_left, tf.cast(values_of(right), of_left.dtype))


def add_to(variable: Any, gradient: Any) -> None:
    """``variable += gradient`` in place, touching only the rows that the gradient holds."""
    if isinstance(gradient, tf.IndexedSlices):
        variable.value.scatter_add(gradient)
    else:
        variable.assign_add(gradient)
