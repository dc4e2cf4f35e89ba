"""The time that parts of a step take, measured where they run: no step waits for the host."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from tfkfac.variable_reads import current_graph


class Stopwatch:
    """Adds up the seconds of what is computed while it runs.

    It is off until someone wants to know: in a graph, what is measured cannot overlap with what
    comes before and after. Graphs that XLA compiles have no clock; there it must stay off.

    Attributes:
        on: Whether times are taken.
        seconds: The variable that holds the sum, once there is one.
    """

    def __init__(self) -> None:
        self.on = False
        self.seconds: Any = None

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Measures what is computed within the context."""
        if not self.on:
            yield
            return
        graph = current_graph()
        start = tf.timestamp()
        made_before = len(graph.get_operations()) if graph is not None else 0
        with tf.control_dependencies([start]):
            yield
        made = graph.get_operations()[made_before:] if graph is not None else []
        with tf.control_dependencies(made):
            elapsed = tf.timestamp() - start
        self.seconds.assign_add(elapsed)
