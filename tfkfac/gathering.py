"""Gradients and statistics of a whole batch, which may come in micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfkfac import indexed_slices
from tfkfac.curvature import Statistics, batch_statistics, seen_blocks
from tfkfac.division import SumsOfBlocks
from tfkfac.fisher import ESTIMATORS
from tfkfac.hyperparameters import Hyperparameter, Range
from tfkfac.local_model import Batch, LocalModel
from tfkfac.noise import PhiloxNoise
from tfkfac.observation import observe
from tfkfac.pooling import contribution, contribution_shapes, pooled
from tfkfac.record import Record
from tfkfac.schedule import is_due
from tfkfac.step_control import StepControl


class Gathering(StepControl):
    """The part of KFAC that brings together what belongs to one update.

    With ``gradient_accumulation_steps=k`` an update has k micro-batches: their gradients are
    averaged, as Keras does, and so are their statistics (`tfkfac.pooling`), each worker's by
    itself; what they amount to is added up over the workers when the update is made. The targets
    that are sampled are those of one large batch.
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
            self._partial_sums.extend(self._sums[block.state_name].values())

    # --- micro-batches ---------------------------------------------------------------------

    def _batch_of(self, record: Record) -> Batch:
        """What a worker knows of a batch; its draws are those of its examples' places in it.

        Args:
            record: What the forward pass left behind.
        """
        observations = [observe(call) for call in record.losses]
        first = tf.cast(observations[0].first_example, tf.int64)
        if not self.gradient_accumulation_steps:
            update = tf.convert_to_tensor(self._iterations)
        else:
            update = self.iterations
            first += tf.convert_to_tensor(self._examples)
        return Batch(record, observations, PhiloxNoise(self._seed, update, first))

    def _examples_of(self, batch: Any) -> tf.Tensor:
        """N, of all workers."""
        whole = self.workers.each(lambda own: own.observations[0].whole, batch)
        return tf.cast(self.workers.first(whole), tf.int64)

    def _is_last_micro_batch(self) -> tf.Tensor:
        return tf.equal((self._iterations + 1) % self.gradient_accumulation_steps, 0)

    def _enter_micro_batch(self, batch: Any, variables: Sequence[Any], gradients: Any) -> None:
        """Adds the gradients of a micro-batch, and its statistics, if they will be used.

        Args:
            batch: Of each worker.
            variables: The variables that have a gradient.
            gradients: Of each worker.
        """

        def enter_gradients(gradients: Sequence[Any]) -> None:
            for variable, gradient in zip(variables, gradients, strict=True):
                total = self._accumulated_gradients[self._get_variable_index(variable)]
                indexed_slices.add_to(total, gradient)

        def enter_statistics(batch: Batch) -> None:
            for name, of_block in self._contributions(batch, variables).items():
                for key, value in of_block.items():
                    total = self._sums[name][key]
                    total.assign_add(tf.reshape(value, total.shape))

        self.workers.each(enter_gradients, gradients)
        tf.cond(
            self._factors_are_due(),
            lambda: self.workers.each(enter_statistics, batch),
            lambda: None,
        )
        self._examples.assign_add(self._examples_of(batch))

    def _gathered_gradients(self, variables: Sequence[Any]) -> Any:
        """The mean of the gradients of all micro-batches, of each worker."""
        totals = [self._accumulated_gradients[self._get_variable_index(v)] for v in variables]
        steps = self.gradient_accumulation_steps
        return self.workers.each(lambda: [total / steps for total in totals])

    def _begin_to_gather(self) -> None:
        """Forgets the micro-batches of the update that was made."""
        sums = [each for of_block in self._sums.values() for each in of_block.values()]
        for total in [*self._accumulated_gradients, *sums, self._examples]:
            total.assign(tf.zeros_like(total))

    # --- the factors -----------------------------------------------------------------------

    def _factors_are_due(self) -> tf.Tensor:
        """Whether this update is one that looks at the curvature."""
        return is_due(self._moves, self.factor_update_every) | (self._moves < 0)

    def _update_factors(self, model: LocalModel) -> None:
        """Enters the statistics of the batch into the averages."""
        in_shares = self.gradient_accumulation_steps or self.workers.number > 1
        if self.gradient_accumulation_steps:
            examples = tf.convert_to_tensor(self._examples)
        else:
            examples = self._examples_of(model.batch)
        share = self._share_of_batch(examples)

        def enter(batch: Batch, sums: SumsOfBlocks) -> None:
            seen = seen_blocks(self.layer_collection.curvature_blocks, batch.record)
            if in_shares:
                kept = [block for block in seen if block.state_name in sums]
                statistics = [(b, pooled(b, sums[b.state_name], examples)) for b in kept]
            else:
                statistics = self._statistics_of(batch, model.variables)
            entered: list[tf.Tensor] = []
            for block, values in statistics:  # one after the other, for the sake of peak memory
                with tf.control_dependencies(entered[-1:]):
                    entered.append(block.update(values, self.factor_decay, share))

        sums = self._summed_up(model, examples) if in_shares else {}
        self.workers.each(enter, model.batch, sums)
        self._note_eigenvalues()

    def _summed_up(self, model: LocalModel, examples: tf.Tensor) -> Any:
        """The contributions of all micro-batches and workers, added."""

        def own(batch: Batch) -> SumsOfBlocks:
            if not self.gradient_accumulation_steps:
                return self._contributions(batch, model.variables)
            return {
                block.state_name: {
                    key: tf.convert_to_tensor(total)
                    for key, total in self._sums[block.state_name].items()
                }
                for block in seen_blocks(self.layer_collection.curvature_blocks, batch.record)
            }

        contributions = self.workers.each(own, model.batch)
        blocks = self.layer_collection.curvature_blocks
        seen = [block for block in blocks if block.state_name in contributions]
        return self._division.add_up(contributions, seen, examples)

    def _contributions(self, batch: Batch, variables: Sequence[Any]) -> SumsOfBlocks:
        """What a worker's part of a batch adds to the sums over the whole; an empty one: 0."""
        examples = batch.observations[0].batch

        def of_some() -> SumsOfBlocks:
            return {
                block.state_name: contribution(block, statistics, examples)
                for block, statistics in self._statistics_of(batch, variables)
            }

        def of_none() -> SumsOfBlocks:
            return {
                block.state_name: {
                    name: tf.zeros(shape, block.dtype)
                    for name, shape in contribution_shapes(block).items()
                }
                for block in seen_blocks(self.layer_collection.curvature_blocks, batch.record)
            }

        return tf.cond(examples > 0, of_some, of_none)

    def _statistics_of(self, batch: Batch, variables: Sequence[Any]) -> Statistics:
        """The curvature that a batch shows: the one extra backward pass."""
        return batch_statistics(
            self.layer_collection.curvature_blocks,
            batch.record,
            batch.observations,
            ESTIMATORS[self.fisher](self.max_exact_outputs),
            batch.noise,
            variables,
        )

    def _share_of_batch(self, batch: tf.Tensor) -> tf.Tensor:
        """n / N: a partial batch enters the averages with its share of the largest seen."""
        size = tf.cast(batch, tf.float32)
        self._largest_batch.assign(tf.maximum(self._largest_batch, size))
        return size / self._largest_batch
