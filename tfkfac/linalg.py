"""Pure functions on symmetric matrices: products, inverses, eigenbases.

Symmetric matrices are kept as *lower triangles*: a square tensor whose entries above the
diagonal are unspecified (TensorFlow's Cholesky and eigh read the lower triangle only). All
functions take a stack of matrices ``[..., d, d]`` and return tensors; none holds a variable.
"""

from __future__ import annotations

import itertools
import string

import tensorflow as tf

from tfkfac.graph_functions import once_per_shape

PANEL = 200
"""Rows of a panel when only one triangle of a product is computed (measured, see docs)."""

BLOCK = 256
"""Size below which a triangular matrix is inverted by substitution (measured, see docs)."""


def panel_bounds(dim: int) -> list[tuple[int, int]]:
    """Cuts ``range(dim)`` into near-equal panels of about `PANEL` rows.

    Small matrices are one panel: slicing them costs more than the saved half of the product.
    """
    panels = max(1, dim // PANEL)
    if panels < 3:
        panels = 1
    cuts = [round(dim * i / panels) for i in range(panels + 1)]
    return list(itertools.pairwise(cuts))


def second_moment(rows: tf.Tensor, last: tuple[tf.Tensor, tf.Tensor] | None = None) -> tf.Tensor:
    """The sum of outer products of `rows`, as a lower triangle.

    Args:
        rows: ``[..., n, d]``.
        last: A last row ``[..., d]`` and its corner ``[...]`` to append, as `border` does; wide
            matrices are then copied once only.

    Returns:
        ``[..., d, d]``, the lower triangle of ``rowsᵀ rows``. Wide matrices are computed panel
        by panel, which skips most of the upper triangle (then filled with zeros).
    """
    if len(panel_bounds(rows.shape[-1])) > 1 and rows.shape.rank == 2:
        return _second_moment_by_panels(rows, last)
    moment = tf.matmul(rows, rows, transpose_a=True)
    return moment if last is None else border(moment, *last)


@once_per_shape
def _second_moment_by_panels(
    rows: tf.Tensor, last: tuple[tf.Tensor, tf.Tensor] | None
) -> tf.Tensor:
    """See `second_moment`; of one matrix."""
    dim = rows.shape[-1]
    width = dim + (last is not None)
    panels = [
        tf.pad(
            tf.matmul(rows[:, start:stop], rows[:, :stop], transpose_a=True),
            [[0, 0], [0, width - stop]],
        )
        for start, stop in panel_bounds(dim)
    ]
    if last is not None:
        row, corner = last
        panels.append(tf.concat([row, corner[None]], axis=0)[None])
    return tf.concat(panels, axis=0)


def border(lower: tf.Tensor, row: tf.Tensor, corner: tf.Tensor) -> tf.Tensor:
    """Appends a last row to a lower triangle: the bias of mathematics.md §2, without a ones column.

    Args:
        lower: ``[..., d, d]``.
        row: ``[..., d]``.
        corner: ``[...]``.

    Returns:
        ``[..., d + 1, d + 1]``, lower triangle.
    """
    paddings = [[0, 0]] * (lower.shape.rank - 1) + [[0, 1]]
    last = tf.concat([row, corner[..., None]], axis=-1)
    return tf.concat([tf.pad(lower, paddings), last[..., None, :]], axis=-2)


def symmetric(lower: tf.Tensor) -> tf.Tensor:
    """The full symmetric matrix of a lower triangle."""
    strict = tf.linalg.set_diag(
        tf.linalg.band_part(lower, -1, 0), tf.zeros_like(tf.linalg.diag_part(lower))
    )
    return strict + tf.linalg.matrix_transpose(tf.linalg.band_part(lower, -1, 0))


def shifted(lower: tf.Tensor, shift: tf.Tensor) -> tf.Tensor:
    """``lower + shift·I`` for a `shift` of shape ``[...]`` (one a matrix of the stack)."""
    diagonal = tf.linalg.diag_part(lower)
    return tf.linalg.set_diag(lower, diagonal + shift[..., None])


@once_per_shape
def inverse(lower: tf.Tensor) -> tf.Tensor:
    """The inverse of a positive definite matrix given by its lower triangle.

    Cholesky, then the triangular inverse by recursive halving, so that nearly all the work is
    matrix products (on every device the fastest kernel there is).

    Returns:
        ``[..., d, d]``, full and symmetric; NaN where the matrix is not positive definite.
    """
    return _gram_of_triangle(inverse_root(lower))


@once_per_shape
def inverse_root(lower: tf.Tensor) -> tf.Tensor:
    """``R`` with ``RᵀR = M⁻¹`` of a positive definite M given by its lower triangle.

    Returns:
        ``[..., d, d]``, lower triangular; NaN where the matrix is not positive definite.
    """
    return _triangular_inverse(tf.linalg.cholesky(lower))


def eigenbasis(lower: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Eigenvalues (clipped at zero) and eigenvectors of a positive semi-definite matrix.

    Returns:
        ``(values [..., d], vectors [..., d, d])``, ascending, vectors in columns.
    """
    values, vectors = eigh(lower)
    return tf.maximum(values, 0.0), vectors


def eigh(lower: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Eigenvalues and eigenvectors of a symmetric matrix given by its lower triangle.

    ``tf.linalg.eigh`` raises an uncatchable error on non-finite input outside XLA, so such a matrix
    is replaced by the identity and its result by NaN: callers keep their last good basis.

    Returns:
        ``(values [..., d], vectors [..., d, d])``, ascending, vectors in columns.
    """
    finite = all_finite(tf.linalg.band_part(lower, -1, 0))
    safe = tf.where(finite, lower, tf.eye(lower.shape[-1], dtype=lower.dtype))
    values, vectors = tf.linalg.eigh(safe)
    poison = tf.where(finite, tf.zeros([], lower.dtype), tf.constant(float("nan"), lower.dtype))
    return values + poison, vectors + poison


def all_finite(*tensors: tf.Tensor) -> tf.Tensor:
    """A boolean scalar: no entry of any tensor is NaN or infinite, nor is their sum.

    A sum is not finite if some entry is not, and reads memory once without writing any.
    """
    found = [tf.convert_to_tensor(tensor) for tensor in tensors]
    sums = [each if each.shape.rank == 0 else tf.reduce_sum(each) for each in found]
    return tf.math.is_finite(tf.add_n([tf.cast(each, sums[0].dtype) for each in sums]))


def finite_diagonals(*matrices: tf.Tensor) -> tf.Tensor:
    """A boolean scalar: the diagonals of positive semi-definite matrices are finite.

    Since ``|m_ij|² <= m_ii·m_jj``, so are then all other entries of second moments and inverses.
    Of tensors that are no square matrices (scalars, vectors), all entries have to be.
    """
    return all_finite(*(traces(m) if _is_square(m.shape) else m for m in matrices))


def _is_square(shape: tf.TensorShape) -> bool:
    return bool(shape.rank >= 2 and shape[-1] == shape[-2])


def kronecker(left: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
    """``left ⊗ right`` of square matrices (stacks of them, one with one)."""
    side = left.shape[-1] * right.shape[-1]
    products = tf.einsum("...ij,...kl->...ikjl", left, right)
    return tf.reshape(products, [*left.shape[:-2], side, side])


def scalar(value: float | tf.Tensor, dtype: str | tf.DType) -> tf.Tensor:
    """A number in a dtype; unlike ``tf.cast``, it keeps all digits of a Python number."""
    return tf.cast(value, dtype) if tf.is_tensor(value) else tf.constant(value, dtype)


def dot(left: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
    """The sum of the products of the entries of two tensors of one shape.

    One operation of the graph, where ``tf.tensordot`` is ten: a step has thousands of them, and the
    time until the first step goes by their number.
    """
    axes = string.ascii_lowercase[: left.shape.rank]
    return tf.raw_ops.Einsum(inputs=[left, right], equation=f"{axes},{axes}->")


def traces(matrices: tf.Tensor) -> tf.Tensor:
    """``tr M`` of each of a stack ``[..., d, d]``."""
    stack = string.ascii_lowercase[: matrices.shape.rank - 2]
    return tf.raw_ops.Einsum(inputs=[matrices], equation=f"{stack}zz->{stack}")


def half_squared_length(tensor: tf.Tensor) -> tf.Tensor:
    """``½ ‖t‖²``, in float32 at least: one operation of the graph."""
    wide = tf.cast(tensor, tf.float32) if tensor.dtype.size < 4 else tensor
    return tf.nn.l2_loss(wide)


def _triangular_inverse(lower: tf.Tensor) -> tf.Tensor:
    """The inverse of a lower triangular matrix, lower triangular.

    ``[[P, 0], [R, Q]]⁻¹ = [[P⁻¹, 0], [−Q⁻¹ R P⁻¹, Q⁻¹]]``.
    """
    dim = lower.shape[-1]
    if dim <= BLOCK or lower.shape.rank != 2:
        eye = tf.eye(dim, batch_shape=lower.shape[:-2], dtype=lower.dtype)
        return tf.linalg.triangular_solve(lower, eye)
    half = dim // 2
    head = _triangular_inverse(lower[:half, :half])
    tail = _triangular_inverse(lower[half:, half:])
    corner = -tf.matmul(tail, tf.matmul(lower[half:, :half], head))
    return tf.concat(
        [tf.pad(head, [[0, 0], [0, dim - half]]), tf.concat([corner, tail], axis=1)], axis=0
    )


def _gram_of_triangle(lower: tf.Tensor) -> tf.Tensor:
    """``LᵀL`` of a lower triangular L, skipping the zero blocks of L."""
    dim = lower.shape[-1]
    if dim <= BLOCK or lower.shape.rank != 2:
        return tf.matmul(lower, lower, transpose_a=True)
    half = dim // 2
    below, tail = lower[half:, :half], lower[half:, half:]
    head = _gram_of_triangle(lower[:half, :half]) + tf.matmul(below, below, transpose_a=True)
    corner = tf.matmul(tail, below, transpose_a=True)
    return tf.concat(
        [
            tf.concat([head, tf.transpose(corner)], axis=1),
            tf.concat([corner, _gram_of_triangle(tail)], axis=1),
        ],
        axis=0,
    )
