"""Ulbæk 2022: three problems, both optimizers with hyper-parameters by Bayesian optimisation.

Every training has the same few seconds. An autoencoder and a regression as in the study, a
classification a quarter as wide, tanh everywhere, with biases (which he left out by mistake).
KFAC's batch size, learning rate, momentum and damping are searched, without a bound of the step;
SGD's batch size, learning rate and Nesterov's momentum. Then batch sizes, artificial batch sizes
(``gradient_accumulation_steps``), learning rates at small batches and dampings, from the best KFAC
of the autoencoder.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

import tfkfac
from benchmarks import markdown
from benchmarks.reproduce.experiment import Experiment, Findings, Laboratory
from benchmarks.reproduce.panels import Panel, figure_of, line_of
from benchmarks.reproduce.search import Space, answer_of, searched
from benchmarks.reproduce.trials import Batches, Study, Trial, last_look
from benchmarks.zoo import networks
from benchmarks.zoo.budget import Budget
from benchmarks.zoo.data import Examples
from benchmarks.zoo.problems import AUTOENCODER, PROBLEMS
from benchmarks.zoo.results import Run

OPTIMIZERS = ("KFAC", "SGD")
BEST = 4
"""Settings of each optimizer that are compared, as in the study."""
TEST = 2000
"""Examples that are held out."""
EQUAL_UPDATES = (5, 10, 20)
"""After which optimizers are compared."""

BATCHES = {"batch_size": (25, 10_000, "log integer")}
SPACES: Mapping[str, Space] = {
    "KFAC": BATCHES
    | {
        "learning_rate": (1e-2, 1.0, "log"),
        "momentum": (0.0, 0.95, "linear"),
        "damping": (1e-5, 1.0, "log"),
    },
    "SGD": BATCHES | {"learning_rate": (1e-3, 3.0, "log"), "momentum": (0.0, 0.99, "linear")},
}


@dataclasses.dataclass(frozen=True)
class Task:
    """One of the three problems.

    Attributes:
        zoo: Whose data it has.
        widths: Of the network.
        loss: Makes the loss.
        untrained: About the loss of a model that is not trained.
    """

    zoo: str
    widths: tuple[int, ...]
    loss: Callable[[], keras.losses.Loss]
    untrained: float


def _classes() -> keras.losses.Loss:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


TASKS = {
    "autoencoder": Task("mnist-autoencoder", AUTOENCODER, keras.losses.MeanSquaredError, 0.12),
    "regression": Task(
        "mnist-rotation", (784, 500, 750, 500, 250, 100, 1), keras.losses.MeanSquaredError, 1.0
    ),
    "classification": Task("cifar-mlp", (3072, 750, 500, 375, 250, 62, 10), _classes, math.log(10)),
}


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is done.

    Attributes:
        tasks: Names.
        narrower: Factor by which hidden layers have fewer units.
        seconds: Of each training.
        trials: Proposals of the search.
        random: The first of them.
        updates: Of a training that updates end.
        batches: Batch sizes.
        micro: The batch that artificial batches are made of.
        artificial: Artificial batch sizes.
        slower: Factors of the learning rate at small batches.
        dampings: Factors of the damping.
    """

    tasks: tuple[str, ...] = tuple(TASKS)
    narrower: int = 1
    seconds: float = 10
    trials: int = 12
    random: int = 5
    updates: int = 20
    batches: tuple[int, ...] = (25, 100, 500, 1000, 2500, 5000)
    micro: int = 25
    artificial: tuple[int, ...] = (100, 500, 1000)
    slower: tuple[float, ...] = (0.3, 0.1)
    dampings: tuple[float, ...] = (1e-4, 1e-2, 1e2)


FULL = Size()
QUICK = Size(("autoencoder",), 10, 0.5, 2, 1, 2, (25,), 25, (50,), (), ())


def study_of(lab: Laboratory, name: str, narrower: int) -> Study:
    """A problem with the last of its examples held out."""
    task = TASKS[name]
    examples = PROBLEMS[task.zoo].examples(lab.folder)
    inner = [max(10, width // narrower) for width in task.widths[1:-1]]
    return Study(
        name,
        Examples(
            examples.inputs[:-TEST],
            examples.targets[:-TEST],
            10 if task.loss is _classes else 0,
        ),
        (examples.inputs[-TEST:], examples.targets[-TEST:]),
        lambda: networks.dense([task.widths[0], *inner, task.widths[-1]], "tanh"),
        task.loss,
        optimizer,
    )


def optimizer(trial: Trial, model: keras.Model) -> keras.optimizers.Optimizer:
    """SGD with Nesterov's momentum, or KFAC, whose numbers mean what they say: no bound."""
    if trial.optimizer == "KFAC":
        bound = {"kl_clip": None} if "learning_rate" in trial.options else {}
        return tfkfac.KFAC(**bound, **trial.options)
    return keras.optimizers.SGD(nesterov=True, **trial.options)


UPDATES = 100_000
"""Of a training that seconds end."""
SLOWEST = 10.0
"""Times the seconds of other trainings after which one that updates should end is given up."""


@dataclasses.dataclass(frozen=True)
class Bench:
    """Trains with hyper-parameters as the search and the studies name them.

    Attributes:
        lab: Where.
        study: What.
        size: How much.
    """

    lab: Laboratory
    study: Study
    size: Size

    def run(
        self, name: str, chosen: Mapping[str, Any], updates: int | None = None, seed: int = 0
    ) -> Run:
        """For the seconds of all, or for so many updates."""
        options = {key: value for key, value in chosen.items() if key != "batch_size"}
        seconds = self.size.seconds * (1 if updates is None else SLOWEST)
        budget = Budget(updates or UPDATES, seconds)
        batches = Batches(min(chosen["batch_size"], len(self.study.examples.inputs)))
        trial = Trial(self.study.name, name, options, batches, budget, seed)
        return self.lab.run(self.study, trial)


def hyperparameters(run: Run) -> dict[str, Any]:
    """As the search names them."""
    return {"batch_size": run["batches"]["first"], **run["options"]}


def all_searched(bench: Bench, name: str) -> list[Run]:
    """The trainings of a search, best first; of several seeds the first, sorted by their mean."""
    untrained = TASKS[bench.study.name].untrained
    found: list[tuple[float, Run]] = []

    def answer(chosen: Mapping[str, Any]) -> float:
        runs = [bench.run(name, chosen, seed=seed) for seed in range(bench.lab.seeds)]
        answers = [answer_of(last_look(run), untrained) for run in runs]
        found.append((float(np.mean(answers)), runs[0]))
        return found[-1][0]

    searched(SPACES[name], answer, trials=bench.size.trials, random=bench.size.random)
    return [run for _, run in sorted(found, key=lambda each: each[0])]


@dataclasses.dataclass(frozen=True)
class Series:
    """Losses against one thing that is changed.

    Attributes:
        what: That is changed.
        losses: Its value → test loss after some seconds, and after some updates (None: not tried).
    """

    what: str
    losses: Mapping[float, tuple[float, float | None]]


def batch_sizes(bench: Bench, best: Mapping[str, Any]) -> Series:
    """The best KFAC with other batch sizes."""
    losses = {}
    for size in bench.size.batches:
        chosen = {**best, "batch_size": size}
        of_both = [last_look(bench.run("KFAC", chosen, n)) for n in (None, bench.size.updates)]
        losses[float(size)] = (of_both[0], of_both[1])
    return Series("batch size", losses)


def artificial_batch_sizes(bench: Bench, best: Mapping[str, Any]) -> Series:
    """The same with batches of one size, several of which make an update."""
    losses = {}
    for size in bench.size.artificial:
        steps = size // bench.size.micro
        chosen = {**best, "batch_size": bench.size.micro, "gradient_accumulation_steps": steps}
        of_both = [last_look(bench.run("KFAC", chosen, n)) for n in (None, bench.size.updates)]
        losses[float(size)] = (of_both[0], of_both[1])
    return Series(f"artificial batch size, of {bench.size.micro}", losses)


def small_batches(bench: Bench, best: Mapping[str, Any]) -> dict[int, float]:
    """The two least batch sizes → the lowest loss with any learning rate that was tried."""
    found = {}
    for size in bench.size.batches[:2]:
        rates = [best["learning_rate"] * factor for factor in (1.0, *bench.size.slower)]
        runs = [
            bench.run("KFAC", {**best, "batch_size": size, "learning_rate": float(f"{rate:.3g}")})
            for rate in rates
        ]
        found[size] = min(map(last_look, runs))
    return found


def dampings(bench: Bench, best: Mapping[str, Any]) -> Series:
    """The best KFAC with other dampings."""
    factors = sorted((1.0, *bench.size.dampings))
    losses = {}
    for factor in factors:
        chosen = {**best, "damping": float(f"{best['damping'] * factor:.3g}")}
        losses[chosen["damping"]] = (last_look(bench.run("KFAC", chosen)), None)
    return Series("damping", losses)


def conduct(lab: Laboratory) -> Findings:
    """Searches, then studies the best KFAC of the first problem."""
    size = QUICK if lab.quick else FULL
    found: dict[str, dict[str, list[Run]]] = {}
    plain: dict[str, Run] = {}
    benches = {name: Bench(lab, study_of(lab, name, size.narrower), size) for name in size.tasks}
    for name, bench in benches.items():
        found[name] = {each: all_searched(bench, each) for each in OPTIMIZERS}
        plain[name] = bench.run("KFAC", {"batch_size": 500})
    first = size.tasks[0]
    best = hyperparameters(found[first]["KFAC"][0])
    series = [batch_sizes(benches[first], best), artificial_batch_sizes(benches[first], best)]
    series.append(dampings(benches[first], best))
    small = small_batches(benches[first], best)
    tables = [
        verdicts(found, series, small, TASKS[first].untrained),
        by_updates(found, plain),
        *(of_task(name, runs, plain[name]) for name, runs in found.items()),
        *(of_series(each, size) for each in series),
    ]
    return Findings("\n\n".join(tables), figure_of(panels(found, plain, series, size)))


def best_of(runs: Sequence[Run]) -> Sequence[Run]:
    """The settings that are compared: the first ones, but for those that diverged."""
    return [run for run in runs[:BEST] if math.isfinite(last_look(run))] or runs[:1]


def by_updates(found: Mapping[str, Mapping[str, Sequence[Run]]], plain: Mapping[str, Run]) -> str:
    """The lowest test loss of any training of each search after as many updates."""
    rows = []
    for name, runs in found.items():
        for label, group in ({**runs, "KFAC()": [plain[name]]}).items():
            lowest = [min(loss_after(run, updates) for run in group) for updates in EQUAL_UPDATES]
            cells = [f"{loss:.4g}" if math.isfinite(loss) else "–" for loss in lowest]
            rows.append([name, label, *cells])
    headings = ["lowest test loss", "optimizer", *(f"{each} updates" for each in EQUAL_UPDATES)]
    return markdown.table(headings, rows)


def loss_after(run: Run, updates: int) -> float:
    """The last test loss that was seen until then; infinite if there is none that is a number."""
    seen = [look["loss"] for look in run["looks"] if look["updates"] <= updates]
    return seen[-1] if seen and seen[-1] is not None else math.inf


def of_task(name: str, runs: Mapping[str, Sequence[Run]], plain: Run) -> str:
    """The best settings of both optimizers, as in the study's tables 1 to 3."""
    rows = []
    best = [(label, run) for label in OPTIMIZERS for run in best_of(runs[label])]
    for each, run in [*best, ("KFAC()", plain)]:
        chosen, look = hyperparameters(run), run["looks"][-1]
        rows.append(
            [
                each,
                _number(last_look(run)),
                f"{100 * look['accuracy']:.1f} %" if "accuracy" in look else "–",
                f"{look['updates']}",
                *(
                    f"{chosen[key]:g}" if key in chosen else "–"
                    for key in ("batch_size", "learning_rate", "momentum", "damping")
                ),
            ]
        )
    headings = ["optimizer", "test loss", "test accuracy", "updates", "batch size"]
    headings += ["learning rate", "momentum", "damping"]
    return f"### {name}\n\n" + markdown.table(headings, rows)


def of_series(series: Series, size: Size) -> str:
    """A line a value."""
    headings = [series.what, f"test loss after {size.seconds:g} s"]
    by_updates = any(updates is not None for _, updates in series.losses.values())
    headings += [f"after {size.updates} updates"] if by_updates else []
    rows = [
        [f"{value:g}", *(_number(loss) for loss in losses if loss is not None)]
        for value, losses in series.losses.items()
    ]
    return markdown.table(headings, rows)


def verdicts(
    found: Mapping[str, Mapping[str, Sequence[Run]]],
    series: Sequence[Series],
    small: Mapping[int, float],
    untrained: float,
) -> str:
    """The study's findings, what was found here, and whether that is the same."""
    sizes, artificial, damped = (each.losses for each in series)
    wins = [
        name
        for name, runs in found.items()
        if last_look(best_of(runs["KFAC"])[-1]) < last_look(runs["SGD"][0])
    ]
    batch = {each: _chosen(found, each, "batch_size") for each in OPTIMIZERS}
    spread = {
        (each, key): apart(_chosen(found, each, key))
        for each, key in itertools.product(OPTIMIZERS, ("learning_rate", "batch_size"))
    }
    least = min(after for after, _ in damped.values())
    undamped = damped[min(damped)][0]
    tiny, short = small[min(small)], min(after for after, _ in artificial.values())
    lowest = min(after for after, _ in sizes.values())
    largest = max(artificial)
    rows = [
        (
            "all of the best four KFAC below all SGD (3 of 3 in loss or accuracy)",
            f"in test loss on {len(wins)} of {len(found)}: {', '.join(wins) or '–'}",
            len(wins) == len(found),
        ),
        (
            "KFAC prefers large batches (mostly 8,000 to 14,000)",
            f"median of the best {np.median(batch['KFAC']):,.0f}, "
            f"SGD's {np.median(batch['SGD']):,.0f}",
            bool(np.median(batch["KFAC"]) > np.median(batch["SGD"])),
        ),
        (
            "KFAC's best settings are alike across problems, SGD's are not",
            "greatest over least learning rate "
            f"{spread['KFAC', 'learning_rate']:.1f} (SGD {spread['SGD', 'learning_rate']:.1f}), "
            f"batch size {spread['KFAC', 'batch_size']:.1f} "
            f"(SGD {spread['SGD', 'batch_size']:.1f})",
            all(
                spread["KFAC", key] < spread["SGD", key] for key in ("learning_rate", "batch_size")
            ),
        ),
        (
            "damping is useless: it tends to zero when tuned",
            f"test loss {_number(undamped)} with the least damping ({min(damped):g}), "
            f"{_number(least)} with the best",
            undamped <= 1.05 * least,
        ),
        (
            "small batches fail (batch 25: 0.10, untrained 0.12)",
            f"batch {min(small)}: {_number(tiny)} with the best learning rate tried, untrained "
            f"about {untrained:g}",
            tiny > 0.5 * untrained,
        ),
        (
            "artificial batches restore it (0.02 of micro-batches of 25)",
            f"{_number(short)} in the same seconds, with real batches {_number(lowest)}; in the "
            f"same updates, at {largest:g}: {_of_updates(artificial, largest)} and "
            f"{_of_updates(sizes, largest)}",
            short < 0.5 * tiny,
        ),
    ]
    cells = [[his, ours, "yes" if holds else "no"] for his, ours, holds in rows]
    return markdown.table(["his finding", "here", "holds"], cells)


def _chosen(found: Mapping[str, Mapping[str, Sequence[Run]]], name: str, key: str) -> list[float]:
    """One hyper-parameter of the best settings on all problems."""
    return [hyperparameters(run)[key] for runs in found.values() for run in best_of(runs[name])]


def _of_updates(losses: Mapping[float, tuple[float, float | None]], value: float) -> str:
    """The loss after some updates, where it was measured."""
    _, after = losses.get(value, (0.0, None))
    return "–" if after is None else _number(after)


def apart(values: Sequence[float]) -> float:
    """The greatest over the least."""
    return max(values) / min(values)


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "diverged"


def panels(
    found: Mapping[str, Mapping[str, Sequence[Run]]],
    plain: Mapping[str, Run],
    series: Sequence[Series],
    size: Size,
) -> list[Panel]:
    """Test losses of the best settings, and of KFAC(), by seconds and updates; then the series."""
    drawn = []
    for x in ("seconds", "updates"):
        for name, runs in found.items():
            lines = {
                f"{each} {place}": line_of(run, x)
                for each in OPTIMIZERS
                for place, run in enumerate(best_of(runs[each]), start=1)
            }
            styles = {
                label: (OPTIMIZERS.index(label.split()[0]), "-" if label.endswith(" 1") else ":")
                for label in lines
            }
            lines["KFAC()"], styles["KFAC()"] = line_of(plain[name], x), (len(OPTIMIZERS), "-")
            drawn.append(Panel(x, f"{name}: test loss", lines, "log", styles=styles))
    for each in series:
        values = list(each.losses)
        lines = {f"after {size.seconds:g} s": (values, [s for s, _ in each.losses.values()])}
        by_updates = [updates for _, updates in each.losses.values() if updates is not None]
        if by_updates:
            lines[f"after {size.updates} updates"] = (values, by_updates)
        drawn.append(Panel(each.what, "test loss", lines, "log", marker="o"))
    return drawn


EXPERIMENT = Experiment(
    "three problems, hyper-parameters by Bayesian optimisation, batch sizes real and artificial",
    ("mnist.npz", "cifar10.npz"),
    minutes=38,
    quick_minutes=1,
    conduct=conduct,
)
