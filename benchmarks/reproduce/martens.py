"""The deep MNIST autoencoder by seconds, by iterations and by data (Martens & Grosse 2015, §13).

784-1000-500-250-30 and back, tanh, a linear code, the cross-entropy summed over the pixels. KFAC
has no argument but ``use_ema``; SGD has Nesterov's momentum, and learning rate and momentum are
tuned. Both average their weights as well (Polyak averaging), and are judged with and without.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping

import keras
import numpy as np

import tfkfac
from benchmarks import markdown
from benchmarks.reproduce.experiment import Experiment, Findings, Laboratory
from benchmarks.reproduce.panels import Panel, figure_of, line_of
from benchmarks.reproduce.trials import Batches, Study, Trial, first_look_at, last_look
from benchmarks.zoo import networks
from benchmarks.zoo.budget import Budget
from benchmarks.zoo.data import EVALUATED
from benchmarks.zoo.problems import AUTOENCODER, PROBLEMS
from benchmarks.zoo.results import Run

AVERAGE = {"use_ema": True, "ema_momentum": 0.98}
"""Polyak averaging: of the last 50 updates or so."""


GROWING = Batches(1000, 6000, 150)


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is done.

    Attributes:
        network: Widths.
        small: Batch; `usual` and `large` are others.
        usual: That SGD is tuned at.
        large: A very large one.
        growing: Batches that grow.
        rates: Learning rates of SGD that are tried.
        momenta: Momenta of SGD that are tried.
        sifted: Seconds of each of these.
        whole: Seconds of a training with usual or growing batches.
        longest: Seconds of SGD's training with large batches.
    """

    network: tuple[int, ...] = AUTOENCODER
    small: int = 500
    usual: int = 1000
    large: int = 10_000
    growing: Batches = GROWING
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)
    momenta: tuple[float, ...] = (0.9, 0.99)
    sifted: float = 30
    whole: float = 150
    longest: float = 240


FULL = Size()
QUICK = Size(
    (784, 100, 30, 100, 784), 100, 200, 500, Batches(200, 400, 10), (1e-3, 3e-3), (0.9,), 0.5, 2, 2
)


def study_of(lab: Laboratory, widths: tuple[int, ...]) -> Study:
    """The autoencoder, judged on some of the images that it is trained on, as in the paper."""
    problem = PROBLEMS["mnist-autoencoder"]
    examples = problem.examples(lab.folder)
    chosen = np.random.default_rng(0).permutation(len(examples.inputs))[:EVALUATED]
    return Study(
        "autoencoder",
        examples,
        (examples.inputs[chosen], examples.targets[chosen]),
        lambda: networks.dense(widths, "tanh", code=30),
        problem.loss,
        optimizer,
        problem.loss_weight,
    )


def optimizer(trial: Trial, model: keras.Model) -> keras.optimizers.Optimizer:
    """KFAC as it is, or SGD with Nesterov's momentum."""
    if trial.optimizer == "KFAC":
        return tfkfac.KFAC(**trial.options)
    return keras.optimizers.SGD(nesterov=True, **trial.options)


UPDATES = 100_000
"""Of a training, at most: the seconds end it."""


def trial_of(
    name: str, options: Mapping[str, float], batches: Batches, seconds: float, seed: int = 0
) -> Trial:
    """A training that lasts so many seconds."""
    averaged = {**options, **AVERAGE}
    return Trial("autoencoder", name, averaged, batches, Budget(UPDATES, seconds), seed)


def tuned(lab: Laboratory, study: Study, size: Size) -> Run:
    """SGD at the usual batch size: the best of all settings for a short time, of some for long.

    These are the best two, and the best of each momentum: a large one may only begin slowly.
    """

    def with_seconds(options: Mapping[str, float], seconds: float) -> Run:
        return lab.run(study, trial_of("SGD", options, Batches(size.usual), seconds))

    tried = [
        {"learning_rate": rate, "momentum": momentum}
        for rate, momentum in itertools.product(size.rates, size.momenta)
    ]
    short = sorted(tried, key=lambda options: end(with_seconds(options, size.sifted)))
    of_each = [
        next(options for options in short if options["momentum"] == momentum)
        for momentum in size.momenta
    ]
    kept = [options for options in short if options in short[:2] or options in of_each]
    return min((with_seconds(options, size.whole) for options in kept), key=end)


def rate_at_large_batch(
    lab: Laboratory, study: Study, size: Size, best: Mapping[str, float]
) -> float:
    """SGD's learning rate at the very large batch size: the usual one, or three times as much."""

    def loss_with(rate: float) -> float:
        options = {**best, "learning_rate": rate}
        trial = trial_of("SGD", options, Batches(size.large), size.longest / 4)
        return end(lab.run(study, trial))

    usual = best["learning_rate"]
    return min((usual, float(f"{3 * usual:.2g}")), key=loss_with)


def end(run: Run) -> float:
    """The lower of the losses with the last and with the averaged weights."""
    return min(last_look(run), last_look(run, "averaged_loss"))


def to_target(run: Run, target: float) -> dict[str, float]:
    """Updates, seconds and examples until either was at the target."""
    with_last, averaged = (first_look_at(run, target, key) for key in ("loss", "averaged_loss"))
    return {key: min(with_last[key], averaged[key]) for key in with_last}


def conduct(lab: Laboratory) -> Findings:
    """Makes all trainings."""
    size = QUICK if lab.quick else FULL
    study = study_of(lab, size.network)
    usual = tuned(lab, study, size)
    best = {key: usual["options"][key] for key in ("learning_rate", "momentum")}
    at_large = {**best, "learning_rate": rate_at_large_batch(lab, study, size, best)}
    compared = [
        (Batches(size.usual), best, size.whole, size.whole),
        (size.growing, best, size.whole, size.whole),
        (Batches(size.small), best, 0.7 * size.whole, 0.7 * size.whole),
        (Batches(size.large), at_large, size.whole, size.longest),
    ]
    runs: dict[str, Run] = {}
    for seed, (batches, options, kfac, sgd) in itertools.product(range(lab.seeds), compared):
        label = f"m = {batches.first:,}" + (f" … {batches.last:,}" if batches.last else "")
        label += f", seed {seed}" if seed else ""
        for name, given, seconds in (("KFAC", {}, kfac), ("SGD", options, sgd)):
            trial = trial_of(name, given, batches, seconds, seed)
            runs[f"{name}, {label}"] = lab.run(study, trial)
    return Findings(tables(runs), figure_of(panels(runs)))


def tables(runs: Mapping[str, Run]) -> str:
    """A line a training, and what KFAC's best takes of SGD's best."""
    sgd = {label: run for label, run in runs.items() if run["optimizer"] == "SGD"}
    target = min(map(end, sgd.values()))
    rows = []
    for label, run in runs.items():
        options, look = run["options"], run["looks"][-1]
        told = [f"{options[key]:g}" for key in ("learning_rate", "momentum") if key in options]
        reached = to_target(run, target)
        rows.append(
            [
                label,
                ", ".join(told) or "–",
                f"{look['updates']}",
                *(_number(last_look(run, key), ".2f") for key in ("loss", "averaged_loss")),
                _number(reached["seconds"], ".1f"),
                _number(reached["updates"], ".0f"),
                _number(reached["examples"], ",.0f"),
            ]
        )
    headings = ["training", "rate, momentum", "updates made", "loss", "averaged weights"]
    headings += ["seconds to the target", "updates", "examples"]
    return "\n\n".join(
        [
            f"Target: a loss of {target:.2f}, the lowest at which SGD ends.",
            markdown.table(headings, rows),
            shares(runs, target),
        ]
    )


def shares(runs: Mapping[str, Run], target: float) -> str:
    """In each measure, the best training of KFAC against the best of SGD."""
    rows = []
    for key in ("seconds", "updates", "examples"):
        best: dict[str, tuple[float, str]] = {}
        for label, run in runs.items():
            found = (to_target(run, target)[key], label)
            best[run["optimizer"]] = min(best.get(run["optimizer"], (math.inf, "")), found)
        kfac, sgd = best["KFAC"], best["SGD"]
        form = ".1f" if key == "seconds" else ",.0f"
        cells = [f"{_number(value, form)} ({label})" for value, label in (kfac, sgd)]
        finite = math.isfinite(kfac[0]) and math.isfinite(sgd[0]) and kfac[0] > 0
        rows.append([key, *cells, f"{sgd[0] / kfac[0]:.1f}" if finite else "–"])
    return markdown.table(["to the target", "KFAC", "SGD", "times fewer"], rows)


def _number(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else "–"


def panels(runs: Mapping[str, Run]) -> list[Panel]:
    """By seconds, by iterations and by data; the better of last and averaged weights."""
    batches = list(dict.fromkeys(label.split(",", 1)[1] for label in runs))
    styles = {}
    for label, run in runs.items():
        color = batches.index(label.split(",", 1)[1])
        styles[label] = (color, "-" if run["optimizer"] == "KFAC" else "--")
    found = []
    for x in ("seconds", "updates", "examples"):
        lines = {}
        for label, run in runs.items():
            (counts, last), (_, averaged) = (
                line_of(run, x, key) for key in ("loss", "averaged_loss")
            )
            lines[label] = (counts, list(map(min, last, averaged)))
        scale = "linear" if x == "seconds" else "log"
        found.append(Panel(x, "training loss", lines, scale, styles=styles))
    return found


EXPERIMENT = Experiment(
    "the MNIST autoencoder by seconds, iterations and data, against tuned SGD",
    ("mnist.npz",),
    minutes=33,
    quick_minutes=2,
    conduct=conduct,
)
