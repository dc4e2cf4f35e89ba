"""The replicas of a ``tf.distribute`` strategy as workers."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfkfac import keras_internals
from tfkfac.distribution.workers import Workers


class Replicas(Workers):
    """The replicas of MirroredStrategy or MultiWorkerMirroredStrategy.

    Every replica has a copy of every variable. All copies are changed alike, each by its own
    replica (the variables have no aggregation, so that nothing is exchanged for that).

    Args:
        strategy: The strategy, with several replicas.
    """

    repeats = 1

    def __init__(self, strategy: tf.distribute.Strategy) -> None:
        self._strategy = strategy
        self.number = strategy.num_replicas_in_sync
        self.process, self.processes = _process_of(strategy)
        self._exchanged = tf.function(
            lambda numbers: strategy.run(self.exchange, args=(numbers,)), reduce_retracing=True
        )

    def conduct(self, step: Callable[..., None], *own: Any) -> None:
        """Merges the replicas: a branch may lead to an exchange only outside of them."""

        def merged(strategy: Any, *of_replicas: Any) -> None:
            del strategy
            step(*of_replicas)

        context = tf.distribute.get_replica_context()
        context.merge_call(merged, args=own)

    def each(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """In replica context again."""
        work = tf.autograph.experimental.do_not_convert(work)
        return self._strategy.extended.call_for_each_replica(work, args=arguments)

    def here(self) -> int:
        """Counted over all processes."""
        return current_replica()

    def first(self, values: Any) -> Any:
        """Those of this process' first replica."""
        return tf.nest.map_structure(
            lambda value: self._strategy.experimental_local_results(value)[0], values
        )

    def sum(self, tensors: Sequence[Any]) -> list[Any]:
        """One all-reduce of the strategy's own, which puts tensors together as it sees fit."""
        pairs = [(tensor, tensor) for tensor in tensors]
        return list(self._strategy.extended.batch_reduce_to(tf.distribute.ReduceOp.SUM, pairs))

    def collect(self, vectors: Any, sizes: Sequence[int], groups: Sequence[tuple[int, ...]]) -> Any:
        """The sum of vectors that are zero for all replicas but one."""
        del groups

        def own(vector: tf.Tensor) -> list[tf.Tensor]:
            here = self.here()
            zeros = [tf.zeros([size], vector.dtype) for size in sizes]
            return [*zeros[:here], vector, *zeros[here + 1 :]]

        return self.sum(self.each(own, vectors))

    def copies_here(self, variable: Any) -> list[Any]:
        """Of the replicas of this process."""
        uncast = keras_internals.uncast(variable)
        return list(self._strategy.experimental_local_results(uncast))

    def tell_all(self, value: Any) -> list[Any]:
        """By pickling; the first replica of every process speaks for it.

        Within a step nothing can be told: a process then hears itself alone.
        """
        in_step = not tf.executing_eagerly() or _is_of_replica(self._strategy)
        if self.processes == 1 or in_step:
            return [value]
        told = tf.constant(list(pickle.dumps(value)), tf.int32)
        sizes = self._rows_of_processes(tf.shape(told))[:, 0]
        rows = self._rows_of_processes(tf.pad(told, [[0, tf.reduce_max(sizes) - tf.size(told)]]))
        pairs = zip(rows.numpy(), sizes.numpy(), strict=True)
        return [pickle.loads(row[:size].astype("uint8").tobytes()) for row, size in pairs]

    def _rows_of_processes(self, numbers: tf.Tensor) -> tf.Tensor:
        """``[k]`` of every process → ``[P, k]``."""
        of_replicas = self.first(self._exchanged(numbers))
        return of_replicas[:: self.number // self.processes]

    def exchange(self, numbers: tf.Tensor) -> tf.Tensor:
        """The sum of rows that are zero for all replicas but one."""
        row = tf.one_hot(self.here(), self.number, dtype=numbers.dtype)[:, None]
        context = tf.distribute.get_replica_context()
        return context.all_reduce(tf.distribute.ReduceOp.SUM, row * numbers[None])


def _process_of(strategy: tf.distribute.Strategy) -> tuple[int, int]:
    """The number of this process of a strategy, and how many there are."""
    resolver = strategy.cluster_resolver
    if resolver is None or not resolver.cluster_spec().jobs:
        return 0, 1
    cluster = resolver.cluster_spec()
    chiefs, others = (cluster.num_tasks(j) if j in cluster.jobs else 0 for j in ("chief", "worker"))
    return resolver.task_id + (chiefs if resolver.task_type == "worker" else 0), chiefs + others


def _is_of_replica(strategy: tf.distribute.Strategy) -> bool:
    """Whether a replica of the strategy is at work."""
    context = tf.distribute.get_replica_context()
    return context is not None and context.strategy is strategy


def current_replica() -> int:
    """The number of the replica whose step is being made, over all processes; 0 outside of any."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return 0
    return int(tf.get_static_value(context.replica_id_in_sync_group))
