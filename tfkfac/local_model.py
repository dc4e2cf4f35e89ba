"""The loss around the present weights, as one batch shows it: slopes and exact curvature."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfkfac import indexed_slices
from tfkfac.distribution.workers import Workers
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
    """What a worker knows of its part of a batch.

    Attributes:
        record: What the forward pass left behind.
        observations: The losses and what they predict.
        noise: For draws.
    """

    record: Record
    observations: Sequence[Observation]
    noise: Noise


@dataclasses.dataclass(frozen=True, eq=False)
class LocalModel:
    """``q(δ) = gᵀδ + ½ δᵀ(F + H)δ``, H the Hessian of L2 regularisers (mathematics.md §5).

    Directions, like gradients, are the same for all workers.

    Attributes:
        workers: Whose batch it is.
        batch: What each of them has of it.
        variables: The variables that have a gradient.
        gradients: g of the mean loss on the whole batch, before anything clips it.
        dtype: Of results.
    """

    workers: Workers
    batch: Any
    variables: Sequence[Any]
    gradients: Sequence[Any]
    dtype: tf.DType

    def plane(self, directions: Sequence[Any], steps: Sequence[Any]) -> QuadraticModel:
        """q on the plane of p (`directions`) and d (`steps`), without damping."""
        slopes = self.dot(self.gradients, directions), self.dot(self.gradients, steps)
        return QuadraticModel(*slopes, *self._curvature(directions, steps))

    def change_along(self, step: Sequence[Any]) -> tf.Tensor:
        """q(δ)."""
        (curvature,) = self._curvature(step)
        return self.dot(self.gradients, step) + 0.5 * curvature

    def dot(self, left: Sequence[Any], right: Sequence[Any]) -> tf.Tensor:
        """``uᵀv`` over all variables."""
        return self.workers.first(self.workers.each(self._dot, left, right))

    def _dot(self, left: Sequence[Any], right: Sequence[Any]) -> tf.Tensor:
        return tf.add_n(
            [
                tf.cast(indexed_slices.dot(u, v), self.dtype)
                for u, v in zip(left, right, strict=True)
            ]
        )

    def _curvature(self, *directions: Sequence[Any]) -> list[tf.Tensor]:
        """``uᵀ(F + H)v`` of all pairs of directions (u, v), u not behind v."""
        own = self.workers.each(self._of_losses, self.batch, *directions)
        of_losses = self.workers.first(self.workers.sum(own))
        of_regularisers = self.workers.each(self._of_regularisers, self.batch, *directions)
        return [
            loss + regulariser
            for loss, regulariser in zip(
                of_losses, self.workers.first(of_regularisers), strict=True
            )
        ]

    def _of_losses(self, batch: Batch, *directions: Sequence[Any]) -> list[tf.Tensor]:
        """``uᵀFv``, as far as the worker's part of the batch adds to it."""
        targets = [observation.predictive.target for observation in batch.observations]
        tangents = push_forward(batch.record.tape, targets, self.variables, directions)
        curvature = OutputCurvature(batch.observations, batch.noise, self.dtype)
        return [curvature.form(u, v) for u, v in _pairs(tangents)]

    def _of_regularisers(self, batch: Batch, *directions: Sequence[Any]) -> list[tf.Tensor]:
        """``uᵀHv``."""
        return [
            share_of_mean(l2_curvature(self.variables, u, v, self.dtype), batch.observations[0])
            for u, v in _pairs(directions)
        ]


def _pairs(directions: Sequence[Any]) -> list[tuple[Any, Any]]:
    """Of each direction with itself and those behind it."""
    return [(u, v) for position, u in enumerate(directions) for v in directions[position:]]
