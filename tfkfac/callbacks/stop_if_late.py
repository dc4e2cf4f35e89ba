"""A worker that is late, or hangs, ends the run, and is named."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any, NamedTuple

import keras

from tfkfac.callbacks.optimizer_of import kfac_of
from tfkfac.distribution.heartbeat import Heartbeat, store_of_all


class Position(NamedTuple):
    """How far a worker is.

    Attributes:
        batches: That it has finished.
        within: Whether it is in a batch (1), or between two (0).
        epochs: That it has finished.
        beat: Counts the times that it told so: a process that stands still tells nothing.
    """

    batches: int
    within: int
    epochs: int
    beat: int


class StopIfLate(keras.callbacks.Callback):
    """Ends all processes of a run when one has kept the others waiting for too long.

    Who waits in an exchange waits for ever. So every rank of Horovod, or process of
    MultiWorkerMirroredStrategy, tells how far it is, beside the exchanges, over the store of
    ``horovodrun --gloo`` or TensorFlow's coordination service. One that waits for longer than
    `seconds` looks who is behind, says so, and ends, whereupon ``horovodrun`` ends the rest, or the
    exchanges of the rest fail. `fit` has one of 30 minutes by itself; another one that is given
    takes its place.

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
        self._position = Position(0, 0, 0, 0)
        self._moved = time.monotonic()
        self._ended = threading.Event()

    def on_train_begin(self, logs: Any = None) -> None:
        """Begins to watch, if there are others that can be watched."""
        del logs
        workers = kfac_of(self.model, type(self).__name__).workers
        store = store_of_all() if workers.processes > 1 else None
        self._ended.clear()
        self._moved = time.monotonic()
        if store is not None:
            heartbeat = Heartbeat(workers.process, workers.processes, store)
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

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Notes it."""
        del epoch, logs
        self._move(self._position._replace(within=0, epochs=self._position.epochs + 1))

    def _move(self, position: Position) -> None:
        self._position, self._moved = position, time.monotonic()

    def _watch(self, heartbeat: Heartbeat) -> None:
        """Tells where this one is; ends it if another has not moved for too long."""
        beat, seen = 0, heartbeat.of_all()
        seen_at = time.monotonic()
        while not self._ended.wait(min(10.0, self.seconds / 4.0)):
            beat += 1
            heartbeat.tell(self._position._replace(beat=beat))
            waited = time.monotonic() - self._moved
            without_data = out_of_data(self._position, heartbeat.of_all())
            if without_data:
                self._end(
                    f"tfkfac: worker(s) {', '.join(map(str, without_data))} ran out of data after "
                    f"{self._position.batches} batches, while others have more. Every worker takes "
                    "part in every step: give all the same number of batches (`.repeat()` and "
                    "steps_per_epoch=..., or `.take(n)`)."
                )
            if waited <= self.seconds or not self._position.within:
                seen, seen_at = heartbeat.of_all(), time.monotonic()
            elif time.monotonic() - seen_at > self.seconds / 2.0:
                late = ", ".join(map(str, late_workers(seen, heartbeat.of_all())))
                who = f"worker(s) {late}" if late else "an exchange of all workers"
                self._end(
                    f"tfkfac: batch {self._position.batches + 1} has waited for {who} for "
                    f"{waited:.0f} s, longer than StopIfLate(seconds={self.seconds:g}) allows."
                )

    def _end(self, why: str) -> None:
        print(f"{why} This worker ends.", file=sys.stderr, flush=True)
        os._exit(EXIT_STATUS)


EXIT_STATUS = 75
"""Of a process that has waited for too long (EX_TEMPFAIL: another attempt may succeed)."""


def late_workers(before: list[Position | None], now: list[Position | None]) -> list[int]:
    """Who the others wait for.

    Args:
        before: What every worker has told some time ago.
        now: What they have told last.

    Returns:
        Workers that tell nothing any more; if all do, those that are behind the first.
    """
    silent = [who for who, told in enumerate(now) if told is None or told == before[who]]
    if silent:
        return silent
    places = [told[:2] for told in now if told is not None]
    return [who for who, place in enumerate(places) if place < max(places)]


def out_of_data(own: Position, told: list[Position | None]) -> list[int]:
    """Who has ended an epoch in which this worker has begun a batch that they do not have.

    Args:
        own: Where this worker is.
        told: Where all say they are.
    """
    return [
        who
        for who, other in enumerate(told)
        if other is not None
        and own.within
        and other.epochs > own.epochs
        and other.batches <= own.batches
    ]
