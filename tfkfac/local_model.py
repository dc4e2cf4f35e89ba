"""The loss around the present weights, as one batch shows it: slopes and exact curvature."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfkfac import indexed_slices
from tfkfac.gauss_newton import OutputCurvature
from tfkfac.observation import Observation
from tfkfac.predictive import Noise
from tfkfac.quadratic_model import QuadraticModel
from tfkfac.record import Record
from tfkfac.regularisers import l2_curvature
from tfkfac.tangents import push_forward
from tfkfac.units import share_of_mean


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """What a step knows of its batch.

    Attributes:
        record: What the forward pass left behind.
        observations: The losses and what they predict.
        noise: For draws.
        variables: The variables that have a gradient.
        gradients: g of the mean loss on this batch, before anything clips it.
    """

    record: Record
    observations: Sequence[Observation]
    noise: Noise
    variables: Sequence[Any]
    gradients: Sequence[Any]


class LocalModel:
    """``q(δ) = gᵀδ + ½ δᵀ(F + H)δ``, H the Hessian of L2 regularisers (mathematics.md §5).

    Args:
        batch: The batch.
        dtype: Of results.
    """

    def __init__(self, batch: Batch, dtype: tf.DType) -> None:
        self._batch = batch
        self.dtype = dtype

    def plane(self, directions: Sequence[Any], steps: Sequence[Any]) -> QuadraticModel:
        """q on the plane of p (`directions`) and d (`steps`), without damping."""
        p, d = self._push_forward(directions, steps)
        curvature = self._output_curvature()
        return QuadraticModel(
            self.dot(self._batch.gradients, directions),
            self.dot(self._batch.gradients, steps),
            curvature.form(p, p) + self._of_regularisers(directions, directions),
            curvature.form(p, d) + self._of_regularisers(directions, steps),
            curvature.form(d, d) + self._of_regularisers(steps, steps),
        )

    def change_along(self, step: Sequence[Any]) -> tf.Tensor:
        """q(δ)."""
        (tangents,) = self._push_forward(step)
        curvature = self._output_curvature().form(tangents, tangents)
        curvature += self._of_regularisers(step, step)
        return self.dot(self._batch.gradients, step) + 0.5 * curvature

    def dot(self, left: Sequence[Any], right: Sequence[Any]) -> tf.Tensor:
        """``uᵀv`` over all variables."""
        return tf.add_n(
            [
                tf.cast(indexed_slices.dot(u, v), self.dtype)
                for u, v in zip(left, right, strict=True)
            ]
        )

    def _push_forward(self, *directions: Sequence[Any]) -> list[list[tf.Tensor]]:
        targets = [observation.predictive.target for observation in self._batch.observations]
        return push_forward(self._batch.record.tape, targets, self._batch.variables, directions)

    def _output_curvature(self) -> OutputCurvature:
        return OutputCurvature(self._batch.observations, self._batch.noise, self.dtype)

    def _of_regularisers(self, left: Sequence[Any], right: Sequence[Any]) -> tf.Tensor:
        """``uᵀHv``."""
        curvature = l2_curvature(self._batch.variables, left, right, self.dtype)
        return share_of_mean(curvature, self._batch.observations[0])
