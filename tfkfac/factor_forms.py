"""Two forms of a Kronecker factor: a dense matrix (its lower triangle), or only its diagonal.

A factor is diagonal where it is so by nature (one-hot inputs of an embedding) or where the matrix
would be too large. All methods take a stack of factors and return tensors.
"""

from __future__ import annotations

import abc

import tensorflow as tf

from tfkfac import linalg


class FactorForm(abc.ABC):
    """How a factor of dimension d is kept and used."""

    @abc.abstractmethod
    def shape(self, stack: tuple[int, ...], dim: int) -> tuple[int, ...]:
        """The shape of a stack of factors."""

    @abc.abstractmethod
    def second_moment(self, rows: tf.Tensor) -> tf.Tensor:
        """``rowsᵀ rows`` of ``[..., n, d]``, as far as the form keeps it."""

    def bordered_second_moment(
        self, rows: tf.Tensor, row: tf.Tensor, corner: tf.Tensor
    ) -> tf.Tensor:
        """The same with a last row and column, see `border`."""
        return self.border(self.second_moment(rows), row, corner)

    @abc.abstractmethod
    def border(self, moment: tf.Tensor, row: tf.Tensor, corner: tf.Tensor) -> tf.Tensor:
        """Appends a last row and column: ``[..., d]`` and ``[...]``."""

    @abc.abstractmethod
    def diagonal(self, factor: tf.Tensor) -> tf.Tensor:
        """``[..., d]``."""

    @abc.abstractmethod
    def to_dense(self, factor: tf.Tensor) -> tf.Tensor:
        """``[..., d, d]``, full and symmetric."""

    @abc.abstractmethod
    def inverse(self, factor: tf.Tensor, shift: tf.Tensor) -> tf.Tensor:
        """``(factor + shift·I)⁻¹`` in this form; NaN where it is not positive definite."""

    @abc.abstractmethod
    def left(self, inverse: tf.Tensor, matrix: tf.Tensor) -> tf.Tensor:
        """``inverse · matrix``."""

    @abc.abstractmethod
    def right(self, matrix: tf.Tensor, inverse: tf.Tensor) -> tf.Tensor:
        """``matrix · inverse``."""

    @abc.abstractmethod
    def eigenbasis(self, factor: tf.Tensor) -> list[tf.Tensor]:
        """Eigenvalues, and eigenvectors unless they are the unit vectors."""

    @abc.abstractmethod
    def operations_of_inverse(self, dim: int) -> float:
        """In units of d³ for a dense matrix."""

    def trace(self, factor: tf.Tensor) -> tf.Tensor:
        """Of each factor of the stack."""
        return tf.reduce_sum(self.diagonal(factor), axis=-1)

    def mean_eigenvalue(self, factor: tf.Tensor) -> tf.Tensor:
        """``tr / d`` of each factor of the stack."""
        return self.trace(factor) / float(factor.shape[-1])


class Dense(FactorForm):
    """A symmetric matrix, of which the lower triangle is kept."""

    def shape(self, stack: tuple[int, ...], dim: int) -> tuple[int, ...]:
        """``[..., d, d]``."""
        return (*stack, dim, dim)

    def second_moment(self, rows: tf.Tensor) -> tf.Tensor:
        """The lower triangle."""
        return linalg.second_moment(rows)

    def bordered_second_moment(
        self, rows: tf.Tensor, row: tf.Tensor, corner: tf.Tensor
    ) -> tf.Tensor:
        """In one copy."""
        return linalg.second_moment(rows, (row, corner))

    def border(self, moment: tf.Tensor, row: tf.Tensor, corner: tf.Tensor) -> tf.Tensor:
        """A last row; the upper triangle is not kept."""
        return linalg.border(moment, row, corner)

    def diagonal(self, factor: tf.Tensor) -> tf.Tensor:
        """Of the matrix."""
        return tf.linalg.diag_part(factor)

    def trace(self, factor: tf.Tensor) -> tf.Tensor:
        """Without a vector in between."""
        return linalg.traces(factor)

    def to_dense(self, factor: tf.Tensor) -> tf.Tensor:
        """Mirrors the triangle."""
        return linalg.symmetric(factor)

    def inverse(self, factor: tf.Tensor, shift: tf.Tensor) -> tf.Tensor:
        """By Cholesky."""
        return linalg.inverse(linalg.shifted(factor, shift))

    def left(self, inverse: tf.Tensor, matrix: tf.Tensor) -> tf.Tensor:
        """A matrix product."""
        return tf.matmul(inverse, matrix)

    def right(self, matrix: tf.Tensor, inverse: tf.Tensor) -> tf.Tensor:
        """A matrix product."""
        return tf.matmul(matrix, inverse)

    def eigenbasis(self, factor: tf.Tensor) -> list[tf.Tensor]:
        """Values and vectors."""
        return list(linalg.eigenbasis(factor))

    def operations_of_inverse(self, dim: int) -> float:
        """Cubic."""
        return float(dim) ** 3


class Diagonal(FactorForm):
    """Only the diagonal."""

    def shape(self, stack: tuple[int, ...], dim: int) -> tuple[int, ...]:
        """``[..., d]``."""
        return (*stack, dim)

    def second_moment(self, rows: tf.Tensor) -> tf.Tensor:
        """Sums of squares."""
        return tf.reduce_sum(tf.square(rows), axis=-2)

    def border(self, moment: tf.Tensor, row: tf.Tensor, corner: tf.Tensor) -> tf.Tensor:
        """One more entry."""
        del row
        return tf.concat([moment, corner[..., None]], axis=-1)

    def diagonal(self, factor: tf.Tensor) -> tf.Tensor:
        """The factor itself."""
        return factor

    def to_dense(self, factor: tf.Tensor) -> tf.Tensor:
        """A diagonal matrix."""
        return tf.linalg.diag(factor)

    def inverse(self, factor: tf.Tensor, shift: tf.Tensor) -> tf.Tensor:
        """Entry by entry."""
        return 1.0 / (factor + shift[..., None])

    def left(self, inverse: tf.Tensor, matrix: tf.Tensor) -> tf.Tensor:
        """Scales rows."""
        return inverse[..., :, None] * matrix

    def right(self, matrix: tf.Tensor, inverse: tf.Tensor) -> tf.Tensor:
        """Scales columns."""
        return matrix * inverse[..., None, :]

    def eigenbasis(self, factor: tf.Tensor) -> list[tf.Tensor]:
        """The entries are the eigenvalues."""
        return [factor]

    def operations_of_inverse(self, dim: int) -> float:
        """Linear: nothing, beside the products."""
        return float(dim)


DENSE, DIAGONAL = Dense(), Diagonal()


def form_of(dim: int, max_factor_size: int | None) -> FactorForm:
    """Dense up to the largest size allowed (None: no limit), else diagonal."""
    return DENSE if max_factor_size is None or dim <= max_factor_size else DIAGONAL
