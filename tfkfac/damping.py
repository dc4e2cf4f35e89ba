"""Damping that adapts: the rule of Levenberg and Marquardt (mathematics.md §6)."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import tensorflow as tf

from tfkfac.hyperparameters import Range


@keras.saving.register_keras_serializable(package="tfkfac")
@dataclasses.dataclass(frozen=True, kw_only=True)
class LevenbergMarquardt:
    """How λ follows the ratio ρ of the true to the foreseen change of the loss.

    Every `every` updates the loss is evaluated once more, after the step: ``ρ > ¾`` makes λ smaller
    by ``decay**every``, ``ρ < ¼`` larger by the same. Before that a λ that serves is sought: until
    `SETTLED` steps in a row lower the loss with ``ρ ≥ ¼``, every step is evaluated, and one that
    does not is taken back, the momentum with it, and λ made `RAISE` times as large. So is, at any
    time, a step that is seen to double the loss.

    Example:

    ```python
    optimizer = tfkfac.KFAC(damping=tfkfac.LevenbergMarquardt(initial=10.0, every=5))
    ```

    Args:
        initial: λ₀. In units of the mean eigenvalue of F on the first batch, tr F / dim F, if
            `relative`, else as it is.
        decay: By which λ shrinks for every update, in (0, 1).
        every: Updates from one evaluation to the next.
        minimum: The least λ, in the units of `initial`; a tenth of it by default. The steps are
            chosen to do what is foreseen, so that ρ alone would let λ fall below the noise of the
            factors of small batches.
        maximum: The greatest λ, likewise.
        relative: Whether λ₀ and its bounds are multiples of the mean eigenvalue, and every block is
            damped in proportion to its own: one whose eigenvalues are ten times those of the first
            batch's F, by 10·λ. The blocks of a network differ by orders of magnitude, so that one λ
            for all would leave some without damping and hold others back.
        recurrent_minimum: What a recurrent block's mean eigenvalue counts for at least, where λ is
            `relative`; in units of tr F / n on the first batch, n the number of its loss values.
            0 damps these blocks like all others.

    Raises:
        ValueError: An argument is not allowed.
    """

    initial: float = 0.1
    decay: float = 0.95
    every: int = 20
    minimum: float | None = None
    maximum: float = 1e12
    relative: bool = True
    recurrent_minimum: float = 1.0

    def __post_init__(self) -> None:
        """Checks."""
        positive = Range(0.0, open_below=True, schedulable=False)
        for name in ("initial", "minimum", "maximum"):
            if getattr(self, name) is not None or name != "minimum":
                positive.check(name, getattr(self, name))
        Range(0.0, 1.0, open_below=True, open_above=True, schedulable=False).check(
            "decay", self.decay
        )
        Range(1, integer=True).check("every", self.every)
        Range(0.0, schedulable=False).check("recurrent_minimum", self.recurrent_minimum)
        if not isinstance(self.relative, bool):
            raise ValueError(f"Argument `relative` must be True or False, got {self.relative!r}.")
        if not self.least <= self.initial <= self.maximum:
            raise ValueError(
                "Arguments `minimum` <= `initial` <= `maximum` must be in this order, got "
                f"minimum={self.minimum}, initial={self.initial}, maximum={self.maximum}."
            )

    @property
    def least(self) -> float:
        """The least λ, in the units of `initial`."""
        return self.initial / 10.0 if self.minimum is None else self.minimum

    def adapted(
        self, damping: tf.Tensor, ratio: tf.Tensor, change: tf.Tensor, foreseen: tf.Tensor
    ) -> tf.Tensor:
        """λ after one evaluation, not yet within its bounds.

        Args:
            damping: λ.
            ratio: ρ; one that is not finite counts as less than ¼.
            change: h(θ + δ) − h(θ).
            foreseen: ``gᵀδ + ½ δᵀFδ``.
        """
        factor = tf.constant(self.decay**self.every, damping.dtype)
        finite = tf.math.is_finite(ratio)
        better_than_foreseen = (change < 0.0) & (foreseen >= 0.0)
        smaller = (finite & (ratio > 0.75)) | better_than_foreseen
        larger = ~smaller & (~finite | (ratio < 0.25))
        return damping * tf.where(smaller, factor, tf.where(larger, 1.0 / factor, 1.0))

    def bounded(self, damping: tf.Tensor, unit: tf.Tensor) -> tf.Tensor:
        """λ within its bounds.

        Args:
            damping: λ.
            unit: The mean eigenvalue of F on the first batch (not used unless `relative`).
        """
        unit = tf.cast(unit, damping.dtype) if self.relative else tf.ones_like(damping)
        return tf.clip_by_value(damping, self.least * unit, self.maximum * unit)

    def first(self, unit: tf.Tensor) -> tf.Tensor:
        """λ₀.

        Args:
            unit: As for `bounded`.
        """
        return self.initial * (unit if self.relative else tf.ones_like(unit))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> LevenbergMarquardt:
        """The reverse of `get_config`."""
        return cls(**config)


SETTLED = 5
"""Steps in a row that have to succeed before λ counts as found."""

RAISE = 5.0
"""By which λ grows after a step that was taken back."""

SERVES = 0.25
"""The least ρ of a step that is kept while a λ is sought."""


def in_units_of(unit: tf.Tensor, mean_eigenvalue: tf.Tensor) -> tf.Tensor:
    """The mean eigenvalue of a block over the one that λ is reported in; 1 if either is 0.

    Args:
        unit: The mean eigenvalue of F on the first batch.
        mean_eigenvalue: Of the block, as it stands.
    """
    share = tf.cast(mean_eigenvalue, unit.dtype) / unit
    return tf.where(tf.math.is_finite(share) & (share > 0.0), share, tf.ones_like(share))


def ratio_of(change: tf.Tensor, foreseen: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
    """ρ, the true over the foreseen change of the loss.

    Changes that drown in the rounding of the loss say nothing; they count as ½, which moves
    nothing.

    Args:
        change: h(θ + δ) − h(θ).
        foreseen: ``gᵀδ + ½ δᵀFδ``.
        value: h(θ).
    """
    epsilon = 1e-6 if value.dtype == tf.float32 else 1e-13
    drowned = tf.maximum(tf.abs(change), tf.abs(foreseen)) <= epsilon * tf.abs(value)
    return tf.where(drowned, tf.constant(0.5, change.dtype), change / foreseen)


def bursts(change: tf.Tensor, foreseen: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
    """Whether a step has more than doubled the loss: no such step is ever kept.

    Where a batch has next to no curvature of its own (all its examples are as good as certain), α
    and λ say nothing about the loss a little further on.

    Args:
        change: h(θ + δ) − h(θ); what is not finite is a burst.
        foreseen: ``gᵀδ + ½ δᵀFδ``. As far as it is a fall it has to be made good too, for a loss
            that may be negative can be 0 by chance.
        value: h(θ).
    """
    return ~(change <= tf.abs(value) + tf.nn.relu(-foreseen))
