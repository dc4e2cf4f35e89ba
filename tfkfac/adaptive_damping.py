"""How careful a step is: the damping, and how it follows what the steps before it did."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfkfac import linalg
from tfkfac.blocks import Block, CurvatureBlock, RecurrentBlock
from tfkfac.damping import (
    RAISE,
    SERVES,
    SETTLED,
    LevenbergMarquardt,
    bursts,
    in_units_of,
    ratio_of,
)
from tfkfac.failures import Failures
from tfkfac.hyperparameters import Hyperparameter, Range
from tfkfac.local_model import Batch, LocalModel
from tfkfac.second_look import loss_at_present_weights
from tfkfac.units import share_of_mean, weights_and_squares


class AdaptiveDamping(Failures):
    """The part of KFAC that keeps λ (mathematics.md §6).

    Attributes:
        automatic: Names of the hyper-parameters that are "auto".
        levenberg_marquardt: The rule that λ follows, if it is one of them.
    """

    burn_in: int

    damping = Hyperparameter(Range(0.0, open_below=True, automatic=True), start=1.0)

    def __init__(self, *, damping: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.automatic: set[str] = set()
        given = isinstance(damping, LevenbergMarquardt)
        self.levenberg_marquardt = damping if given else LevenbergMarquardt()

    def _add_state(self) -> None:
        """Makes the variables that tell how λ was found."""
        super()._add_state()
        self._ratio = self._add_count("reduction_ratio", "float32")
        self._settled = self._add_count("settled", "int64")
        self._taken_back = self._add_count("taken_back", "int64")
        self._unit = self._add_count("mean_eigenvalue", "float32", "ones")
        self._trace_per_term = self._add_count("trace_per_term", "float32")
        blocks = self.layer_collection.curvature_blocks
        self._eigenvalues = self.add_variable(
            shape=(len(blocks),), dtype="float32", name="mean_eigenvalues"
        )

    def rebuild(self, model: Any) -> None:
        """See `KeptState.rebuild`."""
        super().rebuild(model)
        self._note_eigenvalues()

    @property
    def reduction_ratio(self) -> float:
        """ρ, the true over the foreseen change of the loss, when it was last measured (else 0)."""
        return float(self._ratio.numpy())

    def damping_of(self, block: Block) -> tf.Tensor:
        """λ, or what it amounts to in the units of a block (`LevenbergMarquardt.relative`)."""
        return self.dampings_of([block])[0]

    def dampings_of(self, blocks: Sequence[Block]) -> list[tf.Tensor]:
        """`damping_of` of several blocks."""
        damping = tf.convert_to_tensor(self.damping)
        relative = "damping" in self.automatic and self.levenberg_marquardt.relative
        if not relative or not any(isinstance(block, CurvatureBlock) for block in blocks):
            return [damping] * len(blocks)
        units = in_units_of(tf.convert_to_tensor(self._unit), self._eigenvalues_that_count())
        all_dampings = tf.unstack(damping * tf.cast(units, damping.dtype))
        position_of = self._division.roles.position_of
        return [
            all_dampings[position_of(block)] if isinstance(block, CurvatureBlock) else damping
            for block in blocks
        ]

    def _eigenvalues_that_count(self) -> tf.Tensor:
        """Mean eigenvalues, of recurrent blocks no less than `recurrent_minimum` says."""
        least = self.levenberg_marquardt.recurrent_minimum * self._trace_per_term
        recurrent = [isinstance(block, RecurrentBlock) for block in self._division.blocks]
        means = tf.convert_to_tensor(self._eigenvalues)
        return tf.where(recurrent, tf.maximum(means, least), means)

    def _note_eigenvalues(self) -> None:
        """Keeps the mean eigenvalue of every block, as its averages stand now."""
        if "damping" not in self.automatic or not self._division.blocks:
            return

        def own() -> list[tf.Tensor]:
            here, roles = self.workers.here(), self._division.roles
            present = {id(block) for block in self.layer_collection}
            return [
                tf.stack(
                    [
                        tf.cast(block.mean_eigenvalue(), tf.float32)
                        if roles.owner_of(block) == here and id(block) in present
                        else tf.zeros([])
                        for block in self._division.blocks
                    ]
                )
            ]

        (means,) = self.workers.first(self.workers.sum(self.workers.each(own)))
        self._eigenvalues.assign(means)

    def _damping_config(self) -> dict[str, Any]:
        """What `get_config` tells of a rule that is not the usual one."""
        if "damping" not in self.automatic or self.levenberg_marquardt == LevenbergMarquardt():
            return {}
        return {"damping": keras.saving.serialize_keras_object(self.levenberg_marquardt)}

    def _has_damping_to_begin(self) -> tf.Tensor:
        """Whether λ is not yet adapted: nothing has moved, or no batch has had curvature."""
        return (self._moves <= 0) | (tf.convert_to_tensor(self._trace_per_term) <= 0.0)

    def _begin_damping(self, batch: Any, share: tf.Tensor) -> None:
        """λ₀ and the units of damping, from the curvature of the first batch that has any.

        Args:
            batch: Of each worker; of micro-batches, the last.
            share: Of its examples in all that the curvature is of.
        """
        present = {id(block) for block in self.layer_collection}
        sizes = [float(b.parameters) * (id(b) in present) for b in self._division.blocks]
        trace = linalg.dot(tf.convert_to_tensor(self._eigenvalues), tf.constant(sizes))
        trace = tf.where(tf.math.is_finite(trace), trace, tf.zeros_like(trace))
        unit = tf.where(trace > 0.0, trace / max(sum(sizes), 1.0), tf.ones_like(trace))
        self._unit.assign(unit)
        self._trace_per_term.assign(trace * self._weight_of_one(batch) * share)
        AdaptiveDamping.damping.record(self, self.levenberg_marquardt.first(unit))

    def _weight_of_one(self, batch: Any) -> tf.Tensor:
        """1/n, the share of one of n loss values of equal weight in all: Σw² / (Σw)²."""

        def own(batch: Batch) -> list[tf.Tensor]:
            return weights_and_squares(batch.observations, self._control_dtype)

        total, squares = self.workers.first(self.workers.sum(self.workers.each(own, batch)))
        return tf.cast(tf.math.divide_no_nan(squares, tf.square(total)), tf.float32)

    # --- the look back ---------------------------------------------------------------------

    def _go_and_look(
        self,
        model: LocalModel,
        velocities: Sequence[Any],
        go: Callable[[], None],
        foreseen: Callable[[], tf.Tensor],
    ) -> tf.Tensor:
        """Goes; every `every` updates, and while a λ is sought, compares with what was foreseen.

        A step that was taken back is followed by one that is looked at, whose α is measured anew.

        Returns:
            Whether the step was kept, a boolean scalar.
        """
        rule = self.levenberg_marquardt
        searching = self._is_searching()

        def look() -> tf.Tensor:
            before = self.workers.each(lambda: list(map(tf.convert_to_tensor, model.variables)))
            go()
            expected = foreseen()
            change, value = self._change_of_loss(model.batch)
            ratio = ratio_of(change, expected, value)
            serves = tf.math.is_finite(ratio) & (ratio >= SERVES) & (change <= 0.0)
            fails = (searching & ~serves) | bursts(change, expected, value)
            told = tf.where(tf.math.is_finite(ratio), ratio, tf.zeros_like(ratio))
            self._ratio.assign(tf.cast(told, tf.float32))
            damping = tf.convert_to_tensor(self.damping)
            cast = [tf.cast(each, damping.dtype) for each in (ratio, change, expected)]
            adapted = tf.where(searching, damping, rule.adapted(damping, *cast))
            adapted = tf.where(fails, RAISE * damping, adapted)
            AdaptiveDamping.damping.record(self, rule.bounded(adapted, self._unit))
            self._stale_inverses.assign(tf.cast(fails, tf.int64))  # for no inverse fits this λ
            self._taken_back.assign_add(tf.cast(fails, tf.int64))
            begin = tf.where(searching, tf.constant(0, tf.int64), SETTLED)
            self._settled.assign(tf.where(fails, begin, self._settled + 1))

            def take_back(before: Sequence[tf.Tensor]) -> None:
                for variable, old in zip(model.variables, before, strict=True):
                    variable.assign(old)
                for velocity in velocities:  # which may be what has failed
                    velocity.assign(tf.zeros_like(velocity))

            tf.cond(fails, lambda: self.workers.each(take_back, before), lambda: None)
            return ~fails

        def only_go() -> tf.Tensor:
            go()
            return tf.constant(True)

        return tf.cond(self._look_is_due(), look, only_go)

    @property
    def _moves(self) -> tf.Tensor:
        """Updates so far that moved the weights; below 0 during the burn-in."""
        return self._updates - self.burn_in

    def _is_searching(self) -> tf.Tensor:
        """Whether a λ that serves is still sought."""
        return (self._settled < SETTLED) & (self._taken_back < _MOST_TAKEN_BACK)

    def _look_is_due(self) -> tf.Tensor:
        """Whether the loss is evaluated after this step.

        By default these are steps in which the learning rate is measured anyway: both take q.
        """
        every = tf.equal(self._moves % self.levenberg_marquardt.every, 0)
        return (self._settled <= SETTLED) | every

    def _change_of_loss(self, batch: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """h(θ + δ) − h(θ) and h(θ), of the mean loss; the weights are at θ + δ.

        Args:
            batch: Of each worker.
        """

        def after_and_before(batch: Batch) -> list[tf.Tensor]:
            assert batch.record.replay is not None
            after = loss_at_present_weights(self._require_model(), batch.record)
            values = [
                tf.reduce_sum(tf.cast(h, self._control_dtype))
                for h in (after, batch.record.replay.part_of_whole)
            ]
            return self.workers.parts([share_of_mean(h, batch.observations[0]) for h in values])

        with self._recorder.paused():
            own = self.workers.each(after_and_before, batch)
        after, before = self.workers.first(self.workers.sum(own))
        return after - before, before

    @property
    def _control_dtype(self) -> tf.DType:
        """Of scalars such as ρ."""
        double = any(str(v.dtype) == "float64" for v in self._trainable_variables)
        return tf.float64 if double else tf.float32


_MOST_TAKEN_BACK = 30
"""Steps that are taken back at most: a loss that is noise of its own never does as foreseen."""
