"""The workers of a training run, and what a step may ask of them.

A step is written once and *conducted*. Its code runs outside of the workers: there it decides, and
takes the branches, so that all workers take the same one and their exchanges meet. The work itself
is done `each` by each worker. What a worker has of its own (a batch, its tensors, what was added
up over all of them) is opaque outside: made by `each` or `sum`, and good as an argument of `each`,
`sum` and `first` only. Variables are everywhere; outside they read as the first worker's, and what
is assigned there is assigned to all copies.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfkfac import indexed_slices, keras_internals


class Workers(abc.ABC):
    """All that make one step together.

    Attributes:
        number: W.
        keep_all_alike: Whether every variable is everywhere; else a worker may keep what others do
            not.
        processes: How many processes they are.
        process: The number of this one.
        repeats: How often a sum over the workers counts what concerns all of them alike, such as a
            regulariser: 1 where Keras has divided it among them, W where it has not.
    """

    number: int
    keep_all_alike: bool = True
    processes: int = 1
    process: int = 0
    repeats: int

    @abc.abstractmethod
    def conduct(self, step: Callable[..., None], *own: Any) -> None:
        """Called by all workers: from inside of them to the outside, where `step` runs once.

        Args:
            step: A function of `own`.
            own: Tensors, lists of them, or any objects of the worker that calls.
        """

    @abc.abstractmethod
    def each(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Lets every worker do the same, with what is its own among the arguments.

        Args:
            work: What is done, without exchanges. It may use tensors from outside, and variables.
            arguments: Of `work`.

        Returns:
            What each of them returned, for each of them.
        """

    @abc.abstractmethod
    def here(self) -> int:
        """Which worker is at work, 0 … W−1; inside of `each`, or before `conduct`."""

    def is_so(self, of_worker: Callable[..., bool], *arguments: Any) -> bool:
        """What holds for all workers alike, known when the step is made.

        Args:
            of_worker: Asks one of them.
            arguments: Of it.
        """
        return bool(self.first(self.each(of_worker, *arguments)))

    @abc.abstractmethod
    def first(self, values: Any) -> Any:
        """The first worker's tensors, of what is the same for all of them."""

    @abc.abstractmethod
    def sum(self, tensors: Sequence[Any]) -> list[Any]:
        """Adds up tensors over the workers, all in one exchange.

        Args:
            tensors: What `each` returned, in a list; rows of ``tf.IndexedSlices`` are collected.

        Returns:
            The sums, which every worker has.
        """

    def form(self, groups: Sequence[tuple[int, ...]]) -> None:
        """Gets ready for `collect` within some groups.

        Args:
            groups: Groups of workers.

        Raises:
            ValueError: There cannot be such groups here.
        """
        del groups

    def to_owners(self, vectors: Sequence[Any], sizes: Sequence[int]) -> Any:
        """Adds up vectors over the workers, each for the one that it is meant for.

        Only for workers that do not keep all alike.

        Args:
            vectors: What `each` returned: W vectors of every worker, the w-th for worker w.
            sizes: Of these vectors.

        Returns:
            For each worker the sum that is meant for it.
        """
        raise NotImplementedError(f"{type(self).__name__} keep everything alike.")

    @abc.abstractmethod
    def collect(self, vectors: Any, sizes: Sequence[int], groups: Sequence[tuple[int, ...]]) -> Any:
        """Gives to every worker the vectors of its group.

        Args:
            vectors: One of every worker.
            sizes: Of these vectors.
            groups: Every worker is in one.

        Returns:
            For each worker W vectors, None for those of other groups.
        """

    def parts(self, tensors: Sequence[Any]) -> list[Any]:
        """Of what the losses of a worker show (gradients, say): what adds up to that of all.

        Args:
            tensors: Of the worker that calls.
        """
        if self.repeats == 1:
            return list(tensors)
        return [
            indexed_slices.with_values(tensor, indexed_slices.values_of(tensor) / self.repeats)
            for tensor in tensors
        ]

    @abc.abstractmethod
    def exchange(self, numbers: tf.Tensor) -> tf.Tensor:
        """Tells all workers some numbers of each; before `conduct`.

        Args:
            numbers: ``[k]``, of the worker that calls.

        Returns:
            ``[W, k]``.
        """

    # --- between steps -----------------------------------------------------------------------

    def tell_all(self, value: Any) -> list[Any]:
        """Tells all processes a value of each, outside of any step; they have to come together.

        Args:
            value: Anything that can be pickled.

        Returns:
            The values of all workers that are processes of their own.
        """
        return [value]

    def broadcast(self, variables: Sequence[Any]) -> None:
        """Gives to all processes what the variables are in the first one.

        Args:
            variables: Keras variables.
        """
        del variables

    def copies_here(self, variable: Any) -> list[Any]:
        """The copies of a variable that the workers of this process have.

        Args:
            variable: A Keras variable.
        """
        return [keras_internals.uncast(variable)]

    def share(self, variable: Any, total: Any) -> None:
        """Gives to every worker its part of what they have added up.

        Args:
            variable: A Keras variable, of which every worker has a summand.
            total: An array.
        """
        for copy in self.copies_here(variable):
            copy.assign(total / self.number)

    def copies(self, variables: Sequence[Any], look: Callable[[Any], Any]) -> list[list[Any]]:
        """What all workers see in their copies of variables.

        Args:
            variables: Keras variables.
            look: From an array to what is told.

        Returns:
            Of every worker, of every variable.
        """
        of_variables = [[look(c.numpy()) for c in self.copies_here(v)] for v in variables]
        of_workers_here = [list(each) for each in zip(*of_variables, strict=True)]
        return [worker for process in self.tell_all(of_workers_here) for worker in process]


class Alone(Workers):
    """One worker: nothing to exchange."""

    number = 1
    repeats = 1

    def conduct(self, step: Callable[..., None], *own: Any) -> None:
        """Calls it."""
        step(*own)

    def each(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Calls it."""
        return work(*arguments)

    def here(self) -> int:
        """0."""
        return 0

    def first(self, values: Any) -> Any:
        """The values."""
        return values

    def sum(self, tensors: Sequence[Any]) -> list[Any]:
        """The tensors."""
        return list(tensors)

    def collect(self, vectors: Any, sizes: Sequence[int], groups: Sequence[tuple[int, ...]]) -> Any:
        """The one vector."""
        del sizes, groups
        return [vectors]

    def exchange(self, numbers: tf.Tensor) -> tf.Tensor:
        """One row."""
        return numbers[None]
