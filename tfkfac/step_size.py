"""Guards of the length of a step (mathematics.md §3, §5)."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfkfac.hyperparameters import AUTO, Range


def kl_clip_scale(clip: tf.Tensor, squared_length: tf.Tensor) -> tf.Tensor:
    """ν = min(1, √(c / ‖step‖²_F)): bounds the KL divergence of a step, to second order.

    Args:
        clip: c, scalar.
        squared_length: Of a step in the metric of the Fisher: ``α² gᵀF̂⁻¹g`` of ``α·p``, or
            ``δᵀFδ``.

    Returns:
        ν, scalar in (0, 1].
    """
    return tf.sqrt(clip / tf.maximum(squared_length, clip))


def greatest_rate(before: tf.Tensor) -> tf.Tensor:
    """What an α that is measured may be at most: 10, or twice the α before.

    An α above 1 means that the batch has less curvature than the averages, as comes to pass by and
    by where they lag behind. All at once it does in a batch that is as good as certain, and says
    nothing about the next.

    Args:
        before: The last α that was measured, scalar.
    """
    return tf.maximum(tf.constant(10.0, before.dtype), 2.0 * before)


def relaxation(learning_rate: tf.Tensor, momentum: tf.Tensor) -> tf.Tensor:
    """κ, by which an α that one batch told is shortened before it is used with a given μ.

    The steps of all batches add up to α/(1 − μ) along a direction. As far as a batch has curvature
    of its own, α leads to where the batch alone is fitted: a projection, as of Kaczmarz, and the
    more projections are prolonged, the farther from what fits all batches they settle. That share
    is seen in α = pᵀg / pᵀFp: of the averages, which are of many batches, one expects 1, and the
    more F has beyond them, the smaller it is. So κ goes from ``min(1, 1.75·(1 − μ))`` at α = 0 to 1
    at α ≥ 1.

    Args:
        learning_rate: α, the minimiser of the quadratic model on the batch, scalar.
        momentum: μ, scalar.

    Returns:
        κ, scalar in (0, 1].
    """
    least = tf.minimum(tf.ones_like(momentum), OVER_RELAXATION * (1.0 - momentum))
    return least + (1.0 - least) * tf.clip_by_value(learning_rate, 0.0, 1.0)


def rate_between(learning_rate: tf.Tensor, then: tf.Tensor, now: tf.Tensor) -> tf.Tensor:
    """The α of a step of which none is measured, from one of an earlier batch.

    It leaves the length of the step in the metric of F as it was, as far as pᵀg tells. Where the
    batches curve as the averages do (α = 1), pᵀFp is pᵀg: with the root of ``pᵀg then / pᵀg now`` a
    step that would be longer keeps the squared length α²·pᵀg; no other needs anything. Where α is
    small, a batch has curvature of its own: with residuals r and F = JᵀJ/N there,
    ``(pᵀg)² ≤ pᵀFp·‖r‖²/N`` (Cauchy-Schwarz). Residuals are much the same from batch to batch, so
    pᵀFp grows as the square of pᵀg: the α that fits the batch goes with 1/pᵀg, both ways.

    Args:
        learning_rate: α, as it was measured, scalar.
        then: pᵀg where it was measured, scalar.
        now: pᵀg, scalar.

    Returns:
        α times ``(then/now)^(1 − ½·min(1, α))``, where pᵀg has grown; else times
        ``min(2, then/now)^(1 − min(1, α))``; scalar.
    """
    ratio = tf.math.divide_no_nan(then, now)
    share = tf.clip_by_value(learning_rate, 0.0, 1.0)
    shorter = tf.minimum(ratio, 1.0) ** (1.0 - 0.5 * share)
    longer = tf.clip_by_value(ratio, 1.0, GREATEST_RAISE) ** (1.0 - share)
    return learning_rate * shorter * longer


def bound_of_step(kl_clip: Any, norm_constraint: Any) -> Any:
    """The one bound c of two names for it.

    Args:
        kl_clip: A number, a schedule, "auto" or None.
        norm_constraint: Likewise; None unless it is given instead.

    Raises:
        ValueError: Both were given.
    """
    if norm_constraint is None:
        return kl_clip
    if kl_clip not in (AUTO, None):
        raise ValueError(
            "Arguments `kl_clip` and `norm_constraint` are two names for one bound, got "
            f"kl_clip={kl_clip!r} and norm_constraint={norm_constraint!r}; give one of them."
        )
    if isinstance(norm_constraint, int | float):
        Range(0.0, open_below=True).check("norm_constraint", norm_constraint)
    return norm_constraint


AUTO_KL_CLIP = 0.01
"""c of ``kl_clip="auto"``, in nats for each unit of the output (measured, see docs/results)."""

OVER_RELAXATION = 1.75
"""The greatest sum of the steps along a direction, in units of the one that fits a batch.

Measured; the relaxed method of Kaczmarz, which has no momentum, converges below 2.
"""

GREATEST_RAISE = 2.0
"""By how much a step that is not measured may have a greater α than the measured one before it."""
