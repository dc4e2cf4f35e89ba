"""KFAC as it is without arguments, and first-order optimizers at learning rates on a grid."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import keras

import tfkfac
from benchmarks.zoo.problems import Problem

Make = Callable[..., keras.optimizers.Optimizer]

CENTRES = {"SGD": 1e-1, "Adam": 1e-3, "AdamW": 1e-3, "Muon": 1e-2}
"""First-order optimizer → the middle of its learning rates."""

NAMES = ("KFAC", *CENTRES)


def rates(problem: Problem, name: str) -> list[float]:
    """Seven learning rates, 1 and 3 of each power of ten, a factor of a thousand in all.

    Args:
        problem: It may have a middle of its own.
        name: Of a first-order optimizer.
    """
    middle = round(math.log10(problem.centres.get(name, CENTRES[name])))
    return [float(f"{(1, 3)[half % 2]}e{middle + half // 2}") for half in range(-3, 4)]


def optimizer(
    name: str, learning_rate: float | None, model: keras.Model, clipnorm: float | None = None
) -> keras.optimizers.Optimizer:
    """A new optimizer.

    Args:
        name: One of `NAMES`.
        learning_rate: Of a first-order optimizer; None for KFAC.
        model: The model it is for, whose last layer Muon leaves to AdamW.
        clipnorm: Bound of the norm of a first-order gradient.

    Raises:
        ValueError: There is no optimizer of this name, or KFAC was given a learning rate.
    """
    if name not in NAMES:
        raise ValueError(f"Argument `name` must be one of {', '.join(NAMES)}; got {name!r}.")
    if name == "KFAC":
        if learning_rate is not None:
            raise ValueError(
                "Argument `learning_rate` must be None for KFAC, which runs without arguments; "
                f"got {learning_rate!r}."
            )
        return tfkfac.KFAC()
    options: dict[str, Any] = {} if clipnorm is None else {"global_clipnorm": clipnorm}
    if name == "SGD":
        options |= {"momentum": 0.9, "nesterov": True}
    if name == "Muon":  # As its documentation asks for.
        options |= {"exclude_layers": [f"(^|/){re.escape(model.layers[-1].name)}/"]}
    return getattr(keras.optimizers, name)(learning_rate, **options)
