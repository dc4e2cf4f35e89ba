"""What a recurrent block keeps to precondition with: both options of the LGGM (`tfkfac.lggm`)."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfkfac import lggm, linalg
from tfkfac.averages import Averages
from tfkfac.factor_forms import DENSE
from tfkfac.factors import KroneckerInverse, damping_balance


class ChainInverse(KroneckerInverse):
    """The part that both options share: two dense factors, damped at lag 0.

    `compute` takes, beside "A", "G" and "uses" (E[T]), the second moments "A1" and "G1" of
    neighbouring steps, and the distribution "lengths".
    """

    operations = 15.0

    def shifts(self, averages: Averages, damping: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """``(π√(λ/T), √(λ/T)/π)``: factored Tikhonov damping, at lag 0 only."""
        balance = damping_balance(
            DENSE.mean_eigenvalue(averages["A"]), DENSE.mean_eigenvalue(averages["G"])
        )
        root = tf.sqrt(damping / averages["uses"])
        return balance * root, root / balance

    def is_finite(self, fresh: list[tf.Tensor]) -> tf.Tensor:
        """Every entry: these matrices are not positive semi-definite."""
        return linalg.all_finite(*fresh)


class SymmetricChainInverse(ChainInverse):
    """Option 1 of Martens, Ba and Johnson (2018): lag 1 made symmetric, the lengths exact."""

    products = 2

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Both bases, and what is between them."""
        inputs, outputs = self.input_dim, self.output_dim
        return {
            "input_basis": (inputs, inputs),
            "output_basis": (outputs, outputs),
            "gain": (inputs, outputs),
        }

    def initializer(self, key: str) -> Any:
        """No preconditioning."""
        return "ones" if key == "gain" else super().initializer(key)

    def compute(self, averages: Averages, damping: tf.Tensor) -> list[tf.Tensor]:
        """The bases, and γ = 1 / E_T[D_T(ψ_A ψ_Gᵀ)]."""
        left_shift, right_shift = self.shifts(averages, damping)
        left, left_values = lggm.symmetric_basis(averages["A"], averages["A1"], left_shift)
        right, right_values = lggm.symmetric_basis(averages["G"], averages["G1"], right_shift)
        products = left_values[:, None] * right_values[None, :]
        lengths = averages["lengths"]
        told_apart = lggm.lags_of_lengths(lengths)[0]  # longer sequences count as several
        sums = lggm.mean_of_lags(products, lengths) * averages["uses"] / told_apart
        return [left, right, 1 / sums]

    def apply(self, kept: list[tf.Tensor], matrix: tf.Tensor, damping: tf.Tensor) -> tf.Tensor:
        """Rotates, scales, rotates back."""
        left, right, gain = kept
        return lggm.solve_symmetric(matrix, (left, right), gain)


class LimitChainInverse(ChainInverse):
    """Option 2 of Martens, Ba and Johnson (2018): any lag 1, in the limit of long sequences."""

    products = 4

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Bases, transitions and their squared singular values, of both sides; 1 number E[T]."""
        sides = {"input": self.input_dim, "output": self.output_dim}
        return {
            **{f"{side}_basis": (dim, dim) for side, dim in sides.items()},
            **{f"{side}_step": (dim, dim) for side, dim in sides.items()},
            **{f"{side}_norms": (dim,) for side, dim in sides.items()},
            "length": (),
        }

    def initializer(self, key: str) -> Any:
        """No preconditioning."""
        if key.endswith(("step", "norms")):
            return "zeros"
        return "ones" if key == "length" else super().initializer(key)

    def compute(self, averages: Averages, damping: tf.Tensor) -> list[tf.Tensor]:
        """Everything that `lggm.solve_limit` takes."""
        left_shift, right_shift = self.shifts(averages, damping)
        left, left_norms, left_step = lggm.limit_basis(averages["A"], averages["A1"], left_shift)
        right, right_norms, right_step = lggm.limit_basis(
            averages["G"], averages["G1"], right_shift
        )
        steps_and_norms = [left_step, right_step, left_norms, right_norms]
        return [left, right, *steps_and_norms, averages["uses"]]

    def apply(self, kept: list[tf.Tensor], matrix: tf.Tensor, damping: tf.Tensor) -> tf.Tensor:
        """Eight products."""
        left, right, left_step, right_step, left_norms, right_norms, length = kept
        return lggm.solve_limit(
            matrix, (left, right), (left_step, right_step), (left_norms, right_norms), length
        )


RECURRENT: dict[str, type[ChainInverse] | None] = {
    "independent": None,
    "lggm_symmetric": SymmetricChainInverse,
    "lggm_limit": LimitChainInverse,
}
"""The values of ``KFAC(recurrent=...)``; None leaves the inverse to ``KFAC(method=...)``."""
