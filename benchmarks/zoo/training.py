"""One training of a problem with an optimizer, as it goes into the file."""

from __future__ import annotations

import dataclasses
import gc
import math
from typing import Any

import keras
import numpy as np

from benchmarks import machine
from benchmarks.zoo import networks
from benchmarks.zoo.budget import Budget
from benchmarks.zoo.curves import LossCurve, curve_in_file, rounded
from benchmarks.zoo.data import Examples
from benchmarks.zoo.optimizers import optimizer
from benchmarks.zoo.problems import Problem

DIVERGED = 2.0
"""A training that ends above this multiple of its first loss has diverged, too."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a training depends on.

    Attributes:
        problem: Its name.
        optimizer: Its name.
        learning_rate: None for KFAC.
        seed: Of weights, order of the examples and sampled targets.
        budget: How long it may take.
    """

    problem: str
    optimizer: str
    learning_rate: float | None
    seed: int
    budget: Budget

    def in_file(self) -> dict[str, Any]:
        """As in the file."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        """For the progress bar."""
        rate = "" if self.learning_rate is None else f" {self.learning_rate:g}"
        return f"{self.optimizer}{rate}, seed {self.seed}"


def compiled(problem: Problem, examples: Examples, setting: Setting) -> keras.Model:
    """The model with its optimizer; with the same seed, the weights are the same for everyone.

    The model comes first: KFAC draws its seed from the random numbers that the weights come from.
    """
    keras.utils.set_random_seed(setting.seed)
    model = problem.network(examples)
    made = optimizer(setting.optimizer, setting.learning_rate, model, problem.clipnorm)
    model.compile(made, problem.loss(), loss_weights=problem.loss_weight)
    return model


def train(problem: Problem, examples: Examples, setting: Setting) -> dict[str, Any]:
    """Trains, and returns what became of it: JSON, in which None stands for what is not finite.

    Args:
        problem: What is trained.
        examples: Its data.
        setting: With what it is trained, and how long.
    """
    model = compiled(problem, examples, setting)
    curve = LossCurve(setting.budget, problem.smoothing)
    # Before the curve: forgetting what was read is not part of a step.
    callbacks = [FreshStreams(examples.batches(problem.batch_size))] if examples.streams else []
    others = machine.OtherWork()
    model.fit(
        examples.training(problem.batch_size, setting.seed),
        steps_per_epoch=setting.budget.updates,
        callbacks=[*callbacks, curve],
        shuffle=False,  # Done already.
        verbose=0,
    )
    share = others.share()
    evaluated = model.evaluate(
        examples.evaluation(problem.batch_size), callbacks=callbacks, verbose=0
    )
    keras.backend.clear_session()
    gc.collect()
    told = {"evaluated": _finite(evaluated), "others": share and rounded(share)}
    return setting.in_file() | outcome(curve, problem.smoothing) | told


def outcome(curve: LossCurve, smoothing: int) -> dict[str, Any]:
    """The curve and its end."""
    in_file = curve_in_file(curve, smoothing)
    losses = in_file["losses"] or [math.inf]  # The first loss may be the one.
    diverged = curve.diverged or not losses[-1] <= DIVERGED * losses[0]
    return {
        "smoothing": smoothing,
        "diverged": diverged,
        "end": None if diverged else losses[-1],
        "first_step": round(curve.first_step, 3),
        "curve": in_file,
    }


class FreshStreams(networks.ptb_lstm.FreshStreams):
    """Lets the LSTMs forget what they read, where all streams begin again.

    Args:
        pieces: Batches of one pass over the streams.
    """

    def __init__(self, pieces: int) -> None:
        super().__init__()
        self._pieces = pieces

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Forgets, if this is the first batch of a pass."""
        if batch % self._pieces == 0:
            self._forget()


def _finite(number: Any) -> float | None:
    return rounded(float(number)) if np.isfinite(number) else None
