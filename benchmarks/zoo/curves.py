"""The loss of a training against its updates and seconds: recorded, smoothed, thinned."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from benchmarks.zoo.budget import Budget

KEPT_AT_FIRST, KEPT_LATER = 100, 100
"""Points of a curve in the file: the first ones, and as many again, ever farther apart."""


class LossCurve(keras.callbacks.Callback):
    """Loss and seconds of every update; ends the training when the budget is spent.

    The clock runs in steps only. The first step traces: it counts as long as the second one, which
    does the same work (KFAC computes all factors and inverses in both). The loss of a step is read
    when the step is over, as Keras' own progress bar reads it.

    Args:
        budget: Of this training.
        smoothing: Updates over whose losses the mean is taken.

    Attributes:
        losses: Of every update; a loss that is not finite is the last one and is left out.
        seconds: In steps until then.
        first_step: Seconds of the first step, tracing included.
        diverged: Whether a loss was not finite.
    """

    def __init__(self, budget: Budget, smoothing: int) -> None:
        super().__init__()
        self.losses: list[float] = []
        self.seconds: list[float] = []
        self.first_step = 0.0
        self.diverged = False
        self._budget = budget
        self._smoothing = smoothing
        self._start = 0.0

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Keras' mean of the losses begins anew: that of one batch is its loss."""
        self.model.reset_metrics()
        self._start = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Notes the loss down."""
        loss = float((logs or {})["loss"])
        elapsed = time.perf_counter() - self._start
        if not np.isfinite(loss):
            self.diverged = True
            self.model.stop_training = True
            return
        if not self.losses:
            self.first_step, elapsed = elapsed, 0.0
        elif len(self.losses) == 1:
            self.seconds[0] = elapsed
        self.losses.append(loss)
        self.seconds.append((self.seconds or [0.0])[-1] + elapsed)
        mean = float(np.mean(self.losses[-self._smoothing :]))
        if self._budget.is_spent(len(self.losses), self.seconds[-1], mean):
            self.model.stop_training = True


def smoothed(losses: Sequence[float], window: int) -> np.ndarray:
    """The mean loss of the last updates, at every update; of fewer in the beginning.

    Args:
        losses: Of every update.
        window: Updates over which the mean is taken.

    Raises:
        ValueError: The window has no update.
    """
    if window < 1:
        raise ValueError(f"Argument `window` must be at least 1 update, got {window!r}.")
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(losses, float))])
    ends = np.arange(1, len(losses) + 1)
    starts = np.maximum(0, ends - window)
    return (sums[ends] - sums[starts]) / (ends - starts)


def thinned(count: int) -> np.ndarray:
    """Which of so many points are kept: the first, the last, and early ones densely.

    What a fast optimizer does in its first updates is as well resolved as what a slow one does in
    many.
    """
    if count <= KEPT_AT_FIRST + KEPT_LATER:
        return np.arange(count)
    later = np.geomspace(KEPT_AT_FIRST, count, KEPT_LATER).round().astype(int) - 1
    return np.unique(np.concatenate([np.arange(KEPT_AT_FIRST), later]))


def curve_in_file(curve: LossCurve, window: int) -> dict[str, list[float]]:
    """The smoothed curve with the points that are kept, rounded: updates, losses, seconds."""
    kept = thinned(len(curve.losses))
    losses = smoothed(curve.losses, window)
    return {
        "updates": [int(i) + 1 for i in kept],
        "losses": [rounded(losses[i]) for i in kept],
        "seconds": [round(curve.seconds[i], 4) for i in kept],
    }


def rounded(number: float) -> float:
    """With six digits."""
    return float(f"{number:.6g}")
