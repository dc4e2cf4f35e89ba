"""What Osawa et al. (2019) train large batches with: schedules, and weights that are rescaled."""

from __future__ import annotations

import math
from typing import Any

import keras


@keras.saving.register_keras_serializable(package="benchmarks")
class WarmUpThenDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Rises evenly to a peak, then falls to zero as a polynomial.

    After `warm_up` of T updates, ``η = peak · (1 − (t − warm_up)/(T − warm_up))^power``.

    Args:
        peak: The greatest value.
        warm_up: Updates until it is there.
        updates: Of the training, T.
        power: Of the decay.

    Raises:
        ValueError: The warm-up is not shorter than the training.
    """

    def __init__(self, peak: float, *, warm_up: int, updates: int, power: float) -> None:
        if not 0 <= warm_up < updates:
            raise ValueError(
                f"Argument `warm_up` must be in [0, updates), got {warm_up!r} of {updates!r} "
                "updates; train for longer."
            )
        self.peak, self.warm_up, self.updates, self.power = peak, warm_up, updates, power

    def __call__(self, step: Any) -> Any:
        """The value for update number `step`, counted from 0."""
        step = keras.ops.cast(step, "float32")
        rising = (step + 1) / max(1, self.warm_up)
        left = 1 - (step - self.warm_up) / (self.updates - self.warm_up)
        falling = keras.ops.clip(left, 0.0, 1.0) ** self.power
        return self.peak * keras.ops.where(step < self.warm_up, rising, falling)

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {
            "peak": self.peak,
            "warm_up": self.warm_up,
            "updates": self.updates,
            "power": self.power,
        }


@keras.saving.register_keras_serializable(package="benchmarks")
class Rescaled(keras.constraints.Constraint):
    """Brings a kernel back to the norm √(2·d_out) after every update; d_out are its outputs.

    In front of a batch normalisation the length of a kernel changes nothing but how far an update
    turns it; while it grows, the same steps turn it ever less.
    """

    def __call__(self, w: Any) -> Any:
        """The kernel, with its outputs in the last dimension, at that norm."""
        target = math.sqrt(2.0 * w.shape[-1])
        return w * (target / (keras.ops.sqrt(keras.ops.sum(keras.ops.square(w))) + 1e-9))


def rescale_after_updates(model: keras.Model) -> list[str]:
    """Makes every optimizer rescale the convolutions that a batch normalisation follows.

    These are the ones without a bias, which it would take away again.

    Args:
        model: A built one.

    Returns:
        The names of these layers.
    """
    chosen = [
        layer
        for layer in model.layers
        if isinstance(layer, keras.layers.Conv2D) and not layer.use_bias
    ]
    for layer in chosen:
        layer.kernel.constraint = Rescaled()
    return [layer.name for layer in chosen]
