"""What regularisers of weights add to the curvature (mathematics.md §5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfkfac import indexed_slices


def l2_curvature(
    variables: Sequence[Any], left: Sequence[Any], right: Sequence[Any], dtype: tf.DType
) -> tf.Tensor:
    """``uᵀHv`` with H the Hessian of the L2 regularisers; other regularisers have none of use.

    Args:
        variables: The trainable variables.
        left: u, a tensor for each variable.
        right: v, likewise.
        dtype: Of the result.
    """
    terms = [
        2.0 * _l2_of(variable) * tf.cast(indexed_slices.dot(u, v), dtype)
        for variable, u, v in zip(variables, left, right, strict=True)
        if _l2_of(variable)
    ]
    return tf.add_n(terms) if terms else tf.zeros([], dtype)


def _l2_of(variable: Any) -> float:
    """The factor of a variable's squared norm in the loss."""
    regularizer = getattr(variable, "regularizer", None)
    if isinstance(regularizer, keras.regularizers.L1L2 | keras.regularizers.L2):
        return float(regularizer.l2)
    return 0.0
