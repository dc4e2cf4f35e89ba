"""Which runs an optimizer gets: the best of its learning rates, and then more seeds of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from benchmarks.zoo.budget import Budget
from benchmarks.zoo.optimizers import rates
from benchmarks.zoo.problems import Problem
from benchmarks.zoo.results import Run
from benchmarks.zoo.training import Setting

SEEDS = (0, 1, 2)
QUARTER, KEPT = 0.25, 3

Get = Callable[[Setting], Run]


def loss_at_end(run: Run) -> float:
    """The smoothed loss; infinite if the training diverged."""
    return math.inf if run["end"] is None else run["end"]


def best_rate(
    setting: Setting, tried: Sequence[float], short: Budget, kept: int, get: Get
) -> float:
    """The learning rate with the lowest smoothed loss at the end.

    All are tried for a short time, the best of them for the whole time of the setting.

    Args:
        setting: Whose learning rate is tuned.
        tried: Learning rates.
        short: Of the first round.
        kept: How many go on to the second round.
        get: Trains.
    """
    first = _sorted_by_end(_with_rates(setting, tried, short), get)
    chosen = [each.learning_rate for each in first[:kept]]
    return _sorted_by_end(_with_rates(setting, chosen, setting.budget), get)[0].learning_rate


def _with_rates(setting: Setting, learning_rates: Iterable[float], budget: Budget) -> list[Setting]:
    return [
        Setting(setting.problem, setting.optimizer, rate, setting.seed, budget)
        for rate in learning_rates
    ]


def _sorted_by_end(settings: Iterable[Setting], get: Get) -> list[Setting]:
    return sorted(settings, key=lambda setting: loss_at_end(get(setting)))


def runs_of(
    problem: Problem, name: str, budget: Budget, get: Get, seeds: Sequence[int] = SEEDS
) -> list[Run]:
    """The runs of all seeds, KFAC as it is, others at their best learning rate.

    Args:
        problem: What is trained.
        name: Of the optimizer.
        budget: Of each run; learning rates are first tried for a quarter of it.
        get: Trains.
        seeds: The first of them tunes.
    """
    rate = None
    if name != "KFAC":
        tuned = Setting(problem.name, name, None, seeds[0], budget)
        rate = best_rate(tuned, rates(problem, name), budget.share(QUARTER), KEPT, get)
    return [get(Setting(problem.name, name, rate, seed, budget)) for seed in seeds]


def shares(name: str, seeds: int = len(SEEDS)) -> float:
    """How many runs of the whole time `runs_of` takes (the tuning has made one of the seeds')."""
    if name == "KFAC":
        return seeds
    return 7 * QUARTER + KEPT + seeds - 1
