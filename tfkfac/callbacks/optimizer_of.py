"""The KFAC that a callback looks at."""

from __future__ import annotations

from typing import Any

from tfkfac import keras_internals


def kfac_of(model: Any, callback: str) -> Any:
    """A model's KFAC, which may be wrapped (mixed precision) or one of several.

    Args:
        model: The model that trains.
        callback: Name of the callback that asks, for the error.

    Raises:
        ValueError: The model is trained by another optimizer.
    """
    whole = getattr(model, "optimizer", None)
    optimizer = keras_internals.unwrapped(whole, "layer_collection")
    if not hasattr(type(optimizer), "layer_collection"):
        raise ValueError(
            f"{callback} looks at tfkfac.KFAC, but the model is trained with {optimizer!r}; "
            "compile it with tfkfac.KFAC, or leave the callback out."
        )
    return optimizer
