"""One training of a recurrent network, as it goes into the file."""

from __future__ import annotations

import gc
import math
import time
from typing import Any

import keras

from benchmarks.recurrent.problems import Problem


class LossCurve(keras.callbacks.Callback):
    """The loss of every batch, and the seconds in training steps until then, tracing included.

    Args:
        updates: After which the training ends.

    Attributes:
        losses: Of every update.
        seconds: In steps until then.
    """

    def __init__(self, updates: int) -> None:
        super().__init__()
        self.losses: list[float] = []
        self.seconds: list[float] = []
        self._updates = updates
        self._start = 0.0

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """The clock runs in steps only: what tf.data does between epochs is no optimizer's work.

        Keras' mean of the losses begins anew: that of one batch is its loss.
        """
        self.model.reset_metrics()
        self._start = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Notes the loss down."""
        self.losses.append(float((logs or {})["loss"]))
        before = self.seconds[-1] if self.seconds else 0.0
        self.seconds.append(before + time.perf_counter() - self._start)
        if len(self.losses) >= self._updates:
            self.model.stop_training = True


def train(problem: Problem, name: str, tuned: float, seed: int) -> dict[str, Any]:
    """Trains, and returns what became of it: JSON, in which None stands for what is not finite.

    Args:
        problem: What is trained.
        name: Of the optimizer.
        tuned: Its number.
        seed: Of weights, order of the examples and sampled targets.
    """
    keras.utils.set_random_seed(seed)
    curve = LossCurve(problem.updates)
    epochs = -(-problem.updates // problem.batches)
    unseen = problem.train(problem.optimizers[name](tuned, seed), [curve], epochs)
    keras.backend.clear_session()
    gc.collect()
    return {
        "unseen": _finite(unseen),
        "losses": [_finite(loss) for loss in curve.losses],
        "seconds": [round(second, 3) for second in curve.seconds],
    }


def _finite(number: float) -> float | None:
    return round(number, 5) if math.isfinite(number) else None
