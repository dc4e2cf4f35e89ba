"""How often the statistics and the inverse of a block could not be had."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfkfac.averages import AddVariable

KINDS = ("statistics", "inverse")
"""What may fail."""


class FailureCounts:
    """One variable of three numbers: failures in a row of each of `KINDS`, and all there were.

    Args:
        name: Of the block.
        dtype: Of the block.
    """

    shape = (len(KINDS) + 1,)

    def __init__(self, name: str, dtype: str) -> None:
        self._name = name
        self._dtype = dtype
        self.variable: Any = None

    def build(self, add_variable: AddVariable) -> None:
        """Makes the variable."""
        name = f"{self._name}_failures"
        self.variable = add_variable(shape=self.shape, dtype=self._dtype, name=name)

    def note(self, kind: str, is_good: tf.Tensor) -> None:
        """Counts.

        Args:
            kind: One of `KINDS`.
            is_good: Whether it could be had, a boolean scalar.
        """
        this, whole = np.eye(*self.shape, dtype=self._dtype)[[KINDS.index(kind), len(KINDS)]]
        counts = tf.convert_to_tensor(self.variable)
        self.variable.assign(tf.where(is_good, counts * (1.0 - this), counts + (this + whole)))
