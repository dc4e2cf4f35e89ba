"""What `fit` needs where every rank of Horovod runs its own."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from tfkfac import keras_internals
from tfkfac.distribution.agreement import require_same
from tfkfac.distribution.workers import Workers


class AllRanks(keras.callbacks.Callback):
    """Lets all ranks start from the same state, and read the same logs.

    The courtesy gives it to `fit` before all others, so that callbacks which decide by the logs
    (EarlyStopping, ReduceLROnPlateau) decide the same everywhere.

    Args:
        workers: All ranks.
        optimizer: The KFAC.
    """

    def __init__(self, workers: Workers, optimizer: Any) -> None:
        super().__init__()
        self._workers = workers
        self._optimizer = optimizer
        self._trained: float | None = None

    def on_train_begin(self, logs: Any = None) -> None:
        """Refuses unequal numbers of steps; sends out the weights of rank 0."""
        del logs
        steps, epochs = self.params.get("steps"), self.params.get("epochs")
        remedy = (
            "Every rank takes part in every step. Give all the same number of batches "
            "(`dataset.shard(hvd.size(), hvd.rank())` of a data set that divides, `.take(n)`, or "
            "steps_per_epoch=...)."
        )
        require_same(self._workers, "steps in an epoch", steps, remedy)
        require_same(self._workers, "epochs", epochs, remedy)
        self._workers.broadcast([*self.model.variables, *self._optimizer.state_of_all])

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Begins to count examples."""
        del epoch, logs
        self._trained = None

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Replaces numbers in the logs by their means over the examples of all ranks."""
        del epoch
        _average(self._workers, logs, self._examples() if self._trained is None else self._trained)

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Notes the examples that were trained on, which a validation makes Keras forget."""
        del logs
        self._trained = self._examples()

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        """As at the end of an epoch."""
        _average(self._workers, logs, self._examples())

    def _examples(self) -> float:
        """Of which the logs are means, on this rank; 1 where Keras does not count them."""
        return keras_internals.examples_of_loss(self.model) or 1.0


def _average(workers: Workers, logs: dict[str, Any] | None, examples: float) -> None:
    """Weighted means over all ranks, in place."""
    if logs is None:
        return
    numbers = {key: float(value) for key, value in logs.items() if np.ndim(value) == 0}
    of_ranks = workers.tell_all((numbers, examples))
    for key in numbers:
        values, weights = zip(*((of[key], n) for of, n in of_ranks if key in of), strict=True)
        logs[key] = float(np.average(values, weights=weights))
