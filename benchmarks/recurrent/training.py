"""One training of a recurrent network, as it goes into the file."""

from __future__ import annotations

import gc
import math
from typing import Any

import keras

from benchmarks.recurrent.problems import Problem
from benchmarks.zoo.budget import Budget
from benchmarks.zoo.curves import LossCurve


def train(problem: Problem, name: str, tuned: float, seed: int) -> dict[str, Any]:
    """Trains, and returns what became of it: JSON, in which None stands for what is not finite.

    Seconds are those in training steps, tracing included. A loss that is not finite ends the
    training; what would have come after it is None, too.

    Args:
        problem: What is trained.
        name: Of the optimizer.
        tuned: Its number.
        seed: Of weights, order of the examples and sampled targets.
    """
    keras.utils.set_random_seed(seed)
    curve = LossCurve(Budget(problem.updates), smoothing=1)
    epochs = -(-problem.updates // problem.batches)
    unseen = problem.train(problem.optimizers[name](tuned, seed), [curve], epochs)
    keras.backend.clear_session()
    gc.collect()
    return {"unseen": _finite(unseen)} | outcome(curve, problem.updates)


def outcome(curve: LossCurve, updates: int) -> dict[str, Any]:
    """Losses and seconds of every update; those that were not made took no time.

    Args:
        curve: Of the training.
        updates: That were to be made.
    """
    tracing = curve.first_step - (curve.seconds or [0.0])[0]
    seconds = [round(second + tracing, 3) for second in curve.seconds]
    missing = updates - len(seconds)
    return {
        "losses": [*(round(loss, 5) for loss in curve.losses), *[None] * missing],
        "seconds": [*seconds, *(seconds or [0.0])[-1:] * missing],
    }


def _finite(number: float) -> float | None:
    return round(number, 5) if math.isfinite(number) else None
