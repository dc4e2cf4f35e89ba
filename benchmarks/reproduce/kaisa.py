"""Figure 1 of KAISA (Pauloski et al. 2021): a ResNet on CIFAR-10, SGD against K-FAC.

ResNet-20 with batch normalisation on the first 10,000 images, batch 128; 2000 others are judged.
SGD has momentum 0.9, weight decay, and a learning rate that is tuned and falls by ten after half
and after four fifths of the epochs. K-FAC is trained twice: with the same learning rate, schedule
and momentum and KAISA's numbers for the rest, and as it is without arguments.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import keras
import numpy as np

import tfkfac
from benchmarks import markdown
from benchmarks.reproduce.experiment import Experiment, Findings, Laboratory
from benchmarks.reproduce.panels import Panel, figure_of, line_of
from benchmarks.reproduce.trials import Batches, Study, Trial, last_look
from benchmarks.zoo import data, networks
from benchmarks.zoo.budget import Budget
from benchmarks.zoo.data import Examples
from benchmarks.zoo.results import Run

DECAY = 5e-4
"""Of the weights."""

KAISA = {
    "damping": 3e-3,
    "kl_clip": 1e-3,
    "factor_decay": 0.95,
    "factor_update_every": 10,
    "inverse_update_every": 100,
}
"""The defaults of its program for CIFAR-10, beside SGD's learning rate and momentum."""


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is done.

    Attributes:
        blocks: Of each width: 6n + 2 layers.
        images: That are trained on.
        judged: Others.
        batch: Of an update.
        epochs: Of a training.
        sifted: Epochs of each learning rate that is tried.
        rates: Of SGD.
        seconds: Of a training, at most.
    """

    blocks: int = 3
    images: int = 10_000
    judged: int = 2000
    batch: int = 128
    epochs: int = 8
    sifted: int = 2
    rates: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3)
    seconds: float = 3000

    @property
    def updates(self) -> int:
        """Of an epoch."""
        return self.images // self.batch


FULL = Size()
QUICK = Size(1, 64, 32, 16, 2, 1, (0.1,), 20)


def study_of(lab: Laboratory, size: Size) -> Study:
    """The network, judged after every epoch."""
    images, labels = data.cifar10(lab.folder, size.images + size.judged)
    own, others = slice(size.images), slice(size.images, None)
    return Study(
        f"resnet{6 * size.blocks + 2}",
        Examples(images[own], labels[own], 10),
        (images[others], labels[others]),
        lambda: networks.residual_network(size.blocks),
        lambda: keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        optimizer,
        every=size.updates,
    )


def optimizer(trial: Trial, model: keras.Model) -> keras.optimizers.Optimizer:
    """SGD, KFAC in its place, or KFAC as it is."""
    if trial.optimizer == "KFAC()":
        return tfkfac.KFAC()
    options = dict(trial.options)
    rate = options.pop("learning_rate")
    falls = [int(share * trial.budget.updates) for share in (0.5, 0.8)]
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay(
        falls, [rate, 0.1 * rate, 0.01 * rate]
    )
    kind = keras.optimizers.SGD if trial.optimizer == "SGD" else tfkfac.KFAC
    return kind(schedule, momentum=0.9, weight_decay=DECAY, **options)


def conduct(lab: Laboratory) -> Findings:
    """Tunes SGD, and trains all three."""
    size = QUICK if lab.quick else FULL
    study = study_of(lab, size)

    def run(name: str, epochs: int, seed: int = 0, **options: float) -> Run:
        budget = Budget(epochs * size.updates, size.seconds)
        trial = Trial(study.name, name, options, Batches(size.batch), budget, seed)
        return lab.run(study, trial)

    best = min(size.rates, key=lambda rate: last_look(run("SGD", size.sifted, learning_rate=rate)))
    runs: dict[str, Run] = {}
    for seed in range(lab.seeds):
        label = f", seed {seed}" if seed else ""
        runs[f"SGD{label}"] = run("SGD", size.epochs, seed, learning_rate=best)
        runs[f"KFAC as in KAISA{label}"] = run(
            "KFAC", size.epochs, seed, learning_rate=best, **KAISA
        )
        runs[f"KFAC(){label}"] = run("KFAC()", size.epochs, seed)
    return Findings(tables(runs, size), figure_of(panels(runs, size)))


def tables(runs: Mapping[str, Run], size: Size) -> str:
    """A line a training: accuracies on the way, and when it is at SGD's best (the median seed)."""
    shown = [epoch for epoch in (1, 2, 4, 6, size.epochs) if epoch <= size.epochs]
    shown = sorted(set(shown))
    best_of_sgd = [
        max(look["accuracy"] for look in run["looks"])
        for label, run in runs.items()
        if label.startswith("SGD")
    ]
    target = float(np.median(best_of_sgd))
    rows = []
    for label, run in runs.items():
        at = {look["updates"] // size.updates: look["accuracy"] for look in run["looks"]}
        first = next((look for look in run["looks"] if look["accuracy"] >= target), None)
        last = run["looks"][-1]
        rows.append(
            [
                label,
                f"{run['options'].get('learning_rate', '–')}",
                *(f"{100 * at[epoch]:.1f} %" if epoch in at else "–" for epoch in shown),
                f"{last_look(run):.3f}",
                "–" if run["end"] is None else f"{run['end']:.3f}",
                f"{last['seconds'] / last['updates']:.2f}",
                "–" if first is None else f"{first['updates'] / size.updates:.0f}",
                "–" if first is None else f"{first['seconds']:.0f}",
            ]
        )
    headings = ["training", "learning rate"]
    headings += [f"accuracy, epoch {epoch}" for epoch in shown]
    headings += ["loss", "training loss", "seconds an update"]
    headings += [f"epochs to {100 * target:.1f} %", "seconds"]
    return (
        f"{size.images:,} images, {size.epochs} epochs of {size.updates} updates.\n\n"
        + markdown.table(headings, rows)
    )


def panels(runs: Mapping[str, Run], size: Size) -> list[Panel]:
    """Accuracy by epochs, as in the figure, and by seconds; training loss by updates.

    A colour an optimizer; other seeds than the first are dotted.
    """
    names = [label.split(", seed")[0] for label in runs]
    order = list(dict.fromkeys(names))
    styles = {
        label: (order.index(name), "-" if label == name else ":")
        for label, name in zip(runs, names, strict=True)
    }
    by_epochs = {}
    for label, run in runs.items():
        updates, accuracies = line_of(run, "updates", "accuracy")
        by_epochs[label] = ([each / size.updates for each in updates], accuracies)
    by_seconds = {label: line_of(run, "seconds", "accuracy") for label, run in runs.items()}
    losses = {
        label: (run["curve"]["updates"], run["curve"]["losses"]) for label, run in runs.items()
    }
    what = "accuracy on images not trained on"
    return [
        Panel("epochs", what, by_epochs, y_scale="linear", marker="o", styles=styles),
        Panel("seconds", what, by_seconds, y_scale="linear", marker="o", styles=styles),
        Panel("updates", "training loss", losses, styles=styles),
    ]


EXPERIMENT = Experiment(
    "figure 1: ResNet-20 on CIFAR-10, SGD against K-FAC",
    ("cifar10.npz",),
    minutes=10,
    quick_minutes=1,
    conduct=conduct,
)
