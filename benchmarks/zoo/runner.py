"""Makes the runs that are missing in a file, with a progress bar."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import rich.progress

from benchmarks.zoo import data, tuning
from benchmarks.zoo.budget import Budget
from benchmarks.zoo.data import Examples
from benchmarks.zoo.optimizers import NAMES
from benchmarks.zoo.problems import Problem
from benchmarks.zoo.results import Results, Run
from benchmarks.zoo.training import Setting, train

QUIET = 0.1
"""The `disturbance` up to which a run is not made again."""

TRIES = 3
"""Runs of a setting, at most, unless told otherwise."""


def budget_of(problem: Problem, seconds: float) -> Budget:
    """A problem's own budget, or less.

    Args:
        problem: It has one.
        seconds: In training steps, at most.
    """
    return Budget(problem.updates, min(problem.seconds, seconds))


def missing(
    problems: Sequence[Problem],
    names: Sequence[str],
    budgets: Mapping[str, Budget],
    results: Results,
    folder: pathlib.Path | None,
    seeds: Sequence[int] = tuning.SEEDS,
) -> list[tuple[Problem, list[str]]]:
    """Problems and optimizers of which the file has not all runs yet.

    Args:
        problems: What is trained.
        names: Of the optimizers.
        budgets: Problem → time of a whole run.
        results: The file.
        folder: Of the data.
        seeds: Of each optimizer.

    Raises:
        ValueError: There is no optimizer of a name, or a file of the data is missing that is still
            needed.
    """
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise ValueError(
            f"Argument `names` must be some of {', '.join(NAMES)}; got {', '.join(unknown)}."
        )
    found = []
    for problem in problems:
        budget = budgets[problem.name]
        left = [name for name in names if not is_complete(problem, name, budget, results, seeds)]
        if left:
            found.append((problem, left))
            if problem.file is not None:
                data.require_file(folder, problem.file)
    return found


def run_all(
    work: Sequence[tuple[Problem, Sequence[str]]],
    budgets: Mapping[str, Budget],
    results: Results,
    folder: pathlib.Path | None,
    seeds: Sequence[int] = tuning.SEEDS,
    tries: int = TRIES,
) -> None:
    """Trains problems with optimizers, as far as the file has no such runs yet.

    Args:
        work: Problems, and the names of the optimizers.
        budgets: Problem → time of a whole run.
        results: The file.
        folder: Of the data.
        seeds: Of each optimizer.
        tries: Runs of a setting, at most, where something else was running.
    """
    planned = sum(
        size_of(budgets[problem.name]) * tuning.shares(name, len(seeds))
        for problem, names in work
        for name in names
    )
    with Runner(results, planned, tries=tries) as runner:
        for problem, names in work:
            get = runner.get(problem, problem.examples(folder))
            for name in names:
                tuning.runs_of(problem, name, budgets[problem.name], get, seeds)


def is_complete(
    problem: Problem,
    name: str,
    budget: Budget,
    results: Results,
    seeds: Sequence[int] = tuning.SEEDS,
) -> bool:
    """Whether the file has all runs of an optimizer.

    Args:
        problem: What is trained.
        name: Of the optimizer.
        budget: Of a whole run.
        results: The file.
        seeds: Of the optimizer.
    """
    try:
        tuning.runs_of(problem, name, budget, results.require, seeds)
    except KeyError:
        return False
    return True


def size_of(budget: Budget) -> float:
    """Of a run, for the progress bar: seconds, or updates where these are all that counts."""
    return budget.updates if budget.seconds is None else budget.seconds


def disturbance(run: Run) -> float:
    """The share of the processors that something else had during a run, as far as that is known."""
    return run["others"] or 0.0


class Runner:
    """Takes runs from a file or makes them, and shows how far it is.

    Args:
        results: The file.
        planned: The budgets of all runs to come, in their unit, for the progress bar.
        tries: Runs of a setting, at most; the most quiet one counts.
        trained: Makes a run; as the zoo does by default.
    """

    def __init__(
        self,
        results: Results,
        planned: float,
        *,
        tries: int = TRIES,
        trained: Callable[..., Run] | None = None,
    ) -> None:
        self._results = results
        self._tries = tries
        self._train = trained or train
        self._bar = rich.progress.Progress(
            "{task.description}",
            rich.progress.BarColumn(),
            rich.progress.TaskProgressColumn(),
            rich.progress.TimeElapsedColumn(),
            "left:",
            rich.progress.TimeRemainingColumn(),
            speed_estimate_period=7200,  # A run alone takes longer than rich usually looks back.
        )
        self._task = self._bar.add_task("runs", total=planned)
        self._seen: set[Setting] = set()

    def __enter__(self) -> Runner:
        """Shows the bar."""
        self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        """Leaves the bar as it is."""
        self._bar.stop()

    def get(self, problem: Problem, examples: Examples) -> Callable[[Setting], Run]:
        """From a setting to its run.

        Args:
            problem: What is trained.
            examples: Its data.
        """

        def made(setting: Setting) -> Run:
            label = f"{problem.name}: {setting}"
            runs: list[Run] = []
            while len(runs) < self._tries:
                again = " (again: something else was running)" if runs else ""
                self._bar.update(self._task, description=label + again)
                runs.append(self._train(problem, examples, setting))
                if disturbance(runs[-1]) <= QUIET:
                    break
            return min(runs, key=disturbance)

        def get(setting: Setting) -> Run:
            known = self._results.find(setting) is not None
            run = self._results.get(setting, made)
            if setting not in self._seen:
                self._count(setting.budget, known)
            self._seen.add(setting)
            return run

        return get

    def _count(self, budget: Budget, known: bool) -> None:
        """What was in the file is taken off the total: it says nothing about the pace."""
        size = size_of(budget)
        if known:
            total = self._bar.tasks[self._task].total or 0
            self._bar.update(self._task, total=max(0, total - size))
        else:
            self._bar.advance(self._task, size)
