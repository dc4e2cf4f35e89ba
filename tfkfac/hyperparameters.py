"""Numbers that steer a step: fixed, assignable while training, scheduled, or "auto".

They behave as ``learning_rate`` does in Keras: a number lives in a variable of the optimizer, so
that assigning it needs no recompilation; a schedule is a function of the count of steps.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import keras
import tensorflow as tf

LearningRateSchedule = keras.optimizers.schedules.LearningRateSchedule


@dataclasses.dataclass(frozen=True)
class Range:
    """Which numbers a hyper-parameter may be.

    Attributes:
        minimum: The least.
        maximum: The greatest.
        open_below: Whether the least itself is excluded.
        open_above: Whether the greatest itself is excluded.
        integer: Whether only whole numbers are allowed.
        schedulable: Whether a schedule may be given instead of a number.
        automatic: Whether "auto" may be given instead of a number.
    """

    minimum: float = 0.0
    maximum: float = math.inf
    open_below: bool = False
    open_above: bool = False
    integer: bool = False
    schedulable: bool = True
    automatic: bool = False

    def check(self, name: str, value: Any) -> None:
        """Raises a ValueError that names the argument unless `value` is allowed."""
        try:
            number = math.nan if isinstance(value, str | bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        above = number > self.minimum or (number == self.minimum and not self.open_below)
        below = number < self.maximum or (number == self.maximum and not self.open_above)
        whole = not self.integer or number == int(number) if math.isfinite(number) else False
        if not (above and below and whole):
            raise ValueError(f"Argument `{name}` must be {self}, got {name}={value!r}.")

    def __str__(self) -> str:
        """In words."""
        kind = "an integer" if self.integer else "a number"
        words = [f"{kind} {'>' if self.open_below else '>='} {self.minimum:g}"]
        if self.maximum < math.inf:
            words.append(f"{'<' if self.open_above else '<='} {self.maximum:g}")
        others = ["'auto'"] if self.automatic else []
        if self.schedulable and not self.integer:
            others.append("a keras.optimizers.schedules schedule")
        return " and ".join(words) + (f" (or {', or '.join(others)})" if others else "")


class Hyperparameter:
    """An attribute of the optimizer that reads as a tensor and can be assigned a number.

    Args:
        allowed: The numbers it may be.
        optional: Whether None is allowed too, for good: it stands for "not in use".
        start: What an "auto" one reads before the first step.
    """

    def __init__(self, allowed: Range, *, optional: bool = False, start: float = 0.0) -> None:
        self.allowed = allowed
        self.optional = optional
        self.start = start

    def __set_name__(self, owner: type, name: str) -> None:
        """Notes under which name the optimizer has it."""
        self.name = name
        self.slot = f"_hyper_{name}"

    def create(self, optimizer: Any, value: Any) -> None:
        """Checks the constructor's argument and keeps it in the optimizer.

        Raises:
            ValueError: The number is not allowed.
        """
        unused = value is None and self.optional
        scheduled = isinstance(value, LearningRateSchedule) and not self.allowed.integer
        if self.allowed.automatic and is_auto(value):
            optimizer.automatic.add(self.name)
            value = self.start
        elif not unused and not scheduled:
            self.allowed.check(self.name, value)
        if not unused and not scheduled:
            value = optimizer.add_variable(
                shape=(),
                initializer=_constant(value),
                dtype="int64" if self.allowed.integer else keras.config.floatx(),
                aggregation="only_first_replica",
                name=self.name,
            )
        setattr(optimizer, self.slot, value)

    def config(self, optimizer: Any) -> Any:
        """What `get_config` tells of it."""
        value = getattr(optimizer, self.slot)
        if self.name in optimizer.automatic:
            return AUTO
        if isinstance(value, LearningRateSchedule):
            return keras.optimizers.schedules.serialize(value)
        if value is None:
            return None
        return int(value.numpy()) if self.allowed.integer else float(value.numpy())

    def __get__(self, optimizer: Any, owner: type | None = None) -> Any:
        """The value at the current step, a scalar tensor or variable."""
        if optimizer is None:
            return self
        value = getattr(optimizer, self.slot)
        if isinstance(value, LearningRateSchedule):
            return value(optimizer._iterations)
        return value

    def __set__(self, optimizer: Any, value: Any) -> None:
        """Assigns a number, or puts a schedule in its place.

        Raises:
            TypeError: A schedule is in force (as for Keras' learning rate), or "auto".
            ValueError: The number is not allowed.
        """
        refuse_if_automatic(optimizer, self.name)
        if isinstance(getattr(optimizer, self.slot), LearningRateSchedule):
            raise TypeError(
                f"This optimizer was created with a schedule as its `{self.name}`, which is then "
                "not settable; construct it with a number to assign numbers."
            )
        if not tf.is_tensor(value):
            self.allowed.check(self.name, value)
        if getattr(optimizer, self.slot) is None:
            raise ValueError(
                f"This optimizer was created with {self.name}=None, which switches it off for "
                f"good; construct it with a number to be able to assign one."
            )
        getattr(optimizer, self.slot).assign(value)

    def in_use(self, optimizer: Any) -> bool:
        """Whether it was not given as None."""
        return getattr(optimizer, self.slot) is not None

    def record(self, optimizer: Any, value: Any) -> None:
        """Makes the value that an "auto" one took in this step the one to be read."""
        variable = getattr(optimizer, self.slot)
        variable.assign(tf.cast(value, variable.dtype))


def is_auto(value: Any) -> bool:
    """Whether an argument is the word "auto"."""
    return isinstance(value, str) and value == AUTO


def refuse_if_automatic(optimizer: Any, name: str) -> None:
    """Raises if a hyper-parameter adapts by itself: an assigned number would not last.

    Raises:
        TypeError: As Keras does for schedules.
    """
    if name in optimizer.automatic:
        raise TypeError(
            f"This optimizer was created with {name}='auto', which is then not settable; construct "
            "it with a number to assign numbers."
        )


AUTO = "auto"
"""Stands for a hyper-parameter that adapts by itself."""


def hyperparameters_of(optimizer_class: type) -> dict[str, Hyperparameter]:
    """Name → hyper-parameter of an optimizer class."""
    return {
        name: value
        for base in optimizer_class.__mro__
        for name, value in vars(base).items()
        if isinstance(value, Hyperparameter)
    }


def require_patterns(name: str, patterns: Any) -> tuple[str, ...]:
    """Raises unless `patterns` are regular expressions, which are returned."""
    if isinstance(patterns, str):
        raise ValueError(
            f"Argument `{name}` must be a sequence of regular expressions, got the string "
            f"{patterns!r}; write {name}=({patterns!r},)."
        )
    if not isinstance(patterns, Iterable) or not all(isinstance(each, str) for each in patterns):
        raise ValueError(
            f"Argument `{name}` must be a sequence of regular expressions, got {patterns!r}."
        )
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f"Argument `{name}`: {pattern!r} is no regular expression ({error}); write "
                "re.escape(...) around a name."
            ) from error
    return tuple(patterns)


def require_integer(name: str, value: Any, *, minimum: int) -> int:
    """Raises unless `value` is an integer of at least `minimum`, which is returned."""
    Range(minimum, integer=True).check(name, value)
    return int(value)


def require_choice(name: str, value: Any, choices: Any) -> None:
    """Raises unless `value` is one of `choices`."""
    if value not in list(choices):
        allowed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"Argument `{name}` must be one of {allowed}; got {name}={value!r}.")


def _constant(value: float) -> Callable[..., Any]:
    return keras.initializers.Constant(value)
