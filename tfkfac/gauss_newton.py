"""Products with the whole generalised Gauss-Newton matrix, never with its Kronecker factors.

``uᵀFv = (1/N) Σ_u N·c_u · (J u)ᵀ F_u (J v)``: F_u is the Fisher of a unit of the output at its
logits (mathematics.md §1), J v a tangent of the outputs (`tfkfac.tangents`).
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from tfkfac.given_distributions import WithoutClosedForm
from tfkfac.observation import Observation
from tfkfac.predictive import Noise

Tangents = Sequence[tf.Tensor]
"""A tangent for the target of each observation."""


class OutputCurvature:
    """The curvature of the losses at the outputs of one batch.

    Where a distribution's Fisher has no closed form, ``(1/N) Σ_n (s_nᵀ J_n u)(s_nᵀ J_n v)`` stands
    for it, s_n being the gradient of −log p of a target drawn from the model (without bias), or, of
    a loss without a distribution, of the data's label.

    Args:
        observations: The losses and what they predict.
        noise: For the draws.
        dtype: Of results.
    """

    def __init__(self, observations: Sequence[Observation], noise: Noise, dtype: tf.DType) -> None:
        self._observations = observations
        self._dtype = dtype
        self._scores = [_score(observation, noise) for observation in observations]

    def form(self, left: Tangents, right: Tangents) -> tf.Tensor:
        """``uᵀFv``, scalar, from the tangents of u and v; over all workers it is their sum."""
        whole = tf.cast(self._observations[0].whole, self._dtype)
        terms = [
            self._form_of_one(observation, score, of_left, of_right)
            for observation, score, of_left, of_right in zip(
                self._observations, self._scores, left, right, strict=True
            )
        ]
        return tf.add_n(terms) / whole

    def _form_of_one(
        self, observation: Observation, score: tf.Tensor | None, left: tf.Tensor, right: tf.Tensor
    ) -> tf.Tensor:
        if score is None:
            u, v = _at_logits(observation, left), _at_logits(observation, right)
            product = tf.cast(observation.predictive.fisher_product(v), self._dtype)
            return tf.reduce_sum(tf.cast(u, self._dtype) * product)
        along = [
            tf.reduce_sum(tf.cast(score * tangent, self._dtype), list(range(1, tangent.shape.rank)))
            for tangent in (left, right)
        ]
        return tf.reduce_sum(along[0] * along[1])


def pull_back(observation: Observation, tangent: tf.Tensor) -> tf.Tensor:
    """``c_u·F_u t`` as a gradient at the target, for a tangent t of the target.

    Args:
        observation: A loss of a known distribution.
        tangent: Of the shape of the target.
    """
    product = observation.predictive.fisher_product(_at_logits(observation, tangent))
    pulled = observation.inject(product)
    return pulled / tf.cast(observation.whole, pulled.dtype)


def _at_logits(observation: Observation, tangent: tf.Tensor) -> tf.Tensor:
    """√(N·c_u) times a tangent, at the logits, in full precision."""
    weights = observation.root_weights
    tangent = tf.cast(tangent, weights.dtype)
    predictive = observation.predictive
    if predictive.chain is not None:
        tangent = tf.cast(tangent, predictive.chain.dtype)
    tangent = predictive.to_logits(tangent)
    return tangent * tf.cast(weights, tangent.dtype)


def _score(observation: Observation, noise: Noise) -> tf.Tensor | None:
    """√(N·c_u)·∂(−log p)/∂target of a target or label; None where F_u has a closed form."""
    predictive = observation.predictive
    if not isinstance(predictive, WithoutClosedForm):
        return None
    return observation.inject(predictive.score(observation.labels, noise))
