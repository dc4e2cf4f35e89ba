"""Blocks of steps, one worker after the other: what disturbs the machine disturbs all of them."""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
import time
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
        minutes: Of the whole alternation; no round begins later.

    Raises:
        ValueError: One of them is not positive.
    """

    rounds: int = 10
    steps: int = 20
    limit: float = 120.0
    minutes: float = 60.0

    def __post_init__(self) -> None:
        """Checks."""
        for name, value in dataclasses.asdict(self).items():
            if not 0 < value < math.inf:
                raise ValueError(f"Argument `{name}` must be positive, got {value!r}.")


@dataclasses.dataclass(frozen=True)
class Ends:
    """Where the workers can be compared.

    Attributes:
        updates: Of those that took part in all rounds that were made.
        seconds: In steps, that all had which did not fail.
    """

    updates: int
    seconds: float


@dataclasses.dataclass
class Trace:
    """What a worker did.

    Attributes:
        losses: Of every update.
        seconds: Of every update; the first one traces and compiles.
        compiled: Of every update, whether something was compiled in it, as in the first.
        rounds: Round → how many updates were made before it and after it.
        megabytes: Peak memory of its process after the rounds.
        before: Memory of the framework and the data, before there was a network.
        error: Why it stopped, a line; None if it did not.
    """

    losses: list[float] = dataclasses.field(default_factory=list)
    seconds: list[float] = dataclasses.field(default_factory=list)
    compiled: list[bool] = dataclasses.field(default_factory=list)
    rounds: dict[int, tuple[int, int]] = dataclasses.field(default_factory=dict)
    megabytes: float = 0.0
    before: float = 0.0
    error: str | None = None

    @property
    def steps(self) -> list[float]:
        """Seconds of every update without compilation.

        Those in which something was compiled are given the median of the others.
        """
        pairs = list(zip(self.seconds, self.compiled, strict=True))
        others = [seconds for seconds, compiled in pairs if not compiled]
        median = statistics.median(others) if others else 0.0
        return [median if compiled else seconds for seconds, compiled in pairs]

    @property
    def compilation(self) -> float:
        """Seconds of compilation in other updates than the first."""
        return sum(self.seconds[1:]) - sum(self.steps[1:])

    @property
    def clock(self) -> list[float]:
        """Seconds until the end of every update, without compilation."""
        return list(itertools.accumulate(self.steps))

    @property
    def spent(self) -> float:
        """Seconds in updates, without compilation."""
        return sum(self.steps)

    @property
    def blocks(self) -> dict[int, float]:
        """Round → mean seconds of its updates, without compilation."""
        steps = self.steps
        return {
            number: statistics.mean(steps[before:after])
            for number, (before, after) in self.rounds.items()
        }


def alternate(
    workers: Mapping[str, Asked],
    plan: Plan,
    timekeepers: Sequence[str] = (),
    advance: Callable[[str], None] = lambda name: None,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[dict[str, Trace], Ends]:
    """The first update of every worker, the rounds, and more updates of those that had less time.

    Every other round goes backwards, so that nobody always follows the same one.

    Args:
        workers: Name → built worker.
        plan: How long it takes.
        timekeepers: Those of whose time all others get as much, the slowest of them; all, if none
            is there.
        advance: Is told, with a name, of every block of the rounds.
        clock: Seconds, for the minutes of the plan.

    Returns:
        What they did, and where that can be compared.
    """
    turns = {name: _Turns(worker) for name, worker in workers.items()}
    end = clock() + 60 * plan.minutes
    for each in turns.values():
        each.block(1, plan.limit)
    made = 0
    while made < plan.rounds and clock() < end:
        for name in reversed(turns) if made % 2 else turns:
            turns[name].round(made, plan)
            advance(name)
        made += 1
    for each in turns.values():
        each.note_memory()
    sound = {name: each.trace for name, each in turns.items() if each.trace.error is None}
    keepers = set(sound) & set(timekeepers) or set(sound)
    until = max((sound[name].spent for name in keepers), default=0.0)
    while clock() < end and (late := [each for each in turns.values() if each.goes_on(until)]):
        for each in late:
            each.block(plan.steps, until - each.trace.spent)
    until = min([until, *(trace.spent for trace in sound.values())])
    return {n: each.trace for n, each in turns.items()}, Ends(1 + made * plan.steps, until)


class _Turns:
    """The turns of one worker.

    Args:
        worker: That makes the updates.

    Attributes:
        trace: What it did.
    """

    def __init__(self, worker: Asked) -> None:
        self._worker = worker
        self.trace = Trace()

    def goes_on(self, until: float) -> bool:
        """Whether it can make updates and has had less time."""
        return self.trace.error is None and self.trace.spent < until

    def round(self, number: int, plan: Plan) -> None:
        """Makes the block of a round, if it has time left."""
        trace, before = self.trace, len(self.trace.seconds)
        self.block(plan.steps, min(plan.limit / 10, plan.limit - trace.spent))
        if len(trace.seconds) > before:
            trace.rounds[number] = (before, len(trace.seconds))

    def block(self, count: int, seconds: float) -> None:
        """Makes updates.

        Args:
            count: So many.
            seconds: Begins none after so long, without compilation.
        """
        trace = self.trace
        end, until = len(trace.seconds) + count, trace.spent + seconds
        while len(trace.seconds) < end and self.goes_on(until):
            told = self._ask(do="steps", count=end - len(trace.seconds), seconds=seconds)
            trace.losses += told.get("losses", [])
            trace.seconds += told.get("seconds", [])
            trace.compiled += told.get("compiled", [])

    def note_memory(self) -> None:
        """Asks for the peak, and what of it the training did not take."""
        if self.trace.error is None:
            told = self._ask(do="memory")
            self.trace.megabytes = told.get("megabytes", 0.0)
            self.trace.before = told.get("before", 0.0)

    def _ask(self, **request: Any) -> dict[str, Any]:
        try:
            return self._worker.ask(**request)
        except WorkerError as error:
            self.trace.error = str(error)
            return {}
