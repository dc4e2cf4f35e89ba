"""Dense layers, on inputs of any rank: every row of the last axis is a use."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfkfac.blocks.kronecker import KroneckerBlock
from tfkfac.blocks.use import UseWeights


class DenseBlock(KroneckerBlock):
    """``s = a·K + b`` with a kernel ``[in, out]`` (Martens & Grosse 2015, §3).

    Args:
        layer: The Keras layer.
        kernel: ``[in, out]``.
        bias: ``[out]`` or None.
        **options: As for `KroneckerBlock`: `method`, `max_factor_size`.
    """

    label = "Dense"
    tells_examples_apart = True

    def __init__(self, layer: Any, kernel: Any, bias: Any, **options: Any) -> None:
        input_dim, output_dim = kernel.shape
        super().__init__(layer, kernel, bias, input_dim=input_dim, output_dim=output_dim, **options)

    def input_moment(self, inputs: tf.Tensor, weights: UseWeights) -> tf.Tensor:
        """Inputs ``[..., in]``, flattened to rows."""
        rows = self.input_rows(inputs)
        if weights.omega is None:
            return self.moment_of_rows(rows, None, weights.total)
        omega = tf.broadcast_to(weights.omega, tf.shape(inputs)[:-1])
        return self.moment_of_rows(rows, tf.reshape(omega, [-1]), weights.total)

    def input_rows(self, inputs: tf.Tensor) -> tf.Tensor:
        """Inputs ``[..., in]``, flattened to rows."""
        return tf.reshape(inputs, [-1, self.input_dim - self.has_bias])

    def output_rows(self, gradients: tf.Tensor) -> tf.Tensor:
        """Gradients ``[..., out]``, flattened to rows."""
        return tf.reshape(gradients, [-1, self.output_dim])

    def kernel_to_matrix(self, kernel: tf.Tensor) -> tf.Tensor:
        """The kernel is a matrix already."""
        return kernel

    def matrix_to_kernel(self, matrix: tf.Tensor) -> tf.Tensor:
        """The kernel is a matrix already."""
        return matrix
