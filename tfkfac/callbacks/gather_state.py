"""The state of all workers on the first one, before it is saved."""

from __future__ import annotations

from typing import Any

import keras

from tfkfac.callbacks.optimizer_of import kfac_of


class GatherState(keras.callbacks.Callback):
    """Brings the factors and inverses of all ranks together, for a callback behind it that saves.

    Give it on *all* ranks, in front of ``ModelCheckpoint`` or ``BackupAndRestore``, which rank 0
    has alone. With one process, or under ``tf.distribute``, it does nothing that is needed.

    Example:

    ```python
    callbacks = [tfkfac.callbacks.GatherState()]
    if hvd.rank() == 0:
        callbacks.append(keras.callbacks.ModelCheckpoint("model.keras"))
    model.fit(data, epochs=10, callbacks=callbacks)
    ```

    Args:
        save_freq: "epoch", or a number of batches, as for the callback that saves.

    Raises:
        ValueError: `save_freq` is neither.
    """

    def __init__(self, save_freq: str | int = "epoch") -> None:
        super().__init__()
        number = isinstance(save_freq, int) and not isinstance(save_freq, bool)
        if save_freq != "epoch" and not (number and int(save_freq) > 0):
            raise ValueError(
                f"Argument `save_freq` must be 'epoch' or an integer >= 1, got {save_freq!r}."
            )
        self.save_freq = save_freq
        self._batches = 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Gathers every so many batches."""
        del batch, logs
        self._batches += 1
        if self.save_freq != "epoch" and self._batches % int(self.save_freq) == 0:
            self._gather()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Gathers at the end of every epoch."""
        del epoch, logs
        if self.save_freq == "epoch":
            self._gather()

    def _gather(self) -> None:
        kfac_of(self.model, type(self).__name__).gather_state()
