"""Guards of the length of a step (mathematics.md §3)."""

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
