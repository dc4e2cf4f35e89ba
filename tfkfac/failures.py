"""What goes wrong several times in a row, counted in the graph and told on the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfkfac import indexed_slices, linalg
from tfkfac.blocks import CurvatureBlock
from tfkfac.blocks.failure_counts import KINDS
from tfkfac.local_model import Batch, LocalModel
from tfkfac.record import Record
from tfkfac.saved_state import SavedState


class Failures(SavedState):
    """The part of KFAC that leaves out what is no good, and does not do so for ever.

    Assertions in graphs raise nothing under XLA. So a step counts what fails, and the host looks at
    the counts now and then (a callback of `fit` does).
    """

    max_consecutive_failures: int | None

    def _add_state(self) -> None:
        """Makes what is counted."""
        super()._add_state()
        self._failed_steps = self._add_count("failed_steps", "int64")
        self._culprit = self._add_count("culprit", "int64")
        self._usual_square = self._add_count("usual_square", "float32")

    # --- in the graph ----------------------------------------------------------------------

    def _told_of_states(self, record: Record, gradients: Sequence[Any]) -> list[Any]:
        """The gradients of a worker, one of them NaN if its batch made a moving average infinite.

        The variance of inputs of 1e30 is, while what they are normalised to is finite. Since the
        gradients of all workers are added up, all of them leave the batch out.
        """
        numbers = _numbers_in(record.states)
        if not numbers:
            return list(gradients)
        before = linalg.all_finite(*(value for _, value in numbers))
        after = linalg.all_finite(*(tf.convert_to_tensor(variable) for variable, _ in numbers))
        sizes = [indexed_slices.values_of(g).shape.num_elements() or 2**62 for g in gradients]
        smallest = int(np.argmin(sizes))
        told = list(gradients)
        values = indexed_slices.values_of(told[smallest])
        fault = tf.where(before & ~after, np.nan, 0.0)
        told[smallest] = indexed_slices.with_values(
            told[smallest], values + tf.cast(fault, values.dtype)
        )
        return told

    def _squares(self, gradients: Any) -> tf.Tensor:
        """``‖g‖²`` of every variable; infinite or NaN where an entry is."""
        return _squares(self.workers.first(gradients))

    def _is_usable(self, squares: tf.Tensor) -> tf.Tensor:
        """Whether a gradient is finite, and none of a loss that has burst (`SPIKE`).

        Args:
            squares: ``‖g‖²`` of every variable.
        """
        square, usual = tf.reduce_sum(squares), self._usual_square
        return tf.math.is_finite(square) & ((usual <= 0.0) | (square <= SPIKE**2 * usual))

    def _note_gradient(self, squares: tf.Tensor) -> None:
        """Follows ``‖g‖²``: up at once, down slowly."""
        square = tf.reduce_sum(squares)
        self._usual_square.assign(tf.maximum(square, FORGOTTEN * self._usual_square))

    def _skip_batch(self, model: LocalModel, squares: tf.Tensor) -> None:
        """The batch leaves no trace but in counts; if a spike is no accident, the next may be so.

        Args:
            model: What the batch shows.
            squares: ``‖g‖²`` of each variable that has a gradient.
        """
        self.workers.each(_forget, model.batch)
        is_spike = tf.math.is_finite(tf.reduce_sum(squares))
        higher = self._usual_square * tf.where(is_spike, RAISED**2, 1.0)
        self._usual_square.assign(tf.minimum(higher, tf.float32.max))
        self._skip_step(model.variables, squares)

    def _skip_step(self, variables: Sequence[Any], squares: tf.Tensor) -> None:
        """The weights stay as they are; counts that, and notes the worst variable.

        Args:
            variables: The variables that would have been moved.
            squares: How bad each of them is.
        """
        places = tf.constant([self._get_variable_index(v) for v in variables], tf.int64)
        badness = tf.where(tf.math.is_finite(squares), squares, tf.float32.max)
        self._culprit.assign(tf.gather(places, tf.argmax(badness)))
        self._skipped_steps.assign_add(1)
        self._failed_steps.assign_add(1)

    def _skip_scaled(self, record: Record, gradients: Sequence[Any]) -> None:
        """See `AttachedOptimizer`.

        The forward pass is all right most times. Then what it brought about stays.
        """
        mend(record.states)
        given = [gradient for gradient in gradients if gradient is not None]
        if len(given) == len(self._trainable_variables):
            self._skip_step(self._trainable_variables, _squares(given))
        else:
            self._skip_step(self._trainable_variables[:1], tf.zeros([1]))

    def _note_success(self) -> None:
        """A step was made."""
        self._failed_steps.assign(tf.zeros_like(self._failed_steps))

    # --- on the host -----------------------------------------------------------------------

    def raise_if_failing(self) -> None:
        """Raises if steps, factors or inverses have failed too often in a row.

        `fit` asks every hundred batches and at the end of every epoch. In loops of your own, call
        it as often as you like to know; it waits for the step that is under way.

        Raises:
            FloatingPointError: Naming the layer, and what to try.
        """
        limit = self.max_consecutive_failures
        if limit is None or not self.built:
            return
        steps = int(self._failed_steps.numpy())
        if steps >= limit:
            culprit = self._trainable_variables[int(self._culprit.numpy())]
            raise FloatingPointError(
                f"The last {steps} steps were skipped: their gradients, or the directions made of "
                f"them, are not finite, or {SPIKE:.0e} times as long as those before, in the last "
                f"of them most of all that of {culprit.path!r}. Look at the data and the loss of "
                "these batches, at the weights, and at schedules, whose numbers must be finite. "
                f"{_REMEDY}"
            )
        for block in self.layer_collection.curvature_blocks:
            for kind, count in zip(KINDS, self._failures_of(block), strict=False):
                if count >= limit:
                    raise FloatingPointError(
                        f"The {kind} of layer {block.name!r} could not be had {count:.0f} times in "
                        "a row, and KFAC goes on with what there was before. Look at what reaches "
                        "the layer, scale its inputs, or leave its curvature out with "
                        f"KFAC(skip=[{block.name!r}]). {_REMEDY}"
                    )

    def _failures_of(self, block: CurvatureBlock) -> list[float]:
        """What `FailureCounts` has, as far as this process knows; the most of its workers."""
        if block.failures is None:
            return []
        copies = self.workers.copies_here(block.failures)
        return list(np.max([copy.numpy() for copy in copies], axis=0))

    def count_failures(self) -> float:
        """How often, since training began, statistics or inverses of a block could not be had."""
        return float(
            sum(
                of[-1]
                for of in map(self._failures_of, self.layer_collection.curvature_blocks)
                if of
            )
        )


def _squares(gradients: Sequence[Any]) -> tf.Tensor:
    halves = [linalg.half_squared_length(indexed_slices.values_of(g)) for g in gradients]
    return 2.0 * tf.stack([tf.cast(half, tf.float32) for half in halves])


def _forget(batch: Batch) -> None:
    """Moving averages and states of recurrent layers become what they were; noise goes on."""
    for variable, before in _numbers_in(batch.record.states):
        variable.assign(before)


def mend(states: Sequence[tuple[Any, tf.Tensor]]) -> None:
    """Puts back what is not finite any more.

    Args:
        states: Variable, and what it was before the batch.
    """
    for variable, before in _numbers_in(states):
        now = tf.convert_to_tensor(variable)
        variable.assign(tf.where(linalg.all_finite(now), now, before))


def _numbers_in(states: Sequence[tuple[Any, tf.Tensor]]) -> list[tuple[Any, tf.Tensor]]:
    return [(variable, before) for variable, before in states if before.dtype.is_floating]


SPIKE = 1e6
"""How many times as long as those of before a gradient is that comes of a fault."""

FORGOTTEN = 0.9
"""What is left, after a step, of the square of the longest gradient."""

RAISED = 100.0
"""How much longer the next gradient may be after a spike."""

_REMEDY = (
    "A larger damping, a smaller learning rate, clipping (global_clipnorm=1.0) or float32 in the "
    "place of float16 may help; KFAC(max_consecutive_failures=None) goes on whatever happens."
)
