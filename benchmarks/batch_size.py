"""Updates to a target loss against the batch size: how far KFAC, SGD and Adam scale perfectly.

From 64 examples to 16,384, or to the size of the data. SGD (Nesterov's momentum 0.9) and Adam have
their best learning rate at every size, found on a grid of half decades by climbing from the best of
the size before; KFAC has no argument. A training ends at the target: the smoothed loss of the last
1024 examples (of the last batch, if it is larger). Scaling is perfect as far as updates times batch
size are constant within 20 %. A training that is not there within its seconds is given up: its size
is outside. Runs are kept in OUTPUT.json as they end: started again, the program goes on where it
was. The tables go into OUTPUT.md, between two marks, the curves into OUTPUT.png.

    python -m benchmarks.batch_size --data FOLDER --output docs/results/batch_size

Needs: mnist.npz, for two of the three problems; about an hour.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks import markdown
from benchmarks.command_line import parser_of, start
from benchmarks.perfect_scaling import PerfectScaling, perfect_scaling
from benchmarks.zoo import data, networks, report
from benchmarks.zoo.budget import Budget
from benchmarks.zoo.optimizers import CENTRES
from benchmarks.zoo.problems import PROBLEMS, Problem
from benchmarks.zoo.results import Results, Run
from benchmarks.zoo.runner import Runner
from benchmarks.zoo.training import Setting
from benchmarks.zoo.tuning import Get, loss_at_end

OPTIMIZERS = ("KFAC", "SGD", "Adam")
SMOOTHED = 1024
"""Examples over whose losses the mean is taken."""
UPDATES = 20_000
"""Of one training, at most; the seconds end it before."""


@dataclasses.dataclass(frozen=True)
class Study:
    """A problem of the zoo, at several batch sizes.

    Attributes:
        problem: Its network and data.
        target: A smoothed loss.
        sizes: Of batches, ascending.
        seconds: Of one training, at most.
        seeds: Of each optimizer at each size.
        minutes: That the study takes, about.
    """

    problem: Problem
    target: float
    sizes: Sequence[int]
    seconds: float
    seeds: int
    minutes: float

    def at(self, size: int) -> Problem:
        """The problem with batches of one size."""
        return dataclasses.replace(
            self.problem,
            name=f"{self.problem.name}, batch {size}",
            batch_size=size,
            smoothing=max(1, SMOOTHED // size),
        )

    def setting(
        self, name: str, size: int, rate: float | None = None, updates: int = UPDATES
    ) -> Setting:
        """One training, with the first seed."""
        budget = Budget(updates, self.seconds, until=self.target)
        return Setting(self.at(size).name, name, rate, 0, budget)


SMALL_AUTOENCODER = dataclasses.replace(
    PROBLEMS["mnist-autoencoder"],
    name="small-autoencoder",
    network=lambda _: networks.dense([784, 200, 100, 20, 100, 200, 784], "tanh", code=20),
)
"""So small that the largest batches, too, take SGD within minutes to where gradients are noisy."""

STUDIES = {
    study.problem.name: study
    for study in (
        Study(PROBLEMS["digits-mlp"], 0.05, (64, 128, 256, 512, 1024, 1797), 24, 3, 5),
        Study(SMALL_AUTOENCODER, 85.0, (64, 256, 1024, 4096, 16_384), 600, 1, 30),
        Study(PROBLEMS["mnist-convnet"], 0.1, (64, 256, 1024, 4096), 360, 1, 30),
    )
}

QUICK = {"digits-mlp": Study(PROBLEMS["digits-mlp"], 0.5, (64, 256, 1024), 2, 1, 1)}


def reached(run: Run, target: float) -> float:
    """Updates until a training was at its target; infinite if it never was."""
    curve = run["curve"]
    there = bool(curve["losses"]) and curve["losses"][-1] <= target * (1 + 1e-5)
    return float(curve["updates"][-1]) if there else math.inf


def arrived(run: Run, study: Study, size: int) -> float:
    """Updates until the loss was there: in the middle of the window that it is a mean of."""
    return reached(run, study.target) - (study.at(size).smoothing - 1) / 2


def climbed(start: int, cost: Callable[[int], tuple[float, float]]) -> int:
    """The number with the least cost, by steps of one to the better neighbour.

    Args:
        start: Where it begins.
        cost: Is asked once for each number.
    """
    asked = functools.cache(cost)
    best = start
    while (better := min((best, best + 1, best - 1), key=asked)) != best:
        best = better
    return best


def rate_at(step: int) -> float:
    """1 and 3 of each power of ten: 0 is 1, 1 is 3, 2 is 10, -1 is 0.3."""
    return float(f"{(1, 3)[step % 2]}e{step // 2}")


def tuned(study: Study, name: str, size: int, start: int, get: Get) -> tuple[int, Run]:
    """The best learning rate, as a step of `rate_at`, and the run with it.

    A training is given up after as many updates as the best one so far took.

    Args:
        study: What is trained.
        name: Of a first-order optimizer.
        size: Of the batches.
        start: Where the search begins.
        get: Trains.
    """
    runs: dict[int, Run] = {}

    def cost(step: int) -> tuple[float, float]:
        best = min((reached(run, study.target) for run in runs.values()), default=math.inf)
        updates = UPDATES if math.isinf(best) else int(best)
        runs[step] = get(study.setting(name, size, rate_at(step), updates))
        return reached(runs[step], study.target), loss_at_end(runs[step])

    best = climbed(start, cost)
    return best, runs[best]


@dataclasses.dataclass(frozen=True)
class Scaling:
    """An optimizer on a problem.

    Attributes:
        updates: Batch size → updates to the target, one a seed.
        made: Batch size → updates after which the longest training ended.
        rates: Batch size → learning rate; None for KFAC.
    """

    updates: Mapping[int, Sequence[float]]
    made: Mapping[int, int]
    rates: Mapping[int, float | None]

    @property
    def medians(self) -> list[float]:
        """Of the seeds."""
        return [float(np.median(each)) for each in self.updates.values()]

    @property
    def perfect(self) -> PerfectScaling | None:
        """As far as examples can be seen side by side."""
        return perfect_scaling(list(self.updates), self.medians)


def scaling_of(
    study: Study, name: str, getter: Callable[[Problem], Get], seeds: int | None = None
) -> Scaling:
    """Trains an optimizer at all sizes.

    Args:
        study: What is trained.
        name: Of the optimizer.
        getter: From a problem to what trains it.
        seeds: Instead of the study's own number.
    """
    middle = study.problem.centres.get(name, CENTRES.get(name, 1.0))
    step = 2 * round(math.log10(middle))
    found: dict[int, list[Run]] = {}
    for size in study.sizes:
        get, setting = getter(study.at(size)), study.setting(name, size)
        if name == "KFAC":
            first = get(setting)
        else:
            step, first = tuned(study, name, size, step, get)
        others = [
            dataclasses.replace(setting, learning_rate=first["learning_rate"], seed=seed)
            for seed in range(1, seeds or study.seeds)
        ]
        found[size] = [first, *map(get, others)]
    return Scaling(
        {size: [arrived(run, study, size) for run in runs] for size, runs in found.items()},
        {
            size: max(max(run["curve"]["updates"], default=0) for run in runs)
            for size, runs in found.items()
        },
        {size: runs[0]["learning_rate"] for size, runs in found.items()},
    )


def details(study: Study, scalings: Mapping[str, Scaling]) -> str:
    """A line a batch size: updates to the target, and learning rates."""
    headings = ["batch size"]
    for name in scalings:
        headings += [f"{name}: updates"] + ([] if name == "KFAC" else ["learning rate"])
    rows = []
    for size in study.sizes:
        cells = [f"{size:,}"]
        for each in scalings.values():
            rate = each.rates[size]
            cells.append(report.spread(each.updates[size], ".0f", f"> {each.made[size]}"))
            cells += [] if rate is None else [f"{rate:g}"]
        rows.append(cells)
    title = f"### {study.problem.name}\n\nTarget: a loss of {study.target:g}.\n\n"
    return title + markdown.table(headings, rows)


def summary(found: Mapping[str, Mapping[str, Scaling]]) -> str:
    """A line an optimizer and problem: where perfect scaling ends."""
    rows = []
    for problem, scalings in found.items():
        own = scalings["KFAC"].perfect if "KFAC" in scalings else None
        for name, scaling in scalings.items():
            perfect = scaling.perfect
            cells = [problem, name, "–", "–", "–", "–"]
            if perfect is not None:
                sign = "≥ " if perfect.open else ""
                cells[2:5] = [
                    f"{perfect.first:,} to {sign}{perfect.end:,.0f}",
                    f"{sign}{perfect.factor:.1f}",
                    f"{perfect.examples:,.0f}",
                ]
                if perfect.is_one:
                    cells[2:5] = [f"none; at most to {perfect.end:,.0f}", "–", "–"]
            if perfect is not None and own is not None and not own.is_one and name != "KFAC":
                sign = "≥ " if own.open or perfect.is_one else ""
                cells[5] = f"{sign}{own.end / perfect.end:.1f}"
            rows.append(cells)
    return markdown.table(
        [
            "problem",
            "optimizer",
            "perfect scaling, batch sizes",
            "largest over smallest",
            "examples to the target",
            "KFAC's end over this end",
        ],
        rows,
    )


def draw(
    studies: Sequence[Study], found: Mapping[str, Mapping[str, Scaling]], path: pathlib.Path
) -> None:
    """A row a problem: updates and examples against the batch size; perfect scaling is solid."""
    figure = Figure(figsize=(10, 3.4 * len(studies)), layout="constrained")
    panels = figure.subplots(len(studies), 2, squeeze=False)
    for study, row in zip(studies, panels, strict=True):
        scalings = found[study.problem.name]
        for name, scaling in scalings.items():
            sizes, medians = np.array(study.sizes), np.array(scaling.medians)
            medians[np.isinf(medians)] = np.nan
            color = f"C{OPTIMIZERS.index(name)}"
            for axes, values in zip(row, (medians, medians * sizes), strict=True):
                axes.plot(sizes, values, "o--", color=color, markersize=4, label=name)
                perfect = scaling.perfect
                if perfect is not None:
                    inside = (sizes >= perfect.first) & (sizes <= perfect.last)
                    axes.plot(sizes[inside], values[inside], color=color, linewidth=2.8)
        for axes, what in zip(row, ("updates", "examples"), strict=True):
            axes.set(xscale="log", yscale="log", xlabel="batch size")
            axes.set_ylabel(f"{study.problem.name}: {what} to the target")
            axes.grid(alpha=0.3)
    panels[0, 0].legend(frameon=False)
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line and runs.

    Args:
        arguments: Of the command line.
    """
    parser = parser_of(
        "batch_size",
        __doc__,
        data="folder with mnist.npz",
        seeds=", ".join(f"{each.seeds} for {name}" for name, each in STUDIES.items()),
        quick="digits-mlp at three sizes, to a high target",
    )
    parser.add_argument("--problems", nargs="+", choices=STUDIES, help="default: all")
    chosen = parser.parse_args(arguments)
    known = QUICK if chosen.quick else STUDIES
    if unknown := [name for name in chosen.problems or () if name not in known]:
        parser.error(f"argument --problems: with --quick there is digits-mlp only, got {unknown}")
    studies = [known[name] for name in chosen.problems or known]
    try:
        for study in studies:
            if study.problem.file is not None:
                data.require_file(chosen.data, study.problem.file)
        results = Results(chosen.output.with_suffix(".json"))
        report.require_place(chosen.output.with_suffix(".md"))
    except ValueError as error:
        parser.error(str(error))
    minutes = sum(study.minutes for study in studies)
    print(f"Up to {minutes:g} min on two quiet cores, less what is in the file already.")
    found: dict[str, dict[str, Scaling]] = {}
    with Runner(results, 60 * minutes, tries=1) as runner:
        for study in studies:
            examples = study.problem.examples(chosen.data)

            def getter(problem: Problem, examples: Any = examples) -> Get:
                return runner.get(problem, examples)

            found[study.problem.name] = {
                name: scaling_of(study, name, getter, chosen.seeds) for name in OPTIMIZERS
            }
    tables = [summary(found), *(details(each, found[each.problem.name]) for each in studies)]
    text = "\n\n".join([*tables, f"![Updates and examples]({chosen.output.name}.png)"])
    print(text)
    report.write_page(chosen.output.with_suffix(".md"), text)
    draw(studies, found, chosen.output.with_suffix(".png"))
    print(f"\nWritten: {chosen.output}.json, {chosen.output}.md, {chosen.output}.png")


if __name__ == "__main__":
    start(main)
