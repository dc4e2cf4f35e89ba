"""Whose turn it is: updates of factors and of inverses, spread over the steps.

Work that is done "every k updates" is done once in each round of a clock. A round is k updates
long, but shorter early in training, when the curvature changes fastest: at update t it is
``min(k, 1 + t / 5)`` long. Work that costs much sets a least length; still, before update t a round
is no longer than 1 + t, for the averages may have become others by then. Each block has its turn at
its own phase of the round, so that no step does the work of all.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

WARM_UP = 5.0
"""Updates after which a round has grown by one update (measured, see docs/step-cost.md)."""


def is_due(
    updates: tf.Tensor,
    every: tf.Tensor,
    phase: float | tf.Tensor = 0.0,
    shortest: tf.Tensor | None = None,
) -> tf.Tensor:
    """Whether it is the turn of `phase` at this update.

    Args:
        updates: Integer scalar, the number of updates made so far. At 0 every phase is due.
        every: Integer scalar, the length of a round once it has grown.
        phase: In [0, 1), where in the round; or a vector of phases.
        shortest: The least length of a round, where that is less than `every`; None for 1.

    Returns:
        A boolean for each phase.
    """
    behind = _ROUNDING - tf.cast(phase, tf.float64)
    now, before = tf.unstack(rounds(tf.stack([updates, updates - 1]), every, shortest))
    is_new = tf.floor(now + behind) > tf.floor(before + behind)
    return (tf.cast(updates, tf.int64) == 0) | is_new


def rounds(updates: tf.Tensor, every: tf.Tensor, shortest: tf.Tensor | None = None) -> tf.Tensor:
    """The rounds that the clock has made: ∫ dt over the length of a round at t.

    That is ``1 + t`` up to `shortest`, then `shortest` up to ``1 + t / WARM_UP``, then that, up to
    `every`.
    """
    updates, every = tf.cast(updates, tf.float64), tf.cast(every, tf.float64)
    grown = WARM_UP * (every - 1.0)
    after = tf.maximum(updates - grown, 0.0) / every
    if shortest is None:
        growing = tf.math.log1p(tf.clip_by_value(updates, 0.0, grown) / WARM_UP)
        return WARM_UP * growing + after
    shortest = tf.clip_by_value(tf.cast(shortest, tf.float64), 1.0, every)
    reached, begins = shortest - 1.0, WARM_UP * (shortest - 1.0)
    before = tf.math.log1p(tf.clip_by_value(updates, 0.0, reached))
    level = (tf.clip_by_value(updates, reached, begins) - reached) / shortest
    growing = tf.math.log1p(tf.clip_by_value(updates, begins, grown) / WARM_UP)
    return before + level + WARM_UP * (growing - tf.math.log(shortest)) + after


def phase_of_multiples(every: tf.Tensor) -> tf.Tensor:
    """The phase whose turns, once rounds have grown, are the multiples of `every`.

    Args:
        every: Integer scalar, as for `is_due`.
    """
    every = tf.cast(every, tf.float64)
    made = WARM_UP * (tf.math.log(every) - (every - 1.0) / every)  # at 0, had they been long always
    return made - tf.floor(made)


def stagger(costs: Sequence[float]) -> list[float]:
    """Phases that spread blocks of the given refresh costs evenly over a round.

    A block's phase is the share of the whole cost that comes before it, so that steps of equal
    length in a round do work of about equal cost.
    """
    total = sum(costs) or 1.0
    phases, spent = [], 0.0
    for cost in costs:
        phases.append(spent / total)
        spent += cost
    return phases


def take_turns(costs: Sequence[float]) -> list[tuple[float, list[int]]]:
    """Puts blocks whose turns are close together into one group.

    Args:
        costs: The refresh cost of each block.

    Returns:
        At most `GROUPS` pairs of a phase and the positions of the blocks that have their turn then:
        a graph has a branch for each group, and branches are slow to build.
    """
    groups: dict[int, tuple[float, list[int]]] = {}
    for position, phase in enumerate(stagger(costs)):
        groups.setdefault(int(phase * GROUPS), (phase, []))[1].append(position)
    return list(groups.values())


GROUPS = 20
"""Turns in a round, at most."""

_ROUNDING = 1e-9
"""Keeps whole rounds whole."""
