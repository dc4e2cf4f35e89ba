"""The quadratic model of the loss along two directions: how far to go (mathematics.md §5).

``q(δ) = gᵀδ + ½ δᵀCδ`` on ``δ = μ·d − α·p``: p is the preconditioned gradient, d the step before.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf


class QuadraticModel(NamedTuple):
    """q on the plane of p and d; all attributes are scalars.

    Attributes:
        slope_p: gᵀp.
        slope_d: gᵀd.
        curvature_pp: pᵀCp.
        curvature_pd: pᵀCd.
        curvature_dd: dᵀCd.
    """

    slope_p: tf.Tensor
    slope_d: tf.Tensor
    curvature_pp: tf.Tensor
    curvature_pd: tf.Tensor
    curvature_dd: tf.Tensor

    def plus(self, pp: tf.Tensor, pd: tf.Tensor, dd: tf.Tensor) -> QuadraticModel:
        """The model with more curvature: that of damping, or of regularisers."""
        return self._replace(
            curvature_pp=self.curvature_pp + pp,
            curvature_pd=self.curvature_pd + pd,
            curvature_dd=self.curvature_dd + dd,
        )

    def change(self, learning_rate: tf.Tensor, momentum: tf.Tensor) -> tf.Tensor:
        """``q(μ·d − α·p)``: the foreseen change of the loss."""
        slope = momentum * self.slope_d - learning_rate * self.slope_p
        return slope + 0.5 * self.squared_length(learning_rate, momentum)

    def squared_length(self, learning_rate: tf.Tensor, momentum: tf.Tensor) -> tf.Tensor:
        """``δᵀCδ``."""
        return (
            momentum**2 * self.curvature_dd
            - 2.0 * momentum * learning_rate * self.curvature_pd
            + learning_rate**2 * self.curvature_pp
        )

    def learning_rate(self, momentum: tf.Tensor) -> tf.Tensor:
        """The α that minimises q for a given μ; the one of μ = 0 where it is not positive."""
        best = (self.slope_p + momentum * self.curvature_pd) / self.curvature_pp
        return tf.where(_is_step(best), best, self._without_momentum())

    def momentum(self, learning_rate: tf.Tensor) -> tf.Tensor:
        """The μ that minimises q for a given α; 0 where there is none."""
        best = (learning_rate * self.curvature_pd - self.slope_d) / self.curvature_dd
        usable = tf.math.is_finite(best) & tf.not_equal(self.slope_d, 0.0)
        return tf.where(usable, best, tf.zeros_like(best))

    def minimiser(self) -> tuple[tf.Tensor, tf.Tensor]:
        """The (α, μ) that minimise q (Martens & Grosse 2015, §7).

        μ is 0 where ``gᵀd = 0`` or the two directions are as good as parallel, and where α would
        not be positive.
        """
        pp, pd, dd = self.curvature_pp, self.curvature_pd, self.curvature_dd
        determinant = pp * dd - pd * pd
        rate = (dd * self.slope_p - pd * self.slope_d) / determinant
        momentum = (pd * self.slope_p - pp * self.slope_d) / determinant
        independent = determinant > _PARALLEL[pp.dtype] * pp * dd
        usable = independent & tf.not_equal(self.slope_d, 0.0)
        usable &= _is_step(rate) & tf.math.is_finite(momentum)
        alone = self._without_momentum()
        return tf.where(usable, rate, alone), tf.where(usable, momentum, tf.zeros_like(momentum))

    def _without_momentum(self) -> tf.Tensor:
        """``gᵀp / pᵀCp``; 0 where p is no direction of descent, or none at all."""
        alone = self.slope_p / self.curvature_pp
        return tf.where(_is_step(alone), alone, tf.zeros_like(alone))


def _is_step(learning_rate: tf.Tensor) -> tf.Tensor:
    return tf.math.is_finite(learning_rate) & (learning_rate > 0.0)


_PARALLEL = {tf.float32: 1e-6, tf.float64: 1e-14}
"""1 − cos² of the angle between two directions below which they count as one."""
