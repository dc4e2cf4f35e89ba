"""What is made of Kronecker factors to precondition with, a class for each method.

An inverse is made in two steps, as Keras optimizers are: constructed from shapes, then `build` with
the optimizer's ``add_variable``.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfkfac import linalg
from tfkfac.averages import AddVariable, Averages
from tfkfac.factor_forms import DENSE, FactorForm


class KroneckerInverse(abc.ABC):
    """What a block keeps between refreshes to apply ``(|T|·A ⊗ G + λI)⁻¹``.

    Args:
        name: Prefix of the variables' names.
        stack: Leading shape of the factors (``()``, or ``(groups,)``).
        input_dim: Dimension of A.
        output_dim: Dimension of G.
        dtype: Floating dtype.
        input_form: How A is kept.
        output_form: How G is kept.

    Attributes:
        products: Matrix products with each factor in one `apply`.
        operations: Of one `compute`, in units of d³ for each factor.
        takes_examples: Whether `update` wants "s" among a batch's statistics, and `bases` has what
            it is measured in.
    """

    products: int
    operations: float
    takes_examples = False

    def __init__(
        self,
        name: str,
        stack: tuple[int, ...],
        input_dim: int,
        output_dim: int,
        dtype: str,
        input_form: FactorForm = DENSE,
        output_form: FactorForm = DENSE,
    ) -> None:
        self.name = name
        self.input_form = input_form
        self.output_form = output_form
        self.stack = stack
        self.input_dim = input_dim
        self.output_dim = output_dim
        self.dtype = dtype
        self.variables: list[Any] = []

    @abc.abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of what is kept; the first goes along the rows of V if A is diagonal."""

    @abc.abstractmethod
    def compute(self, averages: Averages, damping: tf.Tensor) -> list[tf.Tensor]:
        """What is kept.

        Args:
            averages: The factors "A" and "G" in their forms, and |T| as "uses".
            damping: λ.
        """

    @abc.abstractmethod
    def apply(self, kept: list[tf.Tensor], matrix: tf.Tensor, damping: tf.Tensor) -> tf.Tensor:
        """``(|T|·A ⊗ G + λI)⁻¹ V`` for V = `matrix` ``[..., in, out]``."""

    def compute_or_keep(self, averages: Averages, damping: tf.Tensor) -> list[tf.Tensor]:
        """What is to be applied to the factors as they stand, for a damping of one's choice."""
        return self.compute(averages, damping)

    def to_dense(self, averages: Averages) -> tf.Tensor:
        """``|T|·A ⊗ G``, ``[..., in·out, in·out]``."""
        inputs = self.input_form.to_dense(averages["A"])
        outputs = self.output_form.to_dense(averages["G"])
        return averages["uses"] * linalg.kronecker(inputs, outputs)

    def bases(self) -> tuple[tf.Tensor | None, tf.Tensor | None]:
        """Q_A and Q_G of the last refresh, of inverses that take examples; None is identity."""
        raise NotImplementedError(f"{type(self).__name__} has no bases.")

    def update(
        self, statistics: Averages, decay: tf.Tensor, weight: tf.Tensor, entered: tf.Tensor
    ) -> None:
        """Follows the statistics of a batch between refreshes, where the method does.

        Args:
            statistics: Of the batch.
            decay: Scalar in [0, 1).
            weight: Scalar, the share of a whole batch.
            entered: Whether the batch has entered the averages.
        """
        del statistics, decay, weight, entered

    def build(self, add_variable: AddVariable) -> None:
        """Makes the variables. Until the first refresh they amount to no preconditioning."""
        self.variables = [
            add_variable(
                shape=shape,
                dtype=self.dtype,
                name=f"{self.name}_{key}",
                initializer=self.initializer(key),
            )
            for key, shape in self.shapes().items()
        ]

    def initializer(self, key: str) -> Any:
        """What a variable holds before the first refresh: identities, of diagonals ones."""
        rank = len(self.shapes()[key]) - len(self.stack)
        return "ones" if rank == 1 else _identity_initializer

    def triangles(self) -> frozenset[str]:
        """Names of what is kept that are symmetric matrices."""
        return frozenset()

    def fresh(self, averages: Averages, damping: tf.Tensor) -> tuple[list[tf.Tensor], tf.Tensor]:
        """What is to be kept from now on, and whether it is new.

        It is what is kept already where a result has a non-finite entry, or while no use was seen
        (masked batches).
        """
        made = self.compute(averages, damping)
        usable = self.is_finite(made) & (averages["uses"] > 0)
        values = [
            tf.where(usable, value, variable)
            for value, variable in zip(made, self.variables, strict=True)
        ]
        return values, usable

    def keep(self, fresh: Sequence[tf.Tensor]) -> None:
        """Keeps it."""
        for variable, value in zip(self.variables, fresh, strict=True):
            variable.assign(value)

    def refresh(self, averages: Averages, damping: tf.Tensor) -> None:
        """Recomputes what is kept."""
        self.keep(self.fresh(averages, damping)[0])

    def is_finite(self, fresh: list[tf.Tensor]) -> tf.Tensor:
        """Whether a result of `compute` may be kept, a boolean scalar."""
        return linalg.finite_diagonals(*fresh)

    def kept(self) -> list[tf.Tensor]:
        """What was kept at the last refresh, for `apply`."""
        return [tf.convert_to_tensor(variable) for variable in self.variables]


class CholeskyInverse(KroneckerInverse):
    """Factored Tikhonov damping (Martens & Grosse 2015, §6.3; mathematics.md §2).

    ``(A + π√λ'·I)⁻¹ V (G + √λ'/π·I)⁻¹ / |T|`` with λ' = λ/|T| and π the square root of the ratio of
    the factors' mean eigenvalues. The damping is the one of the last refresh.
    """

    products = 1
    operations = 2.0

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Two inverses; 1/|T| is folded into the first."""
        return {
            "input_inverse": self.input_form.shape(self.stack, self.input_dim),
            "output_inverse": self.output_form.shape(self.stack, self.output_dim),
        }

    def triangles(self) -> frozenset[str]:
        """Inverses of dense factors."""
        forms = {"input_inverse": self.input_form, "output_inverse": self.output_form}
        return frozenset(key for key, form in forms.items() if form is DENSE)

    def compute(self, averages: Averages, damping: tf.Tensor) -> list[tf.Tensor]:
        """The damped inverses of both factors."""
        inputs, outputs, uses = averages["A"], averages["G"], averages["uses"]
        balance = damping_balance(
            self.input_form.mean_eigenvalue(inputs), self.output_form.mean_eigenvalue(outputs)
        )
        root = tf.sqrt(damping / uses)
        return [
            self.input_form.inverse(inputs, balance * root) / uses,
            self.output_form.inverse(outputs, root / balance),
        ]

    def apply(self, kept: list[tf.Tensor], matrix: tf.Tensor, damping: tf.Tensor) -> tf.Tensor:
        """Two products; either order costs ``in·out·(in + out)``."""
        input_inverse, output_inverse = kept
        return self.output_form.right(self.input_form.left(input_inverse, matrix), output_inverse)


class EigenInverse(KroneckerInverse):
    """Exact Tikhonov damping in the factors' eigenbases (KAISA; mathematics.md §2).

    ``Q_A [ (Q_Aᵀ V Q_G) / (|T|·d_A d_Gᵀ + λ) ] Q_Gᵀ``: λ may change without a new decomposition.
    """

    products = 2
    operations = 9.0

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Eigenvalues and, of dense factors, eigenvectors; |T| is folded into d_A."""
        return {
            **self._shapes_of("input", self.input_form, self.input_dim),
            **self._shapes_of("output", self.output_form, self.output_dim),
        }

    def compute(self, averages: Averages, damping: tf.Tensor) -> list[tf.Tensor]:
        """The eigendecompositions of both factors."""
        input_values, *input_vectors = self.input_form.eigenbasis(averages["A"])
        output_basis = self.output_form.eigenbasis(averages["G"])
        return [averages["uses"] * input_values, *input_vectors, *output_basis]

    def apply(self, kept: list[tf.Tensor], matrix: tf.Tensor, damping: tf.Tensor) -> tf.Tensor:
        """Rotates, divides by the damped eigenvalues, rotates back."""
        named = dict(zip(self.shapes(), kept, strict=True))
        left, right = named.get("input_vectors"), named.get("output_vectors")
        if left is not None:
            matrix = tf.matmul(left, matrix, transpose_a=True)
        if right is not None:
            matrix = tf.matmul(matrix, right)
        matrix /= self.eigenvalues(named) + damping
        if left is not None:
            matrix = tf.matmul(left, matrix)
        if right is not None:
            matrix = tf.matmul(matrix, right, transpose_b=True)
        return matrix

    def eigenvalues(self, named: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """What V is divided by in the eigenbases but for λ, ``[..., in, out]``."""
        return named["input_values"][..., :, None] * named["output_values"][..., None, :]

    def _shapes_of(self, side: str, form: FactorForm, dim: int) -> dict[str, tuple[int, ...]]:
        return {f"{side}_values": (*self.stack, dim), **self._vectors_of(side, form, dim)}

    def _vectors_of(self, side: str, form: FactorForm, dim: int) -> dict[str, tuple[int, ...]]:
        """None of a diagonal factor: they are the unit vectors."""
        return {f"{side}_vectors": (*self.stack, dim, dim)} if form is DENSE else {}


class EigenvalueCorrectedInverse(EigenInverse):
    """EKFAC: the eigenbases of the factors, with eigenvalues that are measured in them.

    ``Q_A [ (Q_Aᵀ V Q_G) / (s + λ) ] Q_Gᵀ`` with ``s = E_n[(Q_Aᵀ Σ_t a gᵀ Q_G)∘²]`` in the place of
    ``|T|·d_A d_Gᵀ``: of all diagonals in these bases the one that is nearest to the Fisher (George
    et al. 2018, §3; mathematics.md §2). A refresh starts s anew from ``|T|·d_A d_Gᵀ``, with the
    weight of one update, since what was measured in other bases says nothing in these.
    """

    takes_examples = True

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The decayed sum of s and its weight, and eigenvectors of dense factors."""
        return {
            "scales": (*self.stack, self.input_dim, self.output_dim),
            "weight": (),
            **self._vectors_of("input", self.input_form, self.input_dim),
            **self._vectors_of("output", self.output_form, self.output_dim),
        }

    def initializer(self, key: str) -> Any:
        """A weight of zero tells that there are no bases yet."""
        return {"scales": "ones", "weight": "zeros"}.get(key) or super().initializer(key)

    def compute(self, averages: Averages, damping: tf.Tensor) -> list[tf.Tensor]:
        """New bases, and s as the factors foretell it."""
        del damping
        input_values, *input_vectors = self.input_form.eigenbasis(averages["A"])
        output_values, *output_vectors = self.output_form.eigenbasis(averages["G"])
        scales = averages["uses"] * input_values[..., :, None] * output_values[..., None, :]
        return [scales, tf.ones([], self.dtype), *input_vectors, *output_vectors]

    def is_finite(self, fresh: list[tf.Tensor]) -> tf.Tensor:
        """Every entry: s is no matrix of which the diagonal says all."""
        return linalg.all_finite(*fresh)

    def eigenvalues(self, named: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """s; ones before the first refresh."""
        weight = named["weight"]
        return named["scales"] / tf.where(weight > 0, weight, tf.ones_like(weight))

    def update(
        self, statistics: Averages, decay: tf.Tensor, weight: tf.Tensor, entered: tf.Tensor
    ) -> None:
        """Enters a batch's "s", which was measured in `bases`; not before there are any."""
        scales, total = self.variables[:2]
        entered &= linalg.all_finite(statistics["s"]) & (total > 0)
        kept = tf.where(entered, tf.cast(decay, self.dtype), tf.ones([], self.dtype))
        share = tf.where(entered, tf.cast(weight, self.dtype), tf.zeros([], self.dtype))
        scales.assign(kept * scales + tf.math.multiply_no_nan(statistics["s"], share))
        total.assign(kept * total + share)

    def bases(self) -> tuple[tf.Tensor | None, tf.Tensor | None]:
        """Q_A and Q_G as they stand; None for unit vectors."""
        named = dict(zip(self.shapes(), self.kept(), strict=True))
        return named.get("input_vectors"), named.get("output_vectors")

    def compute_or_keep(self, averages: Averages, damping: tf.Tensor) -> list[tf.Tensor]:
        """What is kept: s as it stands is of the bases as they stand. Before those, new ones."""
        weight = tf.convert_to_tensor(self.variables[1])
        return tf.cond(weight > 0, self.kept, lambda: self.compute(averages, damping))

    def to_dense(self, averages: Averages) -> tf.Tensor:
        """``(Q_A ⊗ Q_G) diag(s) (Q_A ⊗ Q_G)ᵀ``."""
        kept = self.compute_or_keep(averages, tf.zeros([], self.dtype))
        named = dict(zip(self.shapes(), kept, strict=True))
        identities = [
            tf.eye(dim, batch_shape=self.stack, dtype=self.dtype)
            for dim in (self.input_dim, self.output_dim)
        ]
        basis = linalg.kronecker(
            named.get("input_vectors", identities[0]), named.get("output_vectors", identities[1])
        )
        scales = tf.reshape(self.eigenvalues(named), [*self.stack, 1, -1])
        return tf.matmul(basis * scales, basis, transpose_b=True)


METHODS: dict[str, type[KroneckerInverse]] = {
    "cholesky": CholeskyInverse,
    "eigen": EigenInverse,
    "ekfac": EigenvalueCorrectedInverse,
}
"""The values of ``KFAC(method=...)``."""


def damping_balance(input_mean: tf.Tensor, output_mean: tf.Tensor) -> tf.Tensor:
    """π of mathematics.md §2: ``sqrt((tr A / dim A) / (tr G / dim G))``, 1 if a trace is 0.

    Args:
        input_mean: ``tr A / dim A``, the mean eigenvalue.
        output_mean: ``tr G / dim G``.
    """
    defined = (input_mean > 0) & (output_mean > 0)
    ones = tf.ones_like(input_mean)
    return tf.sqrt(tf.where(defined, input_mean, ones) / tf.where(defined, output_mean, ones))


def _identity_initializer(shape: tuple[int, ...], dtype: Any = None) -> tf.Tensor:
    """Identity matrices, stacked over the leading dimensions."""
    return tf.eye(shape[-1], batch_shape=shape[:-2], dtype=dtype)
