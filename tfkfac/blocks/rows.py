"""How the uses of a layer become rows, and what single examples contribute by them."""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfkfac.blocks.curvature_block import CurvatureBlock
from tfkfac.blocks.example_gradients import RowsOfUse, count_of_examples, length, sum_of_squares
from tfkfac.blocks.use import Use, UseWeights
from tfkfac.factors import KroneckerInverse


class RowsByExample(CurvatureBlock):
    """The part of a Kronecker block that sees the places of its layer as rows a and g.

    The rows of an example are neighbours, on both sides in the same order. So the gradients of
    single examples can be told, of which EKFAC keeps a mean in the eigenbases of the factors.

    Attributes:
        inverse: What is kept to precondition with.
        has_bias: Whether a has a 1 appended.
        groups: Number of independent pairs of factors.
        input_dim: Dimension of A.
        output_dim: Dimension of G.
    """

    tells_examples_apart = False
    """Whether `input_rows` (or a `sum_of_squares` without it) is there, for ``method="ekfac"``."""

    inverse: KroneckerInverse
    has_bias: bool
    groups: int
    input_dim: int
    output_dim: int

    # --- what a layer family defines -------------------------------------------------------

    @abc.abstractmethod
    def output_rows(self, gradients: tf.Tensor) -> tf.Tensor:
        """The backpropagated g of one use as rows ``[..., places, out]`` (stacked by group)."""

    def input_rows(self, inputs: tf.Tensor) -> tf.Tensor:
        """Inputs as rows ``[..., places, in]`` without the bias, in the order of `output_rows`.

        Args:
            inputs: What `inputs_of` makes of a use, or some neighbouring rows of it.
        """
        raise NotImplementedError(f"{type(self).__name__} has no rows of its inputs.")

    def inputs_of(self, use: Use) -> tf.Tensor:
        """The inputs a of a use, as a tensor in the factors' dtype."""
        return self.cast_inputs(use.inputs)

    def cast_inputs(self, inputs: Any) -> tf.Tensor:
        """Recorded inputs as a tensor in the factors' dtype."""
        if isinstance(inputs, tf.SparseTensor):
            inputs = tf.sparse.to_dense(tf.sparse.reorder(inputs))
        return tf.cast(inputs, self.dtype)

    def gradients_of(self, use: Use, gradient: tf.Tensor) -> tf.Tensor:
        """The backpropagated g of a use in the factors' dtype."""
        del use
        return tf.cast(gradient, self.dtype)

    # --- EKFAC -----------------------------------------------------------------------------

    def statistics_of_examples(
        self,
        uses: Sequence[Use],
        gradients: Sequence[tf.Tensor],
        weights: Sequence[UseWeights],
        batch: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        """``s = Σ_n (Q_Aᵀ Σ_t a gᵀ Q_G)∘² / N`` in the bases as they stand, if the inverse asks.

        Args:
            uses: What was recorded.
            gradients: The backpropagated g of every use.
            weights: What is known of whose rows these are; g has its weights already.
            batch: N, the batch size of the model.
        """
        if not self.inverse.takes_examples:
            return {}
        inputs = [self.inputs_of(use) for use in uses]
        of_uses = [self.gradients_of(*pair) for pair in zip(uses, gradients, strict=True)]
        rows = [length(each, 0) for each in inputs]
        examples = count_of_examples(rows, batch, weights)
        return {"s": self.sum_of_squares(inputs, of_uses, examples) / tf.cast(batch, self.dtype)}

    def sum_of_squares(
        self, inputs: Sequence[tf.Tensor], gradients: Sequence[tf.Tensor], examples: Any
    ) -> tf.Tensor:
        """``Σ_n (Q_Aᵀ Σ_t a gᵀ Q_G)∘²``, see `tfkfac.blocks.example_gradients`.

        Args:
            inputs: Of every use.
            gradients: g of every use.
            examples: The number of examples among which their rows are shared out equally.
        """
        rows = [
            RowsOfUse(
                each,
                self._rows_with_ones,
                self.output_rows(gradient),
                self._places_of_row(gradient),
            )
            for each, gradient in zip(inputs, gradients, strict=True)
        ]
        stack = () if self.groups == 1 else (self.groups,)
        shape = (*stack, self.input_dim, self.output_dim)
        return sum_of_squares(rows, examples, self.inverse.bases(), shape)

    def _rows_with_ones(self, inputs: tf.Tensor) -> tf.Tensor:
        rows = self.input_rows(inputs)
        if not self.has_bias:
            return rows
        return tf.pad(rows, [[0, 0]] * (rows.shape.rank - 1) + [[0, 1]], constant_values=1)

    def _places_of_row(self, gradient: tf.Tensor) -> int | None:
        """Places beside those of the first axis, along which the examples are."""
        channels = {axis % gradient.shape.rank for axis in self.channel_axes}
        sizes = [size for axis, size in enumerate(gradient.shape) if axis not in channels]
        return None if None in sizes[1:] else math.prod(sizes[1:])
