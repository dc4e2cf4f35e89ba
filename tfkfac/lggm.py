"""The chain-structured linear Gaussian model of a recurrent layer's gradients (mathematics.md §4).

Martens, Ba and Johnson (2018) take the gradients w_t = vec(g_t a_tᵀ) of the steps of a sequence
for a stationary Markov chain with ``cov(w_{t+d}, w_t) = A_d ⊗ G_d``, in which the powers A_d, G_d
follow from lag 0 and lag 1. The Fisher of the layer is ``Σ_{|d|<T} (T − |d|)·A_d ⊗ G_d``.
Everything here is of one side of the product (A or G), or couples both; tensors in, tensors out.
"""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf

from tfkfac import linalg

FLOOR = 1e-6
"""Least relative size of what is divided by, in single precision (none is needed in double)."""


def symmetric_basis(
    lag0: tf.Tensor, lag1: tf.Tensor, shift: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Option 1: lag 1 is made symmetric, so that one basis diagonalises all lags.

    Args:
        lag0: C₀ ``[d, d]``, a lower triangle.
        lag1: C₁ ``[d, d]``, the second moment of a step with the one before it.
        shift: δ, the damping of C₀.

    Returns:
        ``(K [d, d], ψ [d])`` with ``Kᵀ(C₀ + δI)K = I`` and ``Kᵀ½(C₁ + C₁ᵀ)K = diag ψ``; ψ keeps its
        sign and is clipped to [−1, 1]. NaN where C₀ + δI is not positive definite.
    """
    root = linalg.inverse_root(linalg.shifted(lag0, shift))
    even = (lag1 + tf.linalg.matrix_transpose(lag1)) / 2
    values, vectors = linalg.eigh(_between(root, even))
    return tf.matmul(root, vectors, transpose_a=True), tf.clip_by_value(values, -1.0, 1.0)


def limit_basis(
    lag0: tf.Tensor, lag1: tf.Tensor, shift: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Option 2: the transitions as they are, for sequences that are long.

    Args:
        lag0: C₀ ``[d, d]``, a lower triangle.
        lag1: C₁ ``[d, d]``.
        shift: δ, the damping of C₀.

    Returns:
        ``(K [d, d], m [d], P [d, d])`` with ``Kᵀ(C₀ + δI)K = I``, ``KᵀC₁ᵀ(C₀ + δI)⁻¹C₁K = diag m``,
        m clipped to [0, 1], and ``P = C₁ᵀ(C₀ + δI)⁻¹``.
    """
    root = linalg.inverse_root(linalg.shifted(lag0, shift))
    whitened = _between(root, lag1)
    values, vectors = linalg.eigh(tf.matmul(whitened, whitened, transpose_a=True))
    basis = tf.matmul(root, vectors, transpose_a=True)
    step = tf.matmul(lag1, tf.matmul(root, root, transpose_a=True), transpose_a=True)
    return basis, tf.clip_by_value(values, 0.0, 1.0), step


def mean_of_lags(products: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
    """``E_T[D_T(x)]`` with ``D_T(x) = T + 2 Σ_{d=1}^{T−1} (T − d) x^d``.

    By Horner's rule for x ≥ 0, where all terms are positive; by the closed form
    ``(T(1 − x²) − 2x(1 − x^T)) / (1 − x)²`` for x < 0, where nothing cancels in it.

    Args:
        products: x in [−1, 1], of any shape.
        lengths: ``[C + 1]``, entry T the (expected) number of sequences of length T an example.

    Returns:
        Of the shape of `products`; at least `FLOOR`·E[T] in single precision.
    """
    longest = lengths.shape[0] - 1
    lags = lags_of_lengths(lengths)
    mean, total = lags[0], tf.reduce_sum(lengths)
    positive = products >= 0
    coefficients = tf.stack([tf.concat([lags[:1], 2 * lags[1:]], axis=0), lengths])

    def horner(index: tf.Tensor, sums: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        of_lags, of_powers = tf.unstack(coefficients[:, index])
        return index - 1, tf.where(positive, of_lags, of_powers) + products * sums

    _, sums = tf.while_loop(
        lambda index, _: index >= 0,
        horner,
        (tf.constant(longest), tf.zeros_like(products)),
        maximum_iterations=longest + 1,
    )
    closed = mean * (1 - products) * (1 + products) - 2 * products * (total - sums)
    sums = tf.where(positive, sums, closed / tf.square(1 - tf.minimum(products, 0.0)))
    return sums if sums.dtype == tf.float64 else tf.maximum(sums, FLOOR * mean)


def lags_of_lengths(lengths: tf.Tensor) -> tf.Tensor:
    """``E[(T − d)⁺]`` for d = 0, ..., C of a distribution of lengths ``[C + 1]``."""
    at_least = tf.cumsum(lengths, reverse=True)
    return tf.cumsum(tf.pad(at_least[1:], [[0, 1]]), reverse=True)


def solve_symmetric(
    matrix: tf.Tensor, bases: tuple[tf.Tensor, tf.Tensor], gain: tf.Tensor
) -> tf.Tensor:
    """Option 1: ``F⁻¹V``.

    Args:
        matrix: V ``[in, out]``.
        bases: K of both sides.
        gain: γ = 1 / E_T[D_T(ψ_A ψ_Gᵀ)], ``[in, out]``.
    """
    left, right = bases
    matrix = tf.matmul(tf.matmul(left, matrix, transpose_a=True), right) * gain
    return tf.matmul(tf.matmul(left, matrix), right, transpose_b=True)


def solve_limit(
    matrix: tf.Tensor,
    bases: tuple[tf.Tensor, tf.Tensor],
    steps: tuple[tf.Tensor, tf.Tensor],
    norms: tuple[tf.Tensor, tf.Tensor],
    length: tf.Tensor,
) -> tf.Tensor:
    """Option 2: ``(1/T) V₀^−½ (I − Ψ)(I − ΨᵀΨ)⁻¹(I − Ψᵀ) V₀^−½ V``.

    Args:
        matrix: V ``[in, out]``.
        bases: K of both sides.
        steps: P of both sides.
        norms: m of both sides.
        length: E[T].
    """
    (left, right), (left_step, right_step) = bases, steps
    matrix -= tf.matmul(tf.matmul(left_step, matrix), right_step, transpose_b=True)
    matrix = tf.matmul(tf.matmul(left, matrix, transpose_a=True), right)
    rest = 1 - norms[0][:, None] * norms[1][None, :]
    matrix /= rest if rest.dtype == tf.float64 else tf.maximum(rest, FLOOR)
    matrix = tf.matmul(tf.matmul(left, matrix), right, transpose_b=True)
    matrix -= tf.matmul(tf.matmul(left_step, matrix, transpose_a=True), right_step)
    return matrix / length


def dense(averages: Mapping[str, tf.Tensor], *, symmetric: bool) -> tf.Tensor:
    """The Fisher of a layer as a matrix, undamped; only for small ones.

    Args:
        averages: "A", "A1", "G", "G1" (lower triangles at lag 0), "lengths" and "uses" = E[T].
        symmetric: Option 1, the sum over the lags that there are; option 2, its limit for long
            sequences, ``E[T]·(X + Xᵀ − V)`` with ``X = Σ_d M^d V``, V = A₀ ⊗ G₀, M = C₁C₀⁻¹.
    """
    A, G = linalg.symmetric(averages["A"]), linalg.symmetric(averages["G"])
    whole = linalg.kronecker(A, G)
    steps = [
        tf.matmul((lag1 + tf.transpose(lag1)) / 2 if symmetric else lag1, tf.linalg.pinv(lag0))
        for lag0, lag1 in ((A, averages["A1"]), (G, averages["G1"]))
    ]
    step = linalg.kronecker(*steps)
    if not symmetric:
        identity = tf.eye(step.shape[0], dtype=step.dtype)
        sums = tf.linalg.solve(identity - step, whole)
        return averages["uses"] * (sums + tf.transpose(sums) - whole)
    lags = lags_of_lengths(averages["lengths"])
    total, power = lags[0] * whole, whole
    for lag in tf.unstack(lags[1:]):
        power = tf.matmul(step, power)
        total += lag * (power + tf.transpose(power))
    return total * averages["uses"] / lags[0]


def _between(root: tf.Tensor, moment: tf.Tensor) -> tf.Tensor:
    """``R C Rᵀ``."""
    return tf.matmul(tf.matmul(root, moment), root, transpose_b=True)
