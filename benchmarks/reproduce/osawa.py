"""Osawa et al. 2019: large batches with warm-up, polynomial decay and rescaled weights.

A convolutional network with batch normalisation on MNIST, the same epochs at every batch size, the
largest nearly a third of the data. K-FAC's learning rate rises for the first updates and falls as a
polynomial, its momentum in proportion; convolutions are rescaled after every update, weights decay
but for those of normalisations. SGD has the same schedule of the learning rate, momentum 0.9, and
the same decay. Then the stages of a distributed step are timed on ranks of Horovod.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import keras

import tfkfac
from benchmarks import markdown
from benchmarks.reproduce import stages
from benchmarks.reproduce.experiment import Experiment, Findings, Laboratory
from benchmarks.reproduce.panels import Panel, figure_of, line_of
from benchmarks.reproduce.recipe import WarmUpThenDecay, rescale_after_updates
from benchmarks.reproduce.trials import Batches, Study, Trial, last_look
from benchmarks.zoo import data, networks
from benchmarks.zoo.budget import Budget
from benchmarks.zoo.data import Examples
from benchmarks.zoo.results import Run

POWER = 2.0
"""Of the polynomial."""
MOMENTUM = 0.9
DECAY = 1e-4
"""Of the weights, but for those of normalisations."""

KFAC: Mapping[str, Any] = {"warm_up": 0.1, "momentum_falls": True, "rescaled": True}
SGD: Mapping[str, Any] = {"warm_up": 0.1, "momentum_falls": False, "rescaled": False}
WITHOUT: Mapping[str, Mapping[str, Any]] = {
    "without rescaling": {"rescaled": False},
    "without warm-up": {"warm_up": 0.0},
    "with constant momentum": {"momentum_falls": False},
}
"""What is left away of K-FAC's recipe at the largest batch."""


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is done.

    Attributes:
        images: That are trained on.
        judged: Others.
        filters: Of the convolutions.
        batches: Sizes, ascending.
        epochs: Of every training.
        parts: How many parts of the recipe are left away, one at a time.
        kfac_rates: Peaks of K-FAC's learning rate.
        sgd_rates: Peaks of SGD's at the smallest batch; at others the best of them, as it is, and
            scaled with the batch or with its root.
        seconds: Of a training, at most.
        ranks: Of Horovod.
        rounds: Alternations of what is timed there.
    """

    images: int = 50_000
    judged: int = 5000
    filters: tuple[int, ...] = (8, 16, 32)
    batches: tuple[int, ...] = (1024, 4096, 16_384)
    epochs: int = 8
    parts: int = len(WITHOUT)
    kfac_rates: tuple[float, ...] = (0.1, 0.3, 1.0)
    sgd_rates: tuple[float, ...] = (0.1, 0.3, 1.0)
    seconds: float = 900
    ranks: tuple[int, ...] = (1, 2, 4)
    rounds: int = 5


FULL = Size()
QUICK = Size(1000, 200, (2, 4), (500,), 1, 1, (0.1,), (0.1,), 10, (2,), 1)


def study_of(lab: Laboratory, size: Size) -> Study:
    """The network, judged now and then on images that are not trained on."""
    images, labels = data.mnist(lab.folder)
    images = images[..., None]
    own, others = slice(size.images), slice(size.images, size.images + size.judged)
    return Study(
        "convnet",
        Examples(images[own], labels[own], 10),
        (images[others], labels[others]),
        lambda: networks.normalised_convnet(size.filters),
        lambda: keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        optimizer,
    )


def optimizer(trial: Trial, model: keras.Model) -> keras.optimizers.Optimizer:
    """With the recipe that the trial's options tell."""
    options, updates = trial.options, trial.budget.updates
    shape = {"warm_up": int(options["warm_up"] * updates), "updates": updates, "power": POWER}
    rate = WarmUpThenDecay(options["learning_rate"], **shape)
    momentum = WarmUpThenDecay(MOMENTUM, **shape) if options["momentum_falls"] else MOMENTUM
    if options["rescaled"]:
        rescale_after_updates(model)
    kind = keras.optimizers.SGD if trial.optimizer == "SGD" else tfkfac.KFAC
    made = kind(rate, momentum=momentum, weight_decay=DECAY)
    made.exclude_from_weight_decay(var_names=["gamma", "beta"])
    return made


@dataclasses.dataclass(frozen=True)
class Bench:
    """Trains with a recipe.

    Attributes:
        lab: Where.
        study: What.
        size: How much.
    """

    lab: Laboratory
    study: Study
    size: Size

    def run(
        self, name: str, batch: int, rate: float, options: Mapping[str, Any], seed: int = 0
    ) -> Run:
        """All epochs."""
        updates = max(2, self.size.epochs * self.size.images // batch)
        budget = Budget(updates, self.size.seconds)
        given = {"learning_rate": rate, **options}
        return self.lab.run(
            self.study, Trial(self.study.name, name, given, Batches(batch), budget, seed)
        )

    def best(self, name: str, batch: int, rates: Sequence[float], options: Any) -> Run:
        """With the best of some peaks."""
        return min((self.run(name, batch, rate, options) for rate in rates), key=last_look)


def conduct(lab: Laboratory) -> Findings:
    """Trains at all batch sizes, leaves parts of the recipe away, and times the stages."""
    if importlib.util.find_spec("horovod") is None:
        raise ValueError("osawa times ranks of Horovod; install it: tools/install_horovod.sh.")
    size = QUICK if lab.quick else FULL
    bench = Bench(lab, study_of(lab, size), size)
    runs: dict[str, Run] = {}
    for batch in size.batches:
        runs[f"KFAC, batch {batch:,}"] = bench.best("KFAC", batch, size.kfac_rates, KFAC)
    smallest = bench.best("SGD", size.batches[0], size.sgd_rates, SGD)
    usual = smallest["options"]["learning_rate"]
    for batch in size.batches:
        ratio = batch / size.batches[0]
        rates = sorted({float(f"{usual * ratio**power:.3g}") for power in (0, 0.5, 1)})
        runs[f"SGD, batch {batch:,}"] = bench.best("SGD", batch, rates, SGD)
    last = size.batches[-1]
    peak = runs[f"KFAC, batch {last:,}"]["options"]["learning_rate"]
    for label, changed in list(WITHOUT.items())[: size.parts]:
        runs[f"KFAC, batch {last:,}, {label}"] = bench.run("KFAC", last, peak, {**KFAC, **changed})
    for label, run in list(runs.items()):
        for seed in range(1, lab.seeds):
            name, batch, options = run["optimizer"], run["batches"]["first"], dict(run["options"])
            again = bench.run(name, batch, options.pop("learning_rate"), options, seed)
            runs[f"{label}, seed {seed}"] = again
    timed = [
        lab.results.get({"stages": True, "ranks": ranks, "rounds": size.rounds}, stages.of_ranks)
        for ranks in size.ranks
    ]
    text = "\n\n".join([accuracies(runs), stage_table(timed)])
    return Findings(text, figure_of([*panels(runs), stage_panel(timed)]))


def accuracies(runs: Mapping[str, Run]) -> str:
    """A line a training."""
    rows = []
    for label, run in runs.items():
        last = run["looks"][-1]
        rows.append(
            [
                label,
                f"{run['options']['learning_rate']:g}",
                f"{last['updates']}",
                f"{100 * last['accuracy']:.2f} %",
                f"{last_look(run):.4f}",
                "diverged" if run["end"] is None else f"{run['end']:.4f}",
                f"{last['seconds']:.1f}",
            ]
        )
    headings = ["training", "peak learning rate", "updates", "accuracy", "loss"]
    return markdown.table([*headings, "training loss", "seconds"], rows)


def stages_of(timed: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """Stage → its seconds, and those of its exchange alone.

    Args:
        timed: Seconds of whole steps, and of exchanges.
    """
    return {
        "forward and backward pass": (timed["sgd"], 0.0),
        "statistics, to their owners": (
            timed["no inverses"] - timed["no statistics"],
            timed["exchange statistics"],
        ),
        "inverses": (timed["everything"] - timed["no inverses"], 0.0),
        "gradients, preconditioning, directions": (
            timed["no statistics"] - timed["sgd"],
            timed["exchange gradients"] + timed["exchange directions"],
        ),
        "step": (
            timed["everything"],
            sum(value for key, value in timed.items() if key.startswith("exchange")),
        ),
    }


def stage_table(timed: Sequence[Mapping[str, Any]]) -> str:
    """A line a stage: milliseconds for each number of ranks, and of its exchanges."""
    headings = ["stage, ms"]
    for each in timed:
        headings += [f"{each['ranks']} ranks" if each["ranks"] > 1 else "1 rank"]
        headings += ["exchanges alone"] if each["ranks"] > 1 else []
    rows = []
    for stage in stages_of(timed[0]):
        cells = [stage]
        for each in timed:
            whole, sent = stages_of(each)[stage]
            cells += [f"{1e3 * whole:.1f}"] + ([f"{1e3 * sent:.1f}"] if each["ranks"] > 1 else [])
        rows.append(cells)
    return (
        f"A step of {stages.PER_RANK} images a rank that updates all factors and inverses, "
        "layers placed by mem_opt:\n\n" + markdown.table(headings, rows)
    )


def panels(runs: Mapping[str, Run]) -> list[Panel]:
    """Errors by updates: both optimizers at all sizes; K-FAC's parts."""

    def errors(label: str) -> tuple[list[float], list[float]]:
        updates, found = line_of(runs[label], "updates", "accuracy")
        return list(updates), [max(1e-3, 1 - accuracy) for accuracy in found]

    drawn = [label for label in runs if ", seed" not in label]
    whole = [label for label in drawn if not any(part in label for part in WITHOUT)]
    largest = [label for label in whole if label.startswith("KFAC")][-1]
    parts = [largest, *(label for label in drawn if label not in whole)]
    compared = {label: errors(label) for label in whole}
    half = len(whole) // 2
    styles = {
        label: (place % half, "-" if place < half else "--") for place, label in enumerate(whole)
    }
    return [
        Panel("updates", "error on images not trained on", compared, "log", styles=styles),
        Panel("updates", "error", {label: errors(label) for label in parts}, "log"),
    ]


def stage_panel(timed: Sequence[Mapping[str, Any]]) -> Panel:
    """Milliseconds by ranks."""
    ranks = [each["ranks"] for each in timed]
    lines = {
        stage: (ranks, [1e3 * max(stages_of(each)[stage][0], 1e-5) for each in timed])
        for stage in stages_of(timed[0])
    }
    return Panel("ranks", "milliseconds", lines, "log", "linear", marker="o")


EXPERIMENT = Experiment(
    "large batches with warm-up, decay and rescaling; stages of a step on ranks of Horovod",
    ("mnist.npz",),
    minutes=19,
    quick_minutes=2,
    conduct=conduct,
)
