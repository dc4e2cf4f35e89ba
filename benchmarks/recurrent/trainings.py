"""The trainings of the experiment: each optimizer at its best number, with several seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import rich.progress

from benchmarks.recurrent.problems import Problem
from benchmarks.recurrent.training import train
from benchmarks.zoo import curves
from benchmarks.zoo.results import Results, Run

SMOOTHING = 25
"""Updates over whose losses the mean is taken."""


def smoothed(run: Run) -> np.ndarray:
    """The mean loss of the last updates, at every update; infinite once a loss was not finite.

    Args:
        run: As in the file.
    """
    losses = np.asarray(run["losses"], float)  # None is nan.
    finite = np.logical_and.accumulate(np.isfinite(losses))
    return np.where(finite, curves.smoothed(np.where(finite, losses, 0.0), SMOOTHING), np.inf)


@dataclasses.dataclass(frozen=True)
class Learnt:
    """What an optimizer made of a problem.

    Attributes:
        name: Of the optimizer.
        runs: With the best number, one a seed.
        seconds: In training steps after every update.
    """

    name: str
    runs: list[Run]
    seconds: Sequence[float]

    @property
    def tuned(self) -> float:
        """The best number."""
        return self.runs[0]["tuned"]

    @property
    def curves(self) -> np.ndarray:
        """Smoothed losses, shape [seeds, updates]."""
        return np.array([smoothed(run) for run in self.runs])


class Trainings:
    """Takes trainings from the file or makes them.

    Args:
        results: The file.
    """

    def __init__(self, results: Results) -> None:
        self._results = results

    def run(self, problem: Problem, name: str, tuned: float, seed: int) -> Run:
        """One training.

        Args:
            problem: What is trained.
            name: Of the optimizer.
            tuned: Its number.
            seed: Of everything that is drawn.
        """
        setting = {
            "problem": problem.name,
            "optimizer": name,
            "tuned": tuned,
            "seed": seed,
            "updates": problem.updates,
        }
        return self._results.get(setting, lambda _: setting | train(problem, name, tuned, seed))

    def best(self, problem: Problem, name: str) -> float:
        """The tried number with the least loss at the end, with the first seed.

        Args:
            problem: What is trained.
            name: Of the optimizer.
        """
        return min(
            problem.tried[name],
            key=lambda tuned: float(smoothed(self.run(problem, name, tuned, 0))[-1]),
        )

    def pace(self, problem: Problem, name: str, measure: bool) -> list[float]:
        """Seconds in training steps after every update.

        Args:
            problem: What is trained.
            name: Of the optimizer.
            measure: Whether to train once more, for the clock alone, if that is not done yet.
        """
        setting = {"pace_of": problem.name, "optimizer": name, "updates": problem.updates}
        best = self.best(problem, name)
        if measure:
            made = self._results.get(
                setting, lambda _: setting | {"seconds": train(problem, name, best, 0)["seconds"]}
            )
        else:
            made = self._results.find(setting) or self.run(problem, name, best, 0)
        return made["seconds"]


def all_runs(
    problems: Sequence[Problem], results: Results, seeds: int, measure: bool
) -> dict[str, list[Learnt]]:
    """Problem → what each optimizer made of it.

    Args:
        problems: What is trained.
        results: The file.
        seeds: Of the results.
        measure: Whether seconds are those of one more training each.
    """
    trainings = Trainings(results)
    found: dict[str, list[Learnt]] = {}
    with rich.progress.Progress() as progress:
        every = [(problem, name) for problem in problems for name in problem.optimizers]
        total = sum(len(problem.tried[name]) + seeds - 1 + measure for problem, name in every)
        task = progress.add_task("trainings", total=total)
        for problem, name in every:
            progress.update(task, description=f"{problem.name}: {name}")
            best = trainings.best(problem, name)
            progress.advance(task, len(problem.tried[name]))
            runs = []
            for seed in range(seeds):
                runs.append(trainings.run(problem, name, best, seed))
                progress.advance(task, int(seed > 0))
            seconds = trainings.pace(problem, name, measure)
            progress.advance(task, int(measure))
            found.setdefault(problem.name, []).append(Learnt(name, runs, seconds))
    return found
