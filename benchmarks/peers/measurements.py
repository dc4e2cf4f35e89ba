"""What was measured of a contender, as it goes into the file, and what follows from it."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.peers.alternation import Ends, Plan, Trace
from benchmarks.peers.contenders import CONTENDERS
from benchmarks.zoo.comparison import first_at
from benchmarks.zoo.curves import rounded, smoothed, thinned
from benchmarks.zoo.results import Run
from benchmarks.zoo.training import DIVERGED


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a measurement depends on.

    Attributes:
        problem: Its name.
        contender: Its name.
        seed: Of weights and batches.
        plan: How long it took.
    """

    problem: str
    contender: str
    seed: int
    plan: Plan

    def in_file(self) -> dict[str, Any]:
        """As in the file."""
        return dataclasses.asdict(self)


def measurement(
    setting: Setting,
    traces: Mapping[str, Trace],
    ends: Ends,
    smoothing: int,
    versions: Mapping[str, str],
) -> Run:
    """What goes into the file: JSON, with nothing that is not finite.

    Args:
        setting: Of this contender.
        traces: Of all contenders of the alternation.
        ends: Where they are compared.
        smoothing: Updates over whose losses the mean is taken.
        versions: Of what it ran with.

    Returns:
        `seconds` are those of the updates in rounds; `blocks`, `sgd` and `ours` are mean seconds of
        a step in those rounds, of the contender itself, of its framework's SGD and of ours.
    """
    trace, contender = traces[setting.contender], CONTENDERS[setting.contender]
    finite = list(itertools.takewhile(math.isfinite, trace.losses))
    kept = thinned(len(finite))
    means, clock = smoothed(finite, smoothing), trace.clock
    return setting.in_file() | {
        "versions": dict(versions),
        "error": trace.error,
        "diverged": _diverges(trace),
        "first_step": round(trace.seconds[0], 3) if trace.seconds else None,
        "compilation": round(trace.compilation, 3),
        "megabytes": round(trace.megabytes, 1),
        "megabytes_before": round(trace.before, 1),
        "updates": len(trace.losses),
        "ends": dataclasses.asdict(ends),
        "seconds": [round(second, 5) for second in trace.steps[1 : ends.updates]],
        "blocks": _side_by_side(trace, trace),
        "sgd": _side_by_side(trace, traces.get(contender.sgd)),
        "ours": _side_by_side(trace, traces.get(contender.against or "")),
        "curve": {
            "updates": [int(i) + 1 for i in kept],
            "losses": [rounded(means[i]) for i in kept],
            "seconds": [round(clock[i], 4) for i in kept],
        },
    }


def _diverges(trace: Trace) -> bool:
    """Whether a loss was not finite, or the last one far above the first, as in the zoo."""
    if not trace.losses:
        return False
    all_finite = all(map(math.isfinite, trace.losses))
    return not (all_finite and trace.losses[-1] <= DIVERGED * trace.losses[0])


def _side_by_side(trace: Trace, other: Trace | None) -> list[float | None]:
    """Mean seconds of a step of another one, in the rounds that a contender took part in.

    None of one that diverged: steps that are skipped cost nothing.
    """
    blocks = {} if other is None or _diverges(other) else other.blocks
    return [rounded(blocks[i]) if i in blocks else None for i in trace.blocks]


def unavailable(setting: Setting, reason: str) -> Run:
    """What goes into the file of a contender that never began."""
    return measurement(setting, {setting.contender: Trace(error=reason)}, Ends(0, 0.0), 1, {})


@dataclasses.dataclass(frozen=True)
class Spread:
    """Some numbers.

    Attributes:
        values: At least one.
    """

    values: Sequence[float]

    @property
    def median(self) -> float:
        """The middle."""
        return float(np.median(self.values))


def seconds_of_step(runs: Sequence[Run]) -> Spread | None:
    """Mean seconds of a step, round by round, in the rounds that count; None if there are none.

    These are the last half of the rounds: before, ours updates factors and inverses more often than
    it does later. A mean, since kfac-jax makes all inverses in one step of five.
    """
    counted = itertools.chain.from_iterable(r["blocks"][len(r["blocks"]) // 2 :] for r in runs)
    return _spread(seconds for seconds in counted if seconds is not None)


def to_sgd(runs: Sequence[Run]) -> Spread | None:
    """Its step over the SGD step of its framework, round by round."""
    return _spread(itertools.chain.from_iterable(_ratios(r["blocks"], r["sgd"]) for r in runs))


def ours_to_it(runs: Sequence[Run]) -> Spread | None:
    """Our step over its step, round by round."""
    return _spread(itertools.chain.from_iterable(_ratios(r["ours"], r["blocks"]) for r in runs))


def _ratios(above: Sequence[float | None], below: Sequence[float | None]) -> list[float]:
    """Of the rounds that count in which both took part."""
    counted = list(zip(above, below, strict=True))[len(above) // 2 :]
    return [a / b for a, b in counted if a is not None and b is not None]


def after_updates(run: Run) -> float | None:
    """The smoothed loss after the updates of all rounds; None if it made fewer, or diverged."""
    return _loss_at(run, "updates")


def after_seconds(run: Run) -> float | None:
    """The smoothed loss after the seconds that all had; None if it diverged before."""
    return _loss_at(run, "seconds")


def overtaken(runs: Sequence[Run], ours: Sequence[Run]) -> Spread | None:
    """Our seconds to the loss at which a peer ends over its own, seed by seed.

    Args:
        runs: Of the peer.
        ours: Of one of ours. Where it never is there, the ratio is infinite.
    """
    curves = {run["seed"]: run["curve"] for run in ours}
    ratios = []
    for run in runs:
        curve = run["curve"]
        if run["seed"] in curves and curve["losses"] and not run["diverged"]:
            _, seconds = first_at(curves[run["seed"]], curve["losses"][-1])
            ratios.append(seconds / curve["seconds"][-1])
    return _spread(ratios)


def _loss_at(run: Run, key: str) -> float | None:
    curve, end = run["curve"], run["ends"][key]
    if not curve[key] or curve[key][-1] < end - 1e-3:  # The file has rounded seconds.
        return None
    return float(np.interp(end, curve[key], curve["losses"]))


def _spread(values: Any) -> Spread | None:
    found = list(values)
    return Spread(found) if found else None
