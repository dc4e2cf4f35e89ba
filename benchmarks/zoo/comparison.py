"""Who is how fast: a loss that KFAC and the best first-order optimizer reach, and when they do."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.zoo.budget import Budget
from benchmarks.zoo.optimizers import NAMES
from benchmarks.zoo.results import Run
from benchmarks.zoo.tuning import SEEDS, loss_at_end


@dataclasses.dataclass(frozen=True)
class Standing:
    """An optimizer on a problem.

    Attributes:
        name: Of the optimizer.
        runs: With its best learning rate, one a seed.
        at_the_edge: Whether that rate is the lowest or the highest of those tried.
    """

    name: str
    runs: Sequence[Run]
    at_the_edge: bool = False

    @property
    def learning_rate(self) -> float | None:
        """The best; None for KFAC."""
        return self.runs[0]["learning_rate"]

    @property
    def ends(self) -> list[float]:
        """Smoothed losses at the end, infinite where training diverged."""
        return [loss_at_end(run) for run in self.runs]

    @property
    def evaluated(self) -> list[float]:
        """Losses on the evaluation subset, infinite where training diverged."""
        found = [run["evaluated"] for run in self.runs]
        return [math.inf if loss is None else loss for loss in found]

    @property
    def lowest(self) -> float:
        """The lowest smoothed loss, the median of the seeds."""
        return float(
            np.median([min(run["curve"]["losses"], default=math.inf) for run in self.runs])
        )

    def to(self, target: float) -> tuple[list[float], list[float]]:
        """Updates and seconds to a target, infinite where it is never reached."""
        updates, seconds = zip(*(first_at(run["curve"], target) for run in self.runs), strict=True)
        return list(updates), list(seconds)


@dataclasses.dataclass(frozen=True)
class Ratio:
    """KFAC against the first-order optimizer that is best in the same measure.

    Attributes:
        kfac: Median of KFAC.
        other: Median of the best first-order optimizer.
        name: Of that optimizer.
    """

    kfac: float
    other: float
    name: str

    @property
    def value(self) -> float:
        """KFAC's share; below 1 KFAC wins."""
        return self.kfac / self.other if np.isfinite(self.other) and self.other else math.nan

    @property
    def wins(self) -> bool:
        """Whether KFAC needs less."""
        return self.kfac < self.other


RESOLUTION = 1e-6
"""Losses below are rounding errors: in single precision the cross-entropy of an example is 0 or a
multiple of 1.2e-7."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All optimizers on a problem.

    Attributes:
        problem: Its name.
        standings: Optimizer → its runs.
    """

    problem: str
    standings: dict[str, Standing]

    @property
    def first_order(self) -> dict[str, Standing]:
        """All but KFAC."""
        return {name: each for name, each in self.standings.items() if name != "KFAC"}

    @property
    def target(self) -> float | None:
        """The lowest smoothed loss that KFAC and the best first-order optimizer both reach.

        None where one of them has no run. Not below `RESOLUTION`, where all have arrived.
        """
        if "KFAC" not in self.standings or not self.first_order:
            return None
        best = min(each.lowest for each in self.first_order.values())
        return max(self.standings["KFAC"].lowest, best, RESOLUTION)

    def updates(self) -> Ratio:
        """Updates to the target."""
        return self._ratio({n: each.to(self.target)[0] for n, each in self.standings.items()})

    def seconds(self) -> Ratio:
        """Seconds to the target."""
        return self._ratio({n: each.to(self.target)[1] for n, each in self.standings.items()})

    def ends(self) -> Ratio:
        """Smoothed losses at the end."""
        return self._ratio({name: each.ends for name, each in self.standings.items()})

    def _ratio(self, values: dict[str, list[float]]) -> Ratio:
        medians = {name: float(np.median(each)) for name, each in values.items()}
        kfac = medians.pop("KFAC")
        best = min(medians, key=medians.__getitem__)
        return Ratio(kfac, medians[best], best)


def first_at(curve: dict[str, list[Any]], target: float) -> tuple[float, float]:
    """Updates and seconds until a curve is at a target or below for the first time.

    Between two points of the curve that are more than an update apart, the loss is taken to fall
    evenly.

    Args:
        curve: Updates, smoothed losses and seconds.
        target: The loss.

    Returns:
        Infinity twice if the target is never reached.
    """
    below = np.flatnonzero(np.asarray(curve["losses"], float) <= target)
    if not len(below):
        return math.inf, math.inf
    end = int(below[0])
    if end == 0:
        return float(curve["updates"][0]), float(curve["seconds"][0])
    (before, at), (u, v), (s, t) = (
        curve[key][end - 1 : end + 1] for key in ("losses", "updates", "seconds")
    )
    update = float(math.ceil(u + (v - u) * (before - target) / (before - at)))
    return update, s + (t - s) * (update - u) / (v - u)


def compare(runs: Sequence[Run], problem: str, budget: Budget) -> Comparison:
    """What the runs in a file say about a problem; of each optimizer those with its best rate.

    Args:
        runs: All in the file.
        problem: Its name.
        budget: Of the whole runs.
    """
    here = [run for run in runs if run["problem"] == problem]
    wanted = dataclasses.asdict(budget)
    whole = [run for run in here if run["budget"] == wanted]
    standings = {}
    for name in NAMES:
        of_it = [run for run in whole if run["optimizer"] == name]
        tuned = [run for run in of_it if run["seed"] == SEEDS[0]]
        if not tuned:
            continue
        rate = min(tuned, key=loss_at_end)["learning_rate"]
        tried = {run["learning_rate"] for run in here if run["optimizer"] == name}
        chosen = [run for run in of_it if run["learning_rate"] == rate]
        edge = rate is not None and rate in (min(tried), max(tried))
        standings[name] = Standing(name, sorted(chosen, key=lambda run: run["seed"]), edge)
    return Comparison(problem, standings)
