"""What `fit` needs where every rank of Horovod runs its own."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

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

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Replaces numbers in the logs by their means over the ranks."""
        del epoch
        _average(self._workers, logs)

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        """Likewise, for an evaluation by itself."""
        _average(self._workers, logs)


def _average(workers: Workers, logs: dict[str, Any] | None) -> None:
    """Means over all ranks, in place."""
    if logs is None:
        return
    numbers = {key: float(value) for key, value in logs.items() if np.ndim(value) == 0}
    of_ranks = workers.tell_all(numbers)
    for key in numbers:
        logs[key] = float(np.mean([of_rank[key] for of_rank in of_ranks if key in of_rank]))
