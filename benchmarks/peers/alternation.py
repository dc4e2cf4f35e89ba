"""Blocks of steps, one worker after the other: what disturbs the machine disturbs all of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from benchmarks.peers.conversation import WorkerError


class Asked(Protocol):
    """A worker, see `benchmarks.peers.conversation.Worker`."""

    def ask(self, **request: Any) -> dict[str, Any]: ...


@dataclasses.dataclass(frozen=True)
class Plan:
    """How long it takes.

    Attributes:
        rounds: Each has a block of every worker.
        steps: Of a block.
        limit: Seconds in steps after which a worker takes part in no more rounds. A block ends
            after a tenth of it, so that a very slow worker still has a few rounds.

    Raises:
        ValueError: One of them is not positive.
    """

    rounds: int = 20
    steps: int = 10
    limit: float = 120.0

    def __post_init__(self) -> None:
        """Checks."""
        for name, value in dataclasses.asdict(self).items():
            if not 0 < value < math.inf:
                raise ValueError(f"Argument `{name}` must be positive, got {value!r}.")

    @property
    def updates(self) -> int:
        """Of a worker that reaches no limit: the first, and those of the rounds."""
        return 1 + self.rounds * self.steps


@dataclasses.dataclass
class Trace:
    """What a worker did.

    Attributes:
        losses: Of every update.
        seconds: Of every update; the first one traces and compiles.
        blocks: Round → mean seconds of a step.
        megabytes: Peak memory of its process after the rounds.
        error: Why it stopped, a line; None if it did not.
    """

    losses: list[float] = dataclasses.field(default_factory=list)
    seconds: list[float] = dataclasses.field(default_factory=list)
    blocks: dict[int, float] = dataclasses.field(default_factory=dict)
    megabytes: float = 0.0
    error: str | None = None

    @property
    def clock(self) -> list[float]:
        """Seconds until the end of every update, where the first counts as long as the second."""
        total, times = 0.0, []
        for second in self.seconds[1:2] + self.seconds[1:]:
            total += second
            times.append(total)
        return times or [0.0] * len(self.seconds)

    @property
    def spent(self) -> float:
        """Seconds in steps without the first."""
        return sum(self.seconds[1:])


def alternate(
    workers: Mapping[str, Asked],
    plan: Plan,
    timekeepers: Sequence[str] = (),
    advance: Callable[[str], None] = lambda name: None,
) -> tuple[dict[str, Trace], float]:
    """The first update of every worker, the rounds, and more updates of those that had less time.

    Every other round goes backwards, so that nobody always follows the same one.

    Args:
        workers: Name → built worker.
        plan: How long it takes.
        timekeepers: Those of whose time all others get as much, the slowest of them; all, if none
            is there.
        advance: Is told, with a name, of every block of the rounds.

    Returns:
        What they did, and the seconds which all had that did not fail.
    """
    traces = {name: Trace() for name in workers}

    def block(name: str, count: int, seconds: float) -> list[float]:
        trace = traces[name]
        if trace.error is not None:
            return []
        try:
            told = workers[name].ask(do="steps", count=count, seconds=seconds)
        except WorkerError as error:
            trace.error = str(error)
            return []
        trace.losses += told["losses"]
        trace.seconds += told["seconds"]
        return told["seconds"]

    for name in workers:
        block(name, 1, plan.limit)
    for number in range(plan.rounds):
        for name in reversed(traces) if number % 2 else traces:
            left = plan.limit - traces[name].spent
            made = block(name, plan.steps, min(left, plan.limit / 10)) if left > 0 else []
            if made:
                traces[name].blocks[number] = sum(made) / len(made)
            advance(name)
    for name, trace in traces.items():
        _note_memory(workers[name], trace)
    return traces, _even_out(traces, plan, timekeepers, block)


def _note_memory(worker: Asked, trace: Trace) -> None:
    if trace.error is None:
        try:
            trace.megabytes = worker.ask(do="memory")["megabytes"]
        except WorkerError as error:
            trace.error = str(error)


def _even_out(
    traces: Mapping[str, Trace],
    plan: Plan,
    timekeepers: Sequence[str],
    block: Callable[[str, int, float], list[float]],
) -> float:
    """Updates until all have had the same time."""

    def had(name: str) -> float:
        return traces[name].clock[-1] if traces[name].clock else 0.0

    sound = [name for name, trace in traces.items() if trace.error is None]
    until = max(map(had, [name for name in sound if name in timekeepers] or sound), default=0.0)
    left = sound
    while left := [name for name in left if had(name) < until and traces[name].error is None]:
        for name in left:
            block(name, plan.steps, until - had(name))
    return until
