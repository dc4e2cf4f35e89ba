"""Where perfect scaling ends: twice the batch, half the updates, and no longer.

The updates to a target loss, times the batch size, are the examples that it takes. As long as they
are the same whatever the batch size, examples may as well be seen side by side as one after the
other; where they grow, larger batches are wasted (Shallue et al. 2018).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

TOLERANCE = 0.2
"""By which the examples may be more or less than their constant."""


@dataclasses.dataclass(frozen=True)
class PerfectScaling:
    """The batch sizes that take about the same number of examples.

    Attributes:
        first: The least of them.
        last: The greatest of them that was tried.
        end: Where the examples leave the tolerance, between `last` and the next size that was
            tried; `last` itself where there is no larger one.
        open: Whether there is no larger one: the range may go on.
        examples: The constant.
    """

    first: int
    last: int
    end: float
    open: bool
    examples: float

    @property
    def is_one(self) -> bool:
        """Whether it is one size alone: there is no perfect scaling from it to the next."""
        return self.first == self.last and not self.open

    @property
    def factor(self) -> float:
        """By how much the batch can grow."""
        return self.end / self.first


def perfect_scaling(
    sizes: Sequence[int], updates: Sequence[float], tolerance: float = TOLERANCE
) -> PerfectScaling | None:
    """Fits ``updates · size = constant``, within a tolerance, to as wide a range as there is.

    Of ranges as wide as each other, the one with the larger batches. Where no two neighbours are
    alike, it is the least size alone: then perfect scaling ends at `end` or before.

    Args:
        sizes: Of batches, ascending.
        updates: To the target, one a size; infinite where it was not reached.
        tolerance: Relative, of the examples.

    Returns:
        None if the target was never reached.

    Raises:
        ValueError: The sizes do not ascend, or there are more or fewer updates.
    """
    if len(sizes) != len(updates) or any(a >= b for a, b in itertools.pairwise(sizes)):
        raise ValueError(
            f"Argument `sizes` must ascend and have one entry in `updates` each, got {sizes!r} and "
            f"{updates!r}; sort both."
        )
    examples = [size * count for size, count in zip(sizes, updates, strict=True)]
    found = []
    for first in range(len(sizes)):
        last = _last_alike(examples, first, tolerance)
        if last is not None:
            found.append(_range_of(sizes, examples, first, last, tolerance))
    several = [each for each in found if each.last > each.first]
    return max(several or found[:1], key=lambda each: (each.factor, each.end), default=None)


def _range_of(
    sizes: Sequence[int], examples: Sequence[float], first: int, last: int, tolerance: float
) -> PerfectScaling:
    """The range from one of the sizes to another."""
    inside = examples[first : last + 1]
    constant = (min(inside) + max(inside)) / 2
    end = float(sizes[last])
    if last + 1 < len(sizes):
        end = _crossing(sizes, examples, last, constant * (1 + tolerance))
    return PerfectScaling(sizes[first], sizes[last], end, last + 1 == len(sizes), constant)


def _last_alike(examples: Sequence[float], first: int, tolerance: float) -> int | None:
    """The last of the neighbours that are within the tolerance of a constant together."""
    least, most, last = math.inf, 0.0, None
    for position in range(first, len(examples)):
        least, most = min(least, examples[position]), max(most, examples[position])
        if not most * (1 - tolerance) <= least * (1 + tolerance) < math.inf:
            break
        last = position
    return last


def _crossing(sizes: Sequence[int], examples: Sequence[float], last: int, limit: float) -> float:
    """Between two sizes, where the examples reach a limit if they follow a power law.

    If the next size takes fewer examples, or never arrives, the range ends with the last one.
    """
    here, there = examples[last], examples[last + 1]
    if math.isinf(there) or there <= limit or here >= limit:
        return float(sizes[last])
    share = math.log(limit / here) / math.log(there / here)
    return float(sizes[last] * (sizes[last + 1] / sizes[last]) ** share)
