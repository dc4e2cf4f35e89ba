"""Do all workers still have the same weights?"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from tfkfac.callbacks.optimizer_of import kfac_of


class CheckWorkers(keras.callbacks.Callback):
    """Stops training if the weights of workers are no longer the same, bit for bit.

    For looking after mistakes: workers that start alike and make the same steps stay alike. A check
    compares a few numbers of each weight; on CPUs and GPUs of different kinds it may fail for
    rounding alone.

    Example:

    ```python
    model.fit(data, callbacks=[tfkfac.callbacks.CheckWorkers(every=100)])
    ```

    Args:
        every: Batches from one check to the next; at the end of every epoch there is one too.

    Raises:
        ValueError: `every` is no positive integer.
        RuntimeError: While training: naming the workers and the first weight that differs.
    """

    def __init__(self, every: int = 100) -> None:
        super().__init__()
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise ValueError(f"Argument `every` must be an integer >= 1, got {every!r}.")
        self.every = every
        self._batches = 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Checks now and then."""
        del batch, logs
        self._batches += 1
        if self._batches % self.every == 0:
            self.check()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Checks."""
        del epoch, logs
        self.check()

    def check(self) -> None:
        """Compares the weights of all workers."""
        workers = kfac_of(self.model, type(self).__name__).workers
        variables = self.model.trainable_variables
        prints = workers.copies(variables, _fingerprint)
        for variable, of_workers in zip(variables, zip(*prints, strict=True), strict=True):
            different = [w for w, each in enumerate(of_workers) if each != of_workers[0]]
            if different:
                raise RuntimeError(
                    f"The workers have drifted apart: {variable.path} differs from that of worker "
                    f"0 on workers {different} after {self._batches} batches. Was it assigned on "
                    "some of them only (weights loaded by one rank, a callback of one rank)? "
                    "Load the same file everywhere and train on."
                )


def _fingerprint(value: np.ndarray) -> tuple[float, ...]:
    """Numbers that differ if any entry does, but for unlikely coincidences."""
    numbers = np.nan_to_num(np.ravel(value).astype(np.float64))
    places = np.cos(np.arange(1.0, numbers.size + 1.0))
    return float(numbers.sum()), float(numbers @ places), float(np.square(numbers).sum())
