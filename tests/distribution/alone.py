"""What one worker makes of a case, found out once."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import pytest
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


def fast_ones_first(names: Iterable[str], fast: Iterable[str]) -> list[Any]:
    """Parameters of a test: some cases, and all others marked as slow."""
    slow = [pytest.param(name, marks=pytest.mark.slow) for name in names if name not in fast]
    return [*fast, *slow]
