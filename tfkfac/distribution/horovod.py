"""The ranks of Horovod as workers."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from tfkfac import keras_internals
from tfkfac.distribution.workers import Workers


class Ranks(Workers):
    """The processes that ``horovodrun`` has started.

    A rank keeps the factors and inverses that it works with, and no others. All ranks make the same
    graph but for what they do with their own blocks, so an exchange has the same name everywhere:
    its number in the graph of the step.

    Args:
        horovod: The module ``horovod.tensorflow``, initialised.
    """

    keep_all_alike = False

    def __init__(self, horovod: Any) -> None:
        self._horovod = horovod
        self.number = self.repeats = self.processes = int(horovod.size())
        self._rank = self.process = int(horovod.rank())
        self._process_sets: dict[tuple[int, ...], Any] = {}
        self._counts: weakref.WeakKeyDictionary[Any, Iterator[int]] = weakref.WeakKeyDictionary()
        self._eager_count = itertools.count()
        with tf.init_scope():
            self._done = tf.Variable(0.0, trainable=False, name="exchanged")
            self._zero = tf.Variable([0.0], trainable=False, name="zero")

    def conduct(self, step: Callable[..., None], *own: Any) -> None:
        """Every rank runs the step itself."""
        step(*own)

    def each(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Calls it: every rank does."""
        return work(*arguments)

    def here(self) -> int:
        """The rank."""
        return self._rank

    def first(self, values: Any) -> Any:
        """The rank's own."""
        return values

    def form(self, groups: Sequence[tuple[int, ...]]) -> None:
        """Finds or makes a process set of every group that is neither one rank nor all.

        Raises:
            ValueError: Horovod was not initialised so that sets can be added.
        """
        for group in groups:
            if 1 < len(group) < self.number and group not in self._process_sets:
                try:
                    self._process_sets[group] = self._process_set_of(group)
                except ValueError as error:
                    raise ValueError(
                        "Argument `placement`: groups of ranks that are neither one nor all need "
                        "Horovod's process sets. Initialise it with "
                        'hvd.init(process_sets="dynamic"), or use placement="comm_opt" or '
                        f'"mem_opt" (Horovod says: {error}).'
                    ) from error

    def _process_set_of(self, group: tuple[int, ...]) -> Any:
        """Another optimizer's or the user's own if there is one: Horovod refuses a second."""
        number = self._numbers_of_process_sets().get(group)
        if number is None:
            return self._horovod.add_process_set(list(group))
        found = self._horovod.ProcessSet(list(group))
        found.process_set_id = number
        return found

    @staticmethod
    def _numbers_of_process_sets() -> dict[tuple[int, ...], int]:
        """Ranks → the number by which Horovod knows their process set."""
        from horovod.common import process_sets

        present = process_sets._basics._get_process_set_ids_and_ranks()
        return {tuple(ranks): number for number, ranks in present.items()}

    def sum(self, tensors: Sequence[Any]) -> list[Any]:
        """One all-reduce for each dtype; rows are gathered."""
        sums: list[Any] = list(tensors)
        of_dtype: dict[tf.DType, list[int]] = {}
        for position, tensor in enumerate(tensors):
            if isinstance(tensor, tf.IndexedSlices):
                sums[position] = self._gathered_rows(tensor)
            else:
                of_dtype.setdefault(tensor.dtype, []).append(position)
        for positions in of_dtype.values():
            vectors = [tf.reshape(tensors[position], [-1]) for position in positions]
            own = self._in_one(*vectors)
            sent = tf.cast(own, tf.float32) if own.dtype == tf.bfloat16 else own
            total = self._exchanged(self._horovod.allreduce, sent, op=self._horovod.Sum)
            total = tf.cast(total, own.dtype)
            parts = tf.split(total, [tf.size(vector) for vector in vectors], num=len(vectors))
            for position, part in zip(positions, parts, strict=True):
                shape = tensors[position].shape
                known = shape if shape.is_fully_defined() else tf.shape(tensors[position])
                sums[position] = tf.ensure_shape(tf.reshape(part, known), shape)
        return sums

    def to_owners(self, vectors: Sequence[Any], sizes: Sequence[int]) -> Any:
        """Everyone sends everyone what is meant for them: a reduce-scatter of unequal parts."""
        own = self._in_one(*vectors)
        bits = own.dtype == tf.bfloat16  # which Horovod does not know
        received, _ = self._exchanged(
            self._horovod.alltoall,
            tf.bitcast(own, tf.uint16) if bits else own,
            splits=tf.constant(sizes),
        )
        received = tf.bitcast(received, own.dtype) if bits else received
        of_ranks = tf.reshape(received, [self.number, sizes[self._rank]])
        half = of_ranks.dtype.size < 4
        return tf.reduce_sum(tf.cast(of_ranks, tf.float32) if half else of_ranks, axis=0)

    def collect(self, vectors: Any, sizes: Sequence[int], groups: Sequence[tuple[int, ...]]) -> Any:
        """Gathers within the group; who has nothing sends a zero, for Horovod wants something."""
        collected: list[tf.Tensor | None] = [None] * self.number
        group = next(group for group in groups if self._rank in group)
        if len(group) == 1 or not any(sizes[rank] for rank in group):
            self._next_number()  # for the other groups, who exchange something, count it
            collected[self._rank] = vectors
            return collected
        options = {} if len(group) == self.number else {"process_set": self._process_sets[group]}
        own = vectors if sizes[self._rank] else tf.zeros([1], vectors.dtype)
        gathered = self._exchanged(self._horovod.allgather, self._in_one(own), **options)
        parts = tf.split(gathered, [max(1, sizes[rank]) for rank in group])
        for rank, part in zip(group, parts, strict=True):
            collected[rank] = part[: sizes[rank]]
        return collected

    def exchange(self, numbers: tf.Tensor) -> tf.Tensor:
        """Gathers the rows."""
        gathered = self._exchanged(self._horovod.allgather, self._in_one(numbers))
        return tf.reshape(gathered, [self.number, numbers.shape[0]])

    def tell_all(self, value: Any) -> list[Any]:
        """By pickling."""
        with tf.init_scope():
            return list(self._horovod.allgather_object(value))

    def broadcast(self, variables: Sequence[Any]) -> None:
        """From rank 0."""
        with tf.init_scope():
            values = [keras_internals.uncast(variable) for variable in variables]
            self._horovod.broadcast_variables(values, root_rank=0)

    def _gathered_rows(self, rows: tf.IndexedSlices) -> tf.IndexedSlices:
        """The rows of all ranks, one behind the other, and for each of them a row of zeros."""
        values = tf.pad(rows.values, [[0, 1], *[[0, 0]] * (rows.values.shape.rank - 1)])
        return tf.IndexedSlices(
            self._exchanged(self._horovod.allgather, values),
            self._exchanged(self._horovod.allgather, tf.pad(rows.indices, [[0, 1]])),
            rows.dense_shape,
        )

    def _exchanged(self, operation: Callable[..., Any], tensor: tf.Tensor, **options: Any) -> Any:
        """What an operation of Horovod makes of a tensor.

        TensorFlow must not leave it out because nobody here needs it: the other ranks wait for this
        one. So some of it is kept.
        """
        result = operation(
            tensor, name=f"tfkfac.{self._next_number()}", ignore_name_scope=True, **options
        )
        some = tf.reshape(tf.nest.flatten(result)[0], [-1])[:1]
        self._done.assign(tf.reduce_sum(tf.cast(some, self._done.dtype)))
        return result

    def _in_one(self, *vectors: tf.Tensor) -> tf.Tensor:
        """Vectors in one, that is no constant: TensorFlow would exchange it while it optimises."""
        return tf.concat([*vectors, tf.cast(self._zero, vectors[0].dtype)], axis=0)[:-1]

    def _next_number(self) -> int:
        """Of an exchange in the graph of the step, the outermost one; or in eager mode."""
        if tf.executing_eagerly():
            return next(self._eager_count)
        graph = tf.compat.v1.get_default_graph()
        while hasattr(getattr(graph, "outer_graph", None), "outer_graph"):
            graph = graph.outer_graph
        return next(self._counts.setdefault(graph, itertools.count()))
