"""Decayed averages of curvature statistics, and the inverses made of them.

Whoever holds variables here is made in two steps, as Keras optimizers are: constructed from
shapes, then `build` with the optimizer's ``add_variable``.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from tfkfac import linalg

AddVariable = Callable[..., Any]
"""``keras.optimizers.Optimizer.add_variable``."""


class DecayedAverages:
    """Decayed averages of several statistics that are always updated together.

    ``V ← d·V + weight·C`` and ``w ← d·w + weight``, served as ``V / w`` (mathematics.md §2): there
    is no start-up bias, and a partial batch enters with its share of a whole one.

    Args:
        name: Prefix of the variables' names.
        shapes: Name of a statistic → shape.
        dtype: Floating dtype of the statistics.
    """

    def __init__(self, name: str, shapes: Mapping[str, tuple[int, ...]], dtype: str) -> None:
        self.name = name
        self.shapes = dict(shapes)
        self.dtype = dtype
        self._sums: dict[str, Any] = {}
        self._weight: Any = None

    @property
    def built(self) -> bool:
        """Whether the variables exist."""
        return self._weight is not None

    def build(self, add_variable: AddVariable) -> None:
        """Makes the variables."""
        self._sums = {
            key: add_variable(shape=shape, dtype=self.dtype, name=f"{self.name}_{key}")
            for key, shape in self.shapes.items()
        }
        self._weight = add_variable(shape=(), dtype=self.dtype, name=f"{self.name}_weight")

    def update(
        self, contributions: Mapping[str, tf.Tensor], decay: tf.Tensor, weight: tf.Tensor
    ) -> tf.Tensor:
        """Enters one batch; a batch with a non-finite statistic is left out.

        Args:
            contributions: A tensor for each statistic.
            decay: Scalar in [0, 1).
            weight: Scalar, the share of a whole batch (1 for a whole one).

        Returns:
            Whether the batch was entered, a boolean scalar.
        """
        finite = linalg.finite_diagonals(*contributions.values())
        decay, weight = tf.cast(decay, self.dtype), tf.cast(weight, self.dtype)

        def enter() -> tf.Tensor:
            for key, total in self._sums.items():
                total.assign(decay * total + weight * tf.cast(contributions[key], self.dtype))
            self._weight.assign(decay * self._weight + weight)
            return tf.constant(True)

        return tf.cond(finite, enter, lambda: tf.constant(False))

    def read(self) -> dict[str, tf.Tensor]:
        """The averages; zeros before the first update."""
        scale = tf.math.divide_no_nan(tf.ones([], self.dtype), tf.convert_to_tensor(self._weight))
        return {key: tf.convert_to_tensor(total) * scale for key, total in self._sums.items()}


class KroneckerInverse(abc.ABC):
    """What a block keeps between refreshes to apply ``(|T|·A ⊗ G + λI)⁻¹``.

    Args:
        name: Prefix of the variables' names.
        stack: Leading shape of the factors (``()``, or ``(groups,)``).
        input_dim: Dimension of A.
        output_dim: Dimension of G.
        dtype: Floating dtype.
    """

    def __init__(
        self, name: str, stack: tuple[int, ...], input_dim: int, output_dim: int, dtype: str
    ) -> None:
        self.name = name
        self.stack = stack
        self.input_dim = input_dim
        self.output_dim = output_dim
        self.dtype = dtype
        self.variables: list[Any] = []

    @abc.abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of what is kept."""

    @abc.abstractmethod
    def compute(
        self, inputs: tf.Tensor, outputs: tf.Tensor, uses: tf.Tensor, damping: tf.Tensor
    ) -> list[tf.Tensor]:
        """What is kept, from the factors (lower triangles) A and G, |T| and the damping λ."""

    @abc.abstractmethod
    def apply(self, kept: list[tf.Tensor], matrix: tf.Tensor, damping: tf.Tensor) -> tf.Tensor:
        """``(|T|·A ⊗ G + λI)⁻¹ V`` for V = `matrix` ``[..., in, out]``."""

    def build(self, add_variable: AddVariable) -> None:
        """Makes the variables. Until the first refresh they amount to no preconditioning."""
        self.variables = [
            add_variable(
                shape=shape,
                dtype=self.dtype,
                name=f"{self.name}_{key}",
                initializer=_identity_initializer if len(shape) - len(self.stack) == 2 else "ones",
            )
            for key, shape in self.shapes().items()
        ]

    def refresh(
        self, inputs: tf.Tensor, outputs: tf.Tensor, uses: tf.Tensor, damping: tf.Tensor
    ) -> None:
        """Recomputes what is kept; a result with a non-finite entry is dropped."""
        fresh = self.compute(inputs, outputs, uses, damping)
        finite = linalg.finite_diagonals(*fresh)
        for variable, value in zip(self.variables, fresh, strict=True):
            variable.assign(tf.where(finite, value, variable))

    def precondition(self, matrix: tf.Tensor, damping: tf.Tensor) -> tf.Tensor:
        """`apply` with what was kept at the last refresh."""
        kept = [tf.convert_to_tensor(variable) for variable in self.variables]
        return self.apply(kept, matrix, damping)


class CholeskyInverse(KroneckerInverse):
    """Factored Tikhonov damping (Martens & Grosse 2015, §6.3; mathematics.md §2).

    ``(A + π√λ'·I)⁻¹ V (G + √λ'/π·I)⁻¹ / |T|`` with λ' = λ/|T| and π the square root of the ratio of
    the factors' mean eigenvalues. The damping is the one of the last refresh.
    """

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Two dense inverses; 1/|T| is folded into the first."""
        return {
            "input_inverse": (*self.stack, self.input_dim, self.input_dim),
            "output_inverse": (*self.stack, self.output_dim, self.output_dim),
        }

    def compute(
        self, inputs: tf.Tensor, outputs: tf.Tensor, uses: tf.Tensor, damping: tf.Tensor
    ) -> list[tf.Tensor]:
        """The damped inverses of both factors."""
        balance = damping_balance(inputs, outputs)
        root = tf.sqrt(damping / uses)
        return [
            linalg.inverse(linalg.shifted(inputs, balance * root)) / uses,
            linalg.inverse(linalg.shifted(outputs, root / balance)),
        ]

    def apply(self, kept: list[tf.Tensor], matrix: tf.Tensor, damping: tf.Tensor) -> tf.Tensor:
        """Two products, the cheaper order first being the same: both are ``in·out·(in+out)``."""
        input_inverse, output_inverse = kept
        return tf.matmul(tf.matmul(input_inverse, matrix), output_inverse)


class EigenInverse(KroneckerInverse):
    """Exact Tikhonov damping in the factors' eigenbases (KAISA; mathematics.md §2).

    ``Q_A [ (Q_Aᵀ V Q_G) / (|T|·d_A d_Gᵀ + λ) ] Q_Gᵀ``: λ may change without a new decomposition.
    """

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Two eigenbases and their eigenvalues; |T| is folded into d_A."""
        return {
            "input_values": (*self.stack, self.input_dim),
            "input_vectors": (*self.stack, self.input_dim, self.input_dim),
            "output_values": (*self.stack, self.output_dim),
            "output_vectors": (*self.stack, self.output_dim, self.output_dim),
        }

    def compute(
        self, inputs: tf.Tensor, outputs: tf.Tensor, uses: tf.Tensor, damping: tf.Tensor
    ) -> list[tf.Tensor]:
        """The eigendecompositions of both factors."""
        input_values, input_vectors = linalg.eigenbasis(inputs)
        output_values, output_vectors = linalg.eigenbasis(outputs)
        return [uses * input_values, input_vectors, output_values, output_vectors]

    def apply(self, kept: list[tf.Tensor], matrix: tf.Tensor, damping: tf.Tensor) -> tf.Tensor:
        """Rotates, divides by the damped eigenvalues, rotates back."""
        input_values, input_vectors, output_values, output_vectors = kept
        rotated = tf.matmul(tf.matmul(input_vectors, matrix, transpose_a=True), output_vectors)
        rotated /= input_values[..., :, None] * output_values[..., None, :] + damping
        return tf.matmul(tf.matmul(input_vectors, rotated), output_vectors, transpose_b=True)


METHODS: dict[str, type[KroneckerInverse]] = {"cholesky": CholeskyInverse, "eigen": EigenInverse}
"""The values of ``KFAC(method=...)``."""


def damping_balance(inputs: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
    """π of mathematics.md §2: ``sqrt((tr A / dim A) / (tr G / dim G))``, 1 if a trace is 0."""
    input_mean, output_mean = linalg.mean_eigenvalue(inputs), linalg.mean_eigenvalue(outputs)
    defined = (input_mean > 0) & (output_mean > 0)
    ones = tf.ones_like(input_mean)
    return tf.sqrt(tf.where(defined, input_mean, ones) / tf.where(defined, output_mean, ones))


def _identity_initializer(shape: tuple[int, ...], dtype: Any = None) -> tf.Tensor:
    """Identity matrices, stacked over the leading dimensions."""
    return tf.eye(shape[-1], batch_shape=shape[:-2], dtype=dtype)
