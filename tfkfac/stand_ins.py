"""Objects that stand in for a method or an activation of one Keras object, and let others watch."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf


class StandIn:
    """Stands in for a bound method of one object and lets observers wrap each call.

    Args:
        method: The method.
        own: What the instance itself had under the method's name, or None.
    """

    def __init__(self, method: Callable[..., Any], own: Any) -> None:
        self.method = method
        self.own = own
        self.observers: list[Callable[..., Any]] = []
        functools.update_wrapper(self, method)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the method through all observers, the first one innermost."""
        call = self.method
        for observer in self.observers:
            call = functools.partial(observer, call)
        return call(*args, **kwargs)


class _NotingActivation:
    """Stands in for a layer's activation, which Keras layers apply last, and notes its argument."""

    def __init__(self, activation: Any, tape: tf.GradientTape, noted: list[tf.Tensor]) -> None:
        self._activation = activation
        self._tape = tape
        self._noted = noted

    def __call__(self, preactivations: tf.Tensor, *args: Any, **kwargs: Any) -> Any:
        self._tape.watch(preactivations)
        self._noted.append(preactivations)
        if self._activation is None:
            return preactivations
        return self._activation(preactivations, *args, **kwargs)


@contextlib.contextmanager
def noting_preactivations(layer: Any, tape: tf.GradientTape) -> Iterator[list[tf.Tensor]]:
    """While the context lasts, notes what the layer's activation is applied to."""
    noted: list[tf.Tensor] = []
    attributes = vars(layer)
    activation = attributes["activation"]
    attributes["activation"] = _NotingActivation(activation, tape, noted)
    try:
        yield noted
    finally:
        attributes["activation"] = activation
