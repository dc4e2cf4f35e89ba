"""Slow, independent transcriptions of maths.md §2 to compare with, in NumPy and autodiff."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

Array = np.ndarray


# --- factors ----------------------------------------------------------------------------------


def with_ones(rows: Array, bias: bool) -> Array:
    """Appends a 1 to every row if there is a bias."""
    if not bias:
        return rows
    return np.concatenate([rows, np.ones((*rows.shape[:-1], 1), rows.dtype)], axis=-1)


def input_factor(rows: Array, omega: Array | None = None) -> Array:
    """Σ ω a aᵀ / Σ ω, one outer product after the other; `rows` are ``[places, in]``."""
    omega = np.ones(len(rows)) if omega is None else omega.reshape(-1)
    return sum(w * np.outer(a, a) for w, a in zip(omega, rows, strict=True)) / omega.sum()


def output_factor(rows: Array, places: float | None = None) -> Array:
    """Σ g gᵀ / (N·|T|), `rows` being ``[places, out]``."""
    return sum(np.outer(g, g) for g in rows) / (len(rows) if places is None else places)


def split_groups(rows: Array, groups: int) -> Array:
    """``[n, groups·d]`` → ``[groups, n, d]``: each group has a contiguous range of columns."""
    return np.stack(np.split(rows, groups, axis=-1))


# --- dense inverses ----------------------------------------------------------------------------


def dense_block(A: Array, G: Array, uses: float) -> Array:
    """``|T|·A ⊗ G``; block-diagonal if the factors are stacks."""
    return block_diagonal([uses * np.kron(a, g) for a, g in zip(*stacks(A, G), strict=True)])


def damped_block(A: Array, G: Array, uses: float, damping: float, method: str) -> Array:
    """What `precondition` is to invert: maths.md §2, factored or exact Tikhonov damping.

    EKFAC starts from the eigenvalues of the factors.
    """
    if method in ("eigen", "ekfac"):
        block = dense_block(A, G, uses)
        return block + damping * np.eye(len(block))
    return block_diagonal(
        [factored_block(a, g, uses, damping) for a, g in zip(*stacks(A, G), strict=True)]
    )


def factored_block(A: Array, G: Array, uses: float, damping: float) -> Array:
    """``|T|·(A + π√λ'·I) ⊗ (G + √λ'/π·I)`` with λ' = λ/|T|."""
    means = np.trace(A) / len(A), np.trace(G) / len(G)
    balance = np.sqrt(means[0] / means[1]) if min(means) > 0 else 1.0
    root = np.sqrt(damping / uses)
    return uses * np.kron(A + balance * root * np.eye(len(A)), G + root / balance * np.eye(len(G)))


def stacks(*factors: Array) -> list[Array]:
    """Every factor as a stack of matrices."""
    return [factor.reshape(-1, *factor.shape[-2:]) for factor in factors]


def block_diagonal(blocks: Sequence[Array]) -> Array:
    """Square matrices along the diagonal."""
    cuts = np.cumsum([0, *map(len, blocks)])
    whole = np.zeros((cuts[-1], cuts[-1]))
    for start, block in zip(cuts[:-1], blocks, strict=True):
        whole[start : start + len(block), start : start + len(block)] = block
    return whole


# --- the exact block ---------------------------------------------------------------------------


def ggn_block(
    model: Any, layer: Any, x: Any, y: Any, loss: Any, sample_weight: Any = None
) -> Array:
    """``JᵀHJ`` for one layer, H the Hessian of the mean loss at the model's outputs.

    Rows and columns run over the layer's gradient matrix, row by row (inputs, the bias last ×
    outputs), group after group.
    """
    variables = [layer.kernel] if layer.bias is None else [layer.kernel, layer.bias]
    return _gauss_newton(
        model, variables, x, y, loss, sample_weight, lambda d, size: _as_matrix(d, size, layer)
    )


def ggn_of_variables(
    model: Any, variables: Sequence[Any], x: Any, y: Any, loss: Any, sample_weight: Any = None
) -> Array:
    """``JᵀHJ`` for some variables, over the entries of one after the other."""

    def flat(derivatives: Sequence[Any], size: int) -> Array:
        dense = [tf.convert_to_tensor(derivative) for derivative in derivatives]
        return np.concatenate([np.reshape(each, (size, -1)) for each in dense], axis=1)

    return _gauss_newton(model, variables, x, y, loss, sample_weight, flat)


def _gauss_newton(
    model: Any,
    variables: Sequence[Any],
    x: Any,
    y: Any,
    loss: Any,
    sample_weight: Any,
    as_matrix: Callable[[Sequence[Any], int], Array],
) -> Array:
    values = [variable.value for variable in variables]
    with tf.GradientTape(persistent=True) as tape:
        outputs = model(x, training=False)
    size = int(tf.size(outputs))
    derivatives = tape.jacobian(outputs, values, experimental_use_pfor=False)
    jacobian = as_matrix(derivatives, size)

    def mean_loss(at: tf.Tensor) -> tf.Tensor:
        at._keras_mask = getattr(outputs, "_keras_mask", None)
        return loss(y, at, sample_weight=sample_weight)

    hessian = hessian_of(mean_loss, outputs)
    return jacobian.T @ hessian.reshape(size, size) @ jacobian


def hessian_of(function: Callable[[tf.Tensor], tf.Tensor], at: tf.Tensor) -> Array:
    """Second derivatives of a scalar function."""
    at = tf.constant(at.numpy())
    with tf.GradientTape(persistent=True) as outer:
        outer.watch(at)
        with tf.GradientTape() as inner:
            inner.watch(at)
            value = function(at)
        gradient = inner.gradient(value, at)
    return outer.jacobian(gradient, at, experimental_use_pfor=False).numpy()


def _as_matrix(derivatives: Sequence[Any], size: int, layer: Any) -> Array:
    """Derivatives of `size` numbers by kernel (and bias) → ``[size, entries of the block]``."""
    outputs, groups = layer.kernel.shape[-1], getattr(layer, "groups", 1)
    rows = np.concatenate([np.reshape(d, (size, -1, outputs)) for d in derivatives], axis=1)
    return np.stack(np.split(rows, groups, axis=-1), axis=1).reshape(size, -1)


# --- making and filling blocks -----------------------------------------------------------------


def add_variable(**kwargs: Any) -> Any:
    """``add_variable`` of an optimizer, which blocks are built with."""
    return keras.optimizers.SGD().add_variable(**kwargs)


def positive(rng: np.random.Generator, *shape: int) -> Array:
    """A stack of well-conditioned symmetric positive definite matrices."""
    rows = rng.normal(size=(*shape[:-1], 3 * shape[-1], shape[-1]))
    return np.swapaxes(rows, -1, -2) @ rows / rows.shape[-2] + 0.1 * np.eye(shape[-1])


def fill(block: Any, A: Array, G: Array, uses: float, damping: float = 1.0) -> Any:
    """Builds a Kronecker block and gives it factors."""
    block.build(add_variable, lambda: tf.constant(damping, block.dtype))
    statistics = {"A": A, "G": G, "uses": np.float64(uses)}
    if block.inverse.takes_examples:  # not entered before there are bases to measure it in
        statistics["s"] = np.zeros(block.inverse.shapes()["scales"])
    block.update(
        {key: tf.constant(value, block.dtype) for key, value in statistics.items()},
        tf.constant(0.0),
        tf.constant(1.0),
    )
    return block


def relative_error(value: Any, expected: Any) -> float:
    """The largest difference over the largest expected entry."""
    value, expected = np.asarray(value), np.asarray(expected)
    assert value.shape == expected.shape, f"{value.shape=} {expected.shape=}"
    return float(np.abs(value - expected).max() / max(np.abs(expected).max(), 1e-300))
