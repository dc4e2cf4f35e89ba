"""Gradients and statistics of a whole batch, which may come in micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfkfac import indexed_slices
from tfkfac.curvature import Statistics, batch_statistics, seen_blocks
from tfkfac.fisher import ESTIMATORS
from tfkfac.hyperparameters import Hyperparameter, Range
from tfkfac.local_model import Batch
from tfkfac.pooling import contribution, contribution_shapes, pooled
from tfkfac.schedule import is_due
from tfkfac.step_control import StepControl


class Gathering(StepControl):
    """The part of KFAC that brings together what belongs to one update.

    With ``gradient_accumulation_steps=k`` an update has k micro-batches: their gradients are
    averaged, as Keras does, and so are their statistics (`tfkfac.pooling`). The targets that are
    sampled are those of one large batch.
    """

    factor_decay = Hyperparameter(Range(0.0, 1.0, open_above=True))
    factor_update_every = Hyperparameter(Range(1, integer=True))

    fisher: str
    max_exact_outputs: int

    def _add_state(self) -> None:
        """Makes room for the sums over micro-batches."""
        super()._add_state()
        self._sums: dict[str, dict[str, Any]] = {}
        if not self.gradient_accumulation_steps:
            return
        self._examples = self._add_count("accumulated_examples", "int64")
        for block in self.layer_collection.curvature_blocks:
            self._sums[block.state_name] = {
                name: self.add_variable(
                    shape=shape, dtype=block.dtype, name=f"{block.state_name}_{name}_sum"
                )
                for name, shape in contribution_shapes(block).items()
            }

    # --- micro-batches ---------------------------------------------------------------------

    def _position(self) -> tuple[tf.Tensor, tf.Tensor | int]:
        """Where in training the batch is: the number of the update, and of its first example."""
        if not self.gradient_accumulation_steps:
            return tf.convert_to_tensor(self._iterations), 0
        return self.iterations, tf.convert_to_tensor(self._examples)

    def _is_last_micro_batch(self) -> tf.Tensor:
        return tf.equal((self._iterations + 1) % self.gradient_accumulation_steps, 0)

    def _enter_micro_batch(self, batch: Batch) -> None:
        """Adds the gradients of a micro-batch, and its statistics, if they will be used."""
        for variable, gradient in zip(batch.variables, batch.gradients, strict=True):
            total = self._accumulated_gradients[self._get_variable_index(variable)]
            indexed_slices.add_to(total, gradient)

        def enter_statistics() -> None:
            examples = batch.observations[0].batch
            for block, statistics in self._statistics_of(batch):
                sums = self._sums[block.state_name]
                for name, value in contribution(block, statistics, examples).items():
                    sums[name].assign_add(tf.reshape(value, sums[name].shape))

        tf.cond(self._factors_are_due(), enter_statistics, lambda: None)
        self._examples.assign_add(tf.cast(batch.observations[0].batch, tf.int64))

    def _gathered_gradients(self, variables: Sequence[Any]) -> list[tf.Tensor]:
        """The mean of the gradients of all micro-batches."""
        totals = [self._accumulated_gradients[self._get_variable_index(v)] for v in variables]
        return [total / self.gradient_accumulation_steps for total in totals]

    def _begin_to_gather(self) -> None:
        """Forgets the micro-batches of the update that was made."""
        sums = [each for of_block in self._sums.values() for each in of_block.values()]
        for total in [*self._accumulated_gradients, *sums, self._examples]:
            total.assign(tf.zeros_like(total))

    # --- the factors -----------------------------------------------------------------------

    def _factors_are_due(self) -> tf.Tensor:
        """Whether this update is one that looks at the curvature."""
        return is_due(self._moves, self.factor_update_every) | (self._moves < 0)

    def _update_factors(self, batch: Batch) -> None:
        """Enters the statistics of the batch into the averages."""
        if self.gradient_accumulation_steps:
            examples = tf.convert_to_tensor(self._examples)
            gathered: Statistics = [
                (block, pooled(block, self._values_of(block.state_name), examples))
                for block in seen_blocks(self.layer_collection.curvature_blocks, batch.record)
            ]
        else:
            examples = batch.observations[0].batch
            gathered = self._statistics_of(batch)
        share = self._share_of_batch(examples)
        entered: list[tf.Tensor] = []
        for block, values in gathered:  # one after the other, for the sake of peak memory
            with tf.control_dependencies(entered[-1:]):
                entered.append(block.update(values, self.factor_decay, share))

    def _statistics_of(self, batch: Batch) -> Statistics:
        """The curvature that a batch shows: the one extra backward pass."""
        return batch_statistics(
            self.layer_collection.curvature_blocks,
            batch.record,
            batch.observations,
            ESTIMATORS[self.fisher](self.max_exact_outputs),
            batch.noise,
            batch.variables,
        )

    def _values_of(self, state_name: str) -> dict[str, tf.Tensor]:
        sums = self._sums[state_name]
        return {name: tf.convert_to_tensor(total) for name, total in sums.items()}

    def _share_of_batch(self, batch: tf.Tensor) -> tf.Tensor:
        """n / N: a partial batch enters the averages with its share of the largest seen."""
        size = tf.cast(batch, tf.float32)
        self._largest_batch.assign(tf.maximum(self._largest_batch, size))
        return size / self._largest_batch
