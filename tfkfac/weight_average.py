"""The average of the weights that Keras' ``use_ema`` asks for."""

from __future__ import annotations

import tensorflow as tf

from tfkfac.inverse_turns import InverseTurns


class WeightAverage(InverseTurns):
    """The part of KFAC that averages the weights."""

    def _average_weights(self) -> None:
        """Keras' ``use_ema``; the average begins with the first update that moves the weights."""
        if not self.use_ema:
            return
        pairs = [
            (variable, average)
            for variable, average in zip(
                self._trainable_variables, self._model_variables_moving_average, strict=True
            )
            if average is not None
        ]

        def enter() -> None:
            begun = tf.cast(self._averaged > 0, tf.float32)
            for variable, average in pairs:
                kept = tf.cast(self.ema_momentum * begun, average.dtype)
                average.assign(kept * average + (1.0 - kept) * tf.cast(variable, average.dtype))

        def overwrite() -> None:
            for variable, average in pairs:
                variable.assign(tf.cast(average, variable.dtype))

        self.workers.each(enter)
        self._averaged.assign_add(1)
        if self.ema_overwrite_frequency:
            updates = (self._iterations + 1) // (self.gradient_accumulation_steps or 1)
            tf.cond(
                updates % self.ema_overwrite_frequency == 0,
                lambda: self.workers.each(overwrite),
                lambda: None,
            )
