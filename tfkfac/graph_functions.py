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

_COLLECTION = "tfkfac/functions"
"""Under which a graph keeps a dictionary: Python function → what is traced of it."""


def once_per_shape(function: Callable[..., Result]) -> Callable[..., Result]:
    """A function of tensors alone, without side effects, that graphs hold once for each shape.

    Args:
        function: From tensors to tensors; it must not capture any.
    """

    @functools.wraps(function)
    def call(*tensors: Any) -> Any:
        if tf.executing_eagerly():
            return function(*tensors)
        held = _outermost_graph().get_collection_ref(_COLLECTION)
        if not held:
            held.append({})
        if function not in held[0]:
            attributes = {"_noinline": True}
            held[0][function] = tf.function(
                function, autograph=False, experimental_attributes=attributes
            )
        # Not called itself: TensorFlow would warn of a function that is traced for many shapes.
        return held[0][function].get_concrete_function(*tensors)(*tensors)

    return call


def _outermost_graph() -> tf.Graph:
    """That of the step, also while a branch or a loop in it is traced; functions end with it."""
    graph = tf.compat.v1.get_default_graph()
    while hasattr(getattr(graph, "outer_graph", None), "outer_graph"):
        graph = graph.outer_graph
    return graph
