"""Training that goes wrong again and again ends with an error that says where."""

from __future__ import annotations

from typing import Any

import keras


class StopIfFailing(keras.callbacks.Callback):
    """Asks KFAC's `raise_if_failing` now and then; `fit` has one by itself.

    Args:
        optimizer: The KFAC.
    """

    def __init__(self, optimizer: Any) -> None:
        super().__init__()
        self._optimizer = optimizer

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Asks every hundred batches."""
        del logs
        if (batch + 1) % EVERY == 0:
            self._optimizer.raise_if_failing()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Asks at the end of every epoch."""
        del epoch, logs
        self._optimizer.raise_if_failing()


EVERY = 100
"""Batches between two looks, each of which waits for the step that is under way."""
