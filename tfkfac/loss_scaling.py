"""What changes about a ``keras.optimizers.LossScaleOptimizer`` that is around a KFAC."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

FORMAT_KEY = "format"
"""Where a file says what the layout of a KFAC is; a LossScaleOptimizer has nothing there."""


def has_only_scale(store: Any) -> bool:
    """Whether what is in a file is a LossScaleOptimizer: its scale and some counters.

    Args:
        store: Position → array.
    """
    shapes = [np.shape(store[key]) for key in list(store.keys())]
    return shapes == [()] * _COUNTERS


_COUNTERS = 4


def adopt(
    scaling: Any,
    decide: Callable[[tf.Tensor, Sequence[Any]], tf.Tensor],
    build: Callable[[], None],
) -> None:
    """Lets KFAC see which steps are skipped, and what it keeps be in files once.

    Args:
        scaling: The ``LossScaleOptimizer``.
        decide: Whether the gradients of this worker are finite, and these → whether there will be
            a step.
        build: Makes the state of both for a file, if there is none yet.
    """

    def check_finite(gradients: Sequence[Any]) -> tf.Tensor:
        return decide(type(scaling).check_finite(scaling, gradients), gradients)

    scaling.check_finite = check_finite
    scaling.save_own_variables = functools.partial(_save, scaling, build)
    scaling.load_own_variables = functools.partial(_load, scaling)


def _save(scaling: Any, build: Callable[[], None], store: Any) -> None:
    """Writes the scale and its counters: Keras adds what is in the optimizer within by itself."""
    build()
    if not scaling.built:
        return
    for place, variable in enumerate(scaling._variables):
        store[str(place)] = variable.numpy()


def _load(scaling: Any, store: Any) -> None:
    """Reads them.

    Raises:
        ValueError: The file has something else.
    """
    if FORMAT_KEY in set(store.keys()):
        raise ValueError(
            "The optimizer in the file has no LossScaleOptimizer around it: the model was trained "
            'under another dtype policy than "mixed_float16", which is set now. Call '
            "keras.config.set_dtype_policy(...) with that one before the file is read."
        )
    if not scaling.built:
        scaling.build(scaling.inner_optimizer.trained_variables)
    if not list(store.keys()):
        return  # as in a file without an optimizer, of which the one within says so
    here = [tuple(variable.shape) for variable in scaling._variables]
    found = [tuple(np.shape(store[key])) for key in sorted(store.keys(), key=int)]
    if found != here:
        raise ValueError(
            f"The state of the LossScaleOptimizer in the file has variables of shapes {found}, not "
            f"{here}: it is of another optimizer, or of an older tfkfac. Load the model without "
            "it, keras.models.load_model(path, compile=False), and compile it anew."
        )
    for place, variable in enumerate(scaling._variables):
        variable.assign(store[str(place)])
