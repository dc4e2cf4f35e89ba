"""What goes wrong several times in a row, counted in the graph and told on the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfkfac import indexed_slices, linalg
from tfkfac.saved_state import SavedState


class Failures(SavedState):
    """The part of KFAC that leaves out what is not finite, and does not do so for ever.

    Assertions in graphs raise nothing under XLA. So a step counts what fails, and the host looks at
    the counts now and then (a callback of `fit` does).
    """

    max_consecutive_failures: int | None

    def _add_state(self) -> None:
        """Makes what is counted."""
        super()._add_state()
        self._failed_steps = self._add_count("failed_steps", "int64")
        self._culprit = self._add_count("culprit", "int64")

    def _skip_step(self, variables: Sequence[Any], gradients: Any) -> None:
        """A gradient is not finite: nothing changes but the count of such steps.

        Args:
            variables: The variables that have a gradient.
            gradients: g, of every worker.
        """
        values = map(indexed_slices.values_of, self.workers.first(gradients))
        finite = tf.stack([linalg.all_finite(value) for value in values])
        places = tf.constant([self._get_variable_index(v) for v in variables], tf.int64)
        self._culprit.assign(tf.gather(places, tf.argmin(tf.cast(finite, tf.int32))))
        self._skipped_steps.assign_add(1)
        self._failed_steps.assign_add(1)

    def _note_success(self) -> None:
        """A step was made."""
        self._failed_steps.assign(tf.zeros_like(self._failed_steps))

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
                f"The gradients of the last {steps} batches are not finite, in the last of them "
                f"that of {culprit.path}; these steps were skipped. Look at the data and the loss "
                f"of these batches, and at the weights. {_REMEDY}"
            )
        for block in self.layer_collection.curvature_blocks:
            for what, variable in block.failures.items():
                count = max(int(copy.numpy()) for copy in self.workers.copies_here(variable))
                if count >= limit:
                    raise FloatingPointError(
                        f"The {what} of layer {block.name!r} could not be had {count} times in a "
                        "row, and KFAC goes on with those of before. Look at what reaches the "
                        "layer, scale its inputs, or leave its curvature out with "
                        f"KFAC(skip=[{block.name!r}]). {_REMEDY}"
                    )


_REMEDY = (
    "A larger damping, a smaller learning rate, clipping (global_clipnorm=1.0) or float32 in the "
    "place of float16 may help; KFAC(max_consecutive_failures=None) goes on whatever happens."
)
