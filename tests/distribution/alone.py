"""What one worker makes of a case, found out once."""

from __future__ import annotations

import functools

import keras
import numpy as np
from cases import CASES, train


@functools.cache
def weights_alone(name: str) -> np.ndarray:
    """The weights after a case's training, in double precision."""
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    try:
        return train(CASES[name])[0]
    finally:
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy("float32")


def assert_as_alone(name: str, weights: np.ndarray) -> None:
    """To 1e-12 of the largest weight, some of which grow large."""
    expected = weights_alone(name)
    np.testing.assert_allclose(
        weights, expected, rtol=0, atol=1e-12 * max(1, np.abs(expected).max())
    )
