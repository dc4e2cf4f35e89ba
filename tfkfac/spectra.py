"""Traces and condition numbers of Kronecker factors, for people to look at."""

from __future__ import annotations

import tensorflow as tf

from tfkfac.blocks import KroneckerBlock
from tfkfac.factor_forms import DENSE, FactorForm
from tfkfac.factors import damping_balance


def traces(block: KroneckerBlock) -> dict[str, tf.Tensor]:
    """tr A and tr G; of groups, the sum."""
    averages, forms = block.averages(), _forms(block)
    return {key: tf.reduce_sum(form.diagonal(averages[key])) for key, form in forms.items()}


def condition_numbers(block: KroneckerBlock, damping: tf.Tensor) -> dict[str, tf.Tensor]:
    """The largest over the smallest eigenvalue of A and G, both with their part of the damping.

    The parts are those of factored Tikhonov damping (mathematics.md §2): π√(λ/|T|) and √(λ/|T|)/π.

    Args:
        block: The block; of groups, the worst counts.
        damping: λ.
    """
    averages, forms = block.averages(), _forms(block)
    means = [form.mean_eigenvalue(averages[key]) for key, form in forms.items()]
    balance = damping_balance(*means)
    root = tf.sqrt(tf.math.divide_no_nan(tf.cast(damping, block.dtype), averages["uses"]))
    numbers = {}
    for (key, form), shift in zip(forms.items(), (balance * root, root / balance), strict=True):
        factor = averages[key]
        values = tf.linalg.eigvalsh(form.to_dense(factor)) if form is DENSE else factor
        largest, smallest = tf.reduce_max(values, axis=-1), tf.reduce_min(values, axis=-1)
        ratios = (largest + shift) / (tf.maximum(smallest, 0.0) + shift)
        numbers[key] = tf.reduce_max(ratios)
    return numbers


def _forms(block: KroneckerBlock) -> dict[str, FactorForm]:
    return {"A": block.input_form, "G": block.output_form}
