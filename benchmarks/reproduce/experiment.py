"""What an experiment is, and what it works with."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable

from matplotlib.figure import Figure

from benchmarks.reproduce.trials import Study, Trial
from benchmarks.zoo.results import Results, Run
from benchmarks.zoo.runner import Runner


@dataclasses.dataclass(frozen=True)
class Laboratory:
    """Where an experiment makes its trainings.

    Attributes:
        folder: Of the data.
        seeds: Of what is compared in the end.
        quick: Whether to see that it works is enough.
        runner: Makes trainings that are not in the file, and shows how far it is.
        results: The file, for what is no training.
    """

    folder: pathlib.Path | None
    seeds: int
    quick: bool
    runner: Runner
    results: Results

    def run(self, study: Study, trial: Trial) -> Run:
        """The training, made now if it is not in the file."""
        return self.runner.get(study, study.examples)(trial)


@dataclasses.dataclass(frozen=True)
class Findings:
    """What an experiment found.

    Attributes:
        tables: In Markdown.
        figure: The curves.
    """

    tables: str
    figure: Figure


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One of the papers' experiments.

    Attributes:
        what: A line.
        files: That it needs, in the folder of the data.
        minutes: That it takes on two quiet cores, about.
        quick_minutes: That it takes in short.
        conduct: Makes the trainings, and says what they found.
    """

    what: str
    files: tuple[str, ...]
    minutes: float
    quick_minutes: float
    conduct: Callable[[Laboratory], Findings]
