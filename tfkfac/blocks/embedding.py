"""Embeddings: a look-up is a product with a one-hot row, whose second moment is diagonal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfkfac.blocks.block import UseWeights
from tfkfac.blocks.kronecker import KroneckerBlock
from tfkfac.factor_forms import DIAGONAL


class EmbeddingBlock(KroneckerBlock):
    """``s = E[token]``: A is the vector of token frequencies, G is dense (mathematics.md §2).

    Gradients that are ``tf.IndexedSlices`` stay so: only the rows of tokens in the batch are
    touched.

    Args:
        layer: The Keras layer.
        embeddings: ``[vocabulary, out]``.
        **options: As for `KroneckerBlock`: `method`, `max_factor_size`.
    """

    label = "Embedding"

    def __init__(self, layer: Any, embeddings: Any, **options: Any) -> None:
        vocabulary, output_dim = embeddings.shape
        super().__init__(
            layer,
            embeddings,
            None,
            input_dim=vocabulary,
            output_dim=output_dim,
            input_form=DIAGONAL,
            **options,
        )

    def cast_inputs(self, inputs: Any) -> tf.Tensor:
        """Token numbers."""
        return tf.cast(inputs, tf.int32)

    def input_moment(self, inputs: tf.Tensor, weights: UseWeights) -> tf.Tensor:
        """The weighted count of each token."""
        tokens = tf.reshape(inputs, [-1])
        omega = tf.ones([], self.dtype) if weights.omega is None else weights.omega
        counts = tf.reshape(tf.broadcast_to(omega, tf.shape(inputs)), [-1])
        return tf.math.unsorted_segment_sum(counts, tokens, self.input_dim)

    def output_rows(self, gradients: tf.Tensor) -> tf.Tensor:
        """Gradients ``[..., out]``, flattened to rows."""
        return tf.reshape(gradients, [-1, self.output_dim])

    def kernel_to_matrix(self, kernel: tf.Tensor) -> tf.Tensor:
        """The embeddings are a matrix already."""
        return kernel

    def matrix_to_kernel(self, matrix: tf.Tensor) -> tf.Tensor:
        """The embeddings are a matrix already."""
        return matrix

    def precondition(
        self, gradients: Sequence[Any], damping: float | tf.Tensor | None = None
    ) -> list[Any]:
        """As for every Kronecker block; row by row if the gradient holds only some rows."""
        (gradient,) = gradients
        if not isinstance(gradient, tf.IndexedSlices):
            return super().precondition(gradients, damping)
        kept, damping = self.kept_and_damping(damping)
        rows_of_kept = [tf.gather(kept[0], gradient.indices), *kept[1:]]
        values = self._inverse.apply(rows_of_kept, tf.cast(gradient.values, self.dtype), damping)
        return [tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)]
