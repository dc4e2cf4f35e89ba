"""A rank that is late, or hangs, ends the run, and is named."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any, NamedTuple

import keras

from tfkfac.callbacks.optimizer_of import kfac_of
from tfkfac.distribution.heartbeat import Heartbeat


class Position(NamedTuple):
    """How far a rank is.

    Attributes:
        batches: That it has finished.
        within: Whether it is in a batch (1), or between two (0).
        beat: Counts the times that it told so: a process that stands still tells nothing.
    """

    batches: int
    within: int
    beat: int


class StopIfLate(keras.callbacks.Callback):
    """Ends all ranks of Horovod when one has kept the others waiting for too long.

    A rank that waits in an exchange waits for ever. So every rank tells how far it is, beside the
    exchanges, over the store of ``horovodrun --gloo``; one that waits for longer than `seconds`
    looks who is behind, says so, and ends, whereupon ``horovodrun`` ends the rest. `fit` has one of
    30 minutes by itself; another one that is given takes its place.

    Example:

    ```python
    model.fit(data, callbacks=[tfkfac.callbacks.StopIfLate(seconds=120)])
    ```

    Args:
        seconds: How long a batch may take, with all that happens between it and the one before (a
            validation, the writing of a file).

    Raises:
        ValueError: `seconds` is not positive.
    """

    def __init__(self, seconds: float = 1800.0) -> None:
        super().__init__()
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or seconds <= 0:
            raise ValueError(f"Argument `seconds` must be a number > 0, got {seconds!r}.")
        self.seconds = float(seconds)
        self._position = Position(0, 0, 0)
        self._moved = time.monotonic()
        self._ended = threading.Event()

    def on_train_begin(self, logs: Any = None) -> None:
        """Begins to watch, if there are ranks that can be watched."""
        del logs
        workers = kfac_of(self.model, type(self).__name__).workers
        heartbeat = Heartbeat(workers.here(), workers.number)
        self._ended.clear()
        self._moved = time.monotonic()
        if workers.number > 1 and heartbeat.is_possible:
            threading.Thread(target=self._watch, args=(heartbeat,), daemon=True).start()

    def on_train_end(self, logs: Any = None) -> None:
        """No longer watches."""
        del logs
        self._ended.set()

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Notes it."""
        del batch, logs
        self._move(self._position._replace(within=1))

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Notes it."""
        del batch, logs
        self._move(self._position._replace(batches=self._position.batches + 1, within=0))

    def _move(self, position: Position) -> None:
        self._position, self._moved = position, time.monotonic()

    def _watch(self, heartbeat: Heartbeat) -> None:
        """Tells where this rank is; ends it if another has not moved for too long."""
        beat, seen = 0, heartbeat.of_all()
        seen_at = time.monotonic()
        while not self._ended.wait(min(10.0, self.seconds / 4.0)):
            beat += 1
            heartbeat.tell(self._position._replace(beat=beat))
            waited = time.monotonic() - self._moved
            if waited <= self.seconds or not self._position.within:
                seen, seen_at = heartbeat.of_all(), time.monotonic()
            elif time.monotonic() - seen_at > self.seconds / 2.0:
                self._end(late_ranks(seen, heartbeat.of_all()), waited)

    def _end(self, late: list[int], waited: float) -> None:
        who = f"rank(s) {', '.join(map(str, late))}" if late else "an exchange of all ranks"
        print(
            f"tfkfac: batch {self._position.batches + 1} has waited for {who} for {waited:.0f} s, "
            f"longer than StopIfLate(seconds={self.seconds:g}) allows. This rank ends.",
            file=sys.stderr,
            flush=True,
        )
        os._exit(EXIT_STATUS)


EXIT_STATUS = 75
"""Of a process that has waited for too long (EX_TEMPFAIL: another attempt may succeed)."""


def late_ranks(before: list[Position | None], now: list[Position | None]) -> list[int]:
    """Who the others wait for.

    Args:
        before: What every rank has told some time ago.
        now: What they have told last.

    Returns:
        Ranks that tell nothing any more; if all do, those that are behind the first.
    """
    silent = [rank for rank, told in enumerate(now) if told is None or told == before[rank]]
    if silent:
        return silent
    places = [told[:2] for told in now if told is not None]
    return [rank for rank, place in enumerate(places) if place < max(places)]
