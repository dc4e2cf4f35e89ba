"""How long a training may take."""

from __future__ import annotations

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Budget:
    """What ends a training, whichever comes first.

    Attributes:
        updates: As many updates.
        seconds: As many seconds in training steps; None is no limit.
        until: A smoothed loss as low as this, where one is given.
        at_least: As many updates before `until` counts.

    Raises:
        ValueError: A limit is not positive.
    """

    updates: int
    seconds: float | None = None
    until: float | None = None
    at_least: int = 0

    def __post_init__(self) -> None:
        """Checks the limits."""
        if not (isinstance(self.updates, int) and self.updates >= 1):
            raise ValueError(
                f"Argument `updates` must be an integer of at least 1, got {self.updates!r}."
            )
        if self.seconds is not None and not (0 < self.seconds < math.inf):
            raise ValueError(
                f"Argument `seconds` must be a positive number, got {self.seconds!r}; use 30 for "
                "the results, 1 for a try."
            )

    def share(self, part: float) -> Budget:
        """A part of it, one update at least."""
        seconds = None if self.seconds is None else self.seconds * part
        updates = max(1, round(self.updates * part))
        return dataclasses.replace(self, updates=updates, seconds=seconds)

    def is_spent(self, updates: int, seconds: float, loss: float) -> bool:
        """Whether a training ends here.

        Args:
            updates: So far.
            seconds: So far, in training steps.
            loss: Smoothed.
        """
        reached = self.until is not None and loss <= self.until and updates >= self.at_least
        late = self.seconds is not None and seconds >= self.seconds
        return updates >= self.updates or late or reached
