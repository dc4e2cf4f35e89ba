"""Noticing that a variable is used where nobody watches: outside of the layer that owns it.

A transposed embedding that makes logits, the kernel of an encoder that decodes too, a wrapper that
reparameterises a kernel: the layer's own calls do not show all that the variable does. In a graph,
every use of a variable begins with an operation that reads it, and these can be counted.
"""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import tensorflow as tf

from tfkfac import keras_internals

_READS = ("ReadVariableOp", "ResourceGather", "ResourceGatherNd")


class VariableReads:
    """Counts in one graph the reads within layers' own calls against all there are.

    Args:
        graph: A graph under construction; None (eager mode) counts nothing.
        variables: The variables.
    """

    def __init__(self, graph: Any, variables: Iterable[Any]) -> None:
        self._graph = graph
        self._within: collections.Counter[int] = collections.Counter()
        self._before = {id(v): self._count(v) for v in variables}

    @contextlib.contextmanager
    def within(self, variables: Iterable[Any]) -> Iterator[None]:
        """While the context lasts, reads are those of the variables' own layer."""
        before = [(variable, self._count(variable)) for variable in variables]
        yield
        for variable, count in before:
            self._within[id(variable)] += self._count(variable) - count

    def elsewhere(self, variables: Iterable[Any]) -> set[int]:
        """ids of the variables that were also read outside of their layer."""
        return {
            id(v)
            for v in variables
            if self._count(v) - self._before.get(id(v), 0) > self._within[id(v)]
        }

    def _count(self, variable: Any) -> int:
        if self._graph is None:
            return 0
        handle = self._graph.capture(keras_internals.uncast(variable).handle)
        return sum(op.type in _READS for op in handle.consumers())


def current_graph() -> Any:
    """The graph under construction, None in eager mode."""
    return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
