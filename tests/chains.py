"""The chain-structured model of maths.md §3 as dense matrices: sums over all lags, in NumPy.

A side of the product is a pair ``(C₀, C₁)``. Rows and columns of what is returned run over the
entries of V ``[in, out]``, row by row.
"""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf
from reference import add_variable, positive

from tfkfac.blocks import RecurrentBlock

Array = np.ndarray
Side = tuple[Array, Array]

EXACT = np.longdouble
"""So that errors are those of the code under test."""


# --- the Fisher, and D_T -----------------------------------------------------------------------


def symmetric_fisher(inputs: Side, outputs: Side, lengths: Array) -> Array:
    """Option 1: ``Σ_d E[(T − |d|)⁺] A_d ⊗ G_d`` with lag 1 made symmetric."""
    steps = []
    for lag0, lag1 in (inputs, outputs):
        even = (lag1 + lag1.T).astype(EXACT) / 2
        steps.append(even @ solve(lag0, np.eye(len(lag0))))
    power = np.kron(inputs[0], outputs[0]).astype(EXACT)
    step, sizes = np.kron(*steps), np.arange(len(lengths))
    total = (sizes @ lengths) * power
    for lag in range(1, len(lengths)):
        power = step @ power  # A_d ⊗ G_d = (C₁C₀⁻¹)^d C₀ of both, and that of −d its transpose
        total = total + (np.maximum(sizes - lag, 0) @ lengths) * (power + power.T)
    return total


def limit_fisher(inputs: Side, outputs: Side, length: float) -> Array:
    """Option 2: ``T V₀^½ [(I − Ψ)⁻¹ + (I − Ψᵀ)⁻¹ − I] V₀^½``, what T·Σ_d A_d ⊗ G_d tends to."""
    roots, steps = zip(*(whitened(*side) for side in (inputs, outputs)), strict=True)
    root, step = np.kron(*roots), np.kron(*steps)
    identity = np.eye(len(step))
    sums = solve(identity - step, identity)
    return length * root @ (sums + sums.T - identity) @ root


def solve(matrix: Array, right: Array) -> Array:
    """``matrix⁻¹ right``, refined until the digits of `EXACT` are used up."""
    matrix, inverse = matrix.astype(EXACT), np.linalg.inv(matrix.astype(float))
    solution = np.zeros(right.shape, EXACT)
    for _ in range(6):
        solution = solution + inverse @ (right - matrix @ solution)
    return solution


def whitened(lag0: Array, lag1: Array) -> tuple[Array, Array]:
    """``(C₀^½, Ψ = C₀^−½ C₁ C₀^−½)``."""
    root = square_root(lag0)
    inverse = solve(root, np.eye(len(root)))
    return root, inverse @ lag1 @ inverse


def square_root(matrix: Array) -> Array:
    """The symmetric one."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values)) @ vectors.T


def mean_of_lags(products: Array, lengths: Array) -> Array:
    """``E_T[T + 2 Σ_d (T − d) x^d]``, one term after the other, with all digits there are."""
    x, total = np.asarray(products, EXACT), EXACT(0)
    for length, share in enumerate(lengths):
        terms = [length + 0 * x] + [2 * (length - d) * x**d for d in range(1, length)]
        total = total + EXACT(share) * sum(terms[:length], 0 * x)
    return total


# --- sides that belong to some chain -----------------------------------------------------------


def side_of_samples(dim: int, seed: int, steps: int = 6) -> Side:
    """Lag 0 and lag 1, with one normaliser, of sequences of a vector autoregression."""
    rng = np.random.default_rng(seed)
    step = rng.normal(size=(dim, dim))
    step *= rng.uniform(0.3, 1.0) / np.linalg.norm(step, 2)
    x = rng.normal(size=(8, steps, dim))
    for t in range(1, steps):
        x[:, t] += x[:, t - 1] @ step.T
    pairs = np.einsum("ntd,nte->de", x[:, 1:], x[:, :-1])
    return np.einsum("ntd,nte->de", x, x) / (8 * steps), pairs / (8 * steps)


def side_of_values(values: Array, seed: int, *, symmetric: bool) -> Side:
    """``C₁ = C₀^½ Ψ C₀^½`` for a Ψ with given eigenvalues (or, not symmetric, singular values)."""
    rng, dim = np.random.default_rng(seed), len(values)
    lag0 = positive(rng, dim)
    left, right = (np.linalg.qr(rng.normal(size=(dim, dim)))[0] for _ in range(2))
    step = (left * np.asarray(values)) @ (left if symmetric else right).T
    root = square_root(lag0)
    return lag0, root @ step @ root


def one_length(length: int) -> Array:
    """Every sequence has the same length."""
    return np.eye(length + 1)[length]


# --- a block that holds them -------------------------------------------------------------------


def recurrent_block(
    form: str,
    inputs: Side,
    outputs: Side,
    lengths: Array,
    *,
    uses: float | None = None,
    damping: float = 0.0,
    dtype: str = "float64",
) -> RecurrentBlock:
    """A built block, without a bias, whose averages are these."""
    shape = len(inputs[0]), len(outputs[0])
    layer = keras.layers.Dense(shape[1], use_bias=False, dtype=dtype)
    layer.build((None, shape[0]))
    steps = len(lengths) - 1
    block = RecurrentBlock([layer, layer], layer.kernel, None, recurrent=form, steps=steps)
    block.build(add_variable, lambda: tf.constant(damping, block.dtype))
    block.update(
        averages(inputs, outputs, lengths, uses=uses, dtype=dtype),
        tf.constant(0.0),
        tf.constant(1.0),
    )
    return block


def averages(
    inputs: Side, outputs: Side, lengths: Array, *, uses: float | None = None, dtype: str
) -> dict[str, tf.Tensor]:
    """What the inverses are computed from."""
    uses = float(np.arange(len(lengths)) @ lengths) if uses is None else uses
    (A, A1), (G, G1) = inputs, outputs
    named = {"A": np.tril(A), "A1": A1, "G": np.tril(G), "G1": G1, "lengths": lengths, "uses": uses}
    return {key: tf.constant(value, dtype) for key, value in named.items()}
