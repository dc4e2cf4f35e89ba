"""Functions that a graph holds once, however many layers call them.

TensorFlow writes the operations of a function into the graph of a step anew at every call, and the
time until the first step goes by the number of operations. What is long and is done for layer after
layer alike is therefore a function in the graph, one for each shape of its arguments.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import tensorflow as tf

Result = TypeVar("Result")


def once_per_shape(function: Callable[..., Result]) -> Callable[..., Result]:
    """A function of tensors alone, without side effects, that graphs hold once for each shape.

    Args:
        function: From tensors to tensors; it must not capture any.
    """
    traced = tf.function(function, autograph=False, experimental_attributes={"_noinline": True})

    @functools.wraps(function)
    def call(*tensors: tf.Tensor) -> Any:
        # Not `traced(...)`, which would warn of functions that are traced for many shapes.
        return traced.get_concrete_function(*tensors)(*tensors)

    return call
