"""The diagonal of the Fisher, for variables of which no structure is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfkfac import indexed_slices
from tfkfac.blocks.curvature_block import CurvatureBlock
from tfkfac.blocks.use import Use, UseWeights


class DiagonalBlock(CurvatureBlock):
    """``F = diag E[g∘g]`` with g the gradient of one example's −log p.

    Gradients of single examples are not needed. The targets of different examples are drawn
    independently (or, where they are not drawn, `tfkfac.fisher` gives every example a random
    sign), so the gradients of a batch of N have no correlation, and ``(Σ_n g_n)²/N`` estimates
    ``E[g²]`` without bias (Liu et al. 2023, "Gauss-Newton-Bartlett"). It costs one gradient.

    Args:
        layers: The layers that own the variables.
        variables: The variables.
        reason: Why the block is no better.
    """

    label = "diagonal"

    def __init__(self, layers: Sequence[Any], variables: Sequence[Any], reason: str) -> None:
        self._keys = [f"F{index}" for index in range(len(variables))]
        sizes = [int(tf.TensorShape(variable.shape).num_elements()) for variable in variables]
        super().__init__(
            layers, variables, {k: (n,) for k, n in zip(self._keys, sizes, strict=True)}
        )
        self.reason = reason
        self._reached = [True] * len(variables)

    def sources(self, uses: Sequence[Use]) -> list[Any]:
        """The variables themselves."""
        del uses
        return [variable.value for variable in self.variables]

    def pass_statistics(
        self,
        uses: Sequence[Use],
        gradients: Sequence[Any],
        weights: Sequence[UseWeights],
        batch: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        """``(Σ_n g_n)²/N``, entry by entry; None is the gradient of what cannot be reached."""
        del uses, weights
        self._reached = [gradient is not None for gradient in gradients]
        root = tf.sqrt(tf.cast(batch, self.dtype))
        return {
            key: tf.zeros(self._averages.shapes[key], self.dtype)
            if gradient is None
            else tf.square(self._flat(gradient) / root)
            for key, gradient in zip(self._keys, gradients, strict=True)
        }

    def precondition(
        self, gradients: Sequence[tf.Tensor], damping: float | tf.Tensor | None = None
    ) -> list[tf.Tensor]:
        """``g / (F + λ)``; the gradient itself where no backward pass reaches the variable."""
        averages, damping = self.averages(), self.damping_or_current(damping)
        preconditioned = []
        for key, gradient, reached in zip(self._keys, gradients, self._reached, strict=True):
            preconditioned.append(
                self._divided(gradient, averages[key] + damping) if reached else gradient
            )
        return preconditioned

    def trace(self) -> tf.Tensor:
        """The sum of the entries."""
        averages = self.averages()
        return tf.add_n([tf.reduce_sum(averages[key]) for key in self._keys])

    def to_dense(self) -> tf.Tensor:
        """A diagonal matrix over the entries of all variables, one after the other."""
        averages = self.averages()
        return tf.linalg.diag(tf.concat([averages[key] for key in self._keys], axis=0))

    def _divided(self, gradient: Any, divisor: tf.Tensor) -> Any:
        """The gradient over a vector of divisors; rows stay rows."""
        divisor = tf.reshape(divisor, gradient.shape)
        if isinstance(gradient, tf.IndexedSlices):
            divisor = tf.gather(divisor, gradient.indices)
        values = tf.cast(indexed_slices.values_of(gradient), self.dtype) / divisor
        return indexed_slices.with_values(gradient, values)

    def _flat(self, gradient: Any) -> tf.Tensor:
        return tf.cast(tf.reshape(tf.convert_to_tensor(gradient), [-1]), self.dtype)
