"""Symmetric matrices against NumPy, with rubbish above the diagonal wherever it may be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from reference import positive, relative_error

from tfkfac import linalg

PRECISION = {"float32": 2e-5, "float64": 1e-12}
dtypes = pytest.mark.parametrize("dtype", PRECISION)
modes = pytest.mark.parametrize(
    ("dtype", "jit"),
    [("float32", False), ("float64", False), ("float32", True)],
    ids=["float32", "float64", "float32-jit"],
)


def run(function: Callable[..., Any], *arrays: Any, dtype: str, jit: bool) -> Any:
    function = tf.function(function, jit_compile=True) if jit else function
    return tf.nest.map_structure(
        lambda tensor: tensor.numpy(), function(*[tf.constant(array, dtype) for array in arrays])
    )


def triangle(matrix: np.ndarray, above: float = np.nan) -> np.ndarray:
    """The lower triangle, with something else above it."""
    return np.where(np.tri(matrix.shape[-1], dtype=bool), matrix, above)


@modes
@pytest.mark.parametrize("shape", [(3, 1), (4, 5), (2, 4, 5), (7, 811)])
def test_second_moment_is_the_sum_of_outer_products(
    shape: tuple[int, ...], dtype: str, jit: bool
) -> None:
    rows = np.random.default_rng(0).normal(size=shape)
    moment = run(linalg.second_moment, rows, dtype=dtype, jit=jit)
    expected = np.swapaxes(rows, -1, -2) @ rows
    assert relative_error(triangle(moment, 0), triangle(expected, 0)) < PRECISION[dtype]


def test_second_moment_of_a_batch_is_the_golden_one() -> None:
    assert np.allclose(linalg.second_moment(tf.constant([[1.0, 2], [3, 4]])) / 2, [[5, 7], [7, 10]])


@pytest.mark.parametrize("dim", [1, 199, 200, 599, 600, 601, 1001, 4096])
def test_panels_cover_every_row_once_and_spare_work(dim: int) -> None:
    bounds = linalg.panel_bounds(dim)
    assert [start for start, _ in bounds] == [0, *(stop for _, stop in bounds[:-1])]
    assert bounds[-1][1] == dim
    sizes = [stop - start for start, stop in bounds]
    assert max(sizes) - min(sizes) <= 1
    entries = sum((stop - start) * stop for start, stop in bounds)
    assert entries <= (0.67 if dim >= 600 else 1.0) * (dim + 1) ** 2


@dtypes
@pytest.mark.parametrize("stack", [(), (3,)])
def test_border_appends_the_bias(stack: tuple[int, ...], dtype: str) -> None:
    rows = np.random.default_rng(1).normal(size=(*stack, 6, 4))
    ones = np.concatenate([rows, np.ones((*stack, 6, 1))], axis=-1)
    moment = triangle(np.swapaxes(rows, -1, -2) @ rows)
    bordered = run(linalg.border, moment, rows.sum(-2), np.full(stack, 6.0), dtype=dtype, jit=False)
    expected = np.swapaxes(ones, -1, -2) @ ones
    assert relative_error(triangle(bordered, 0), triangle(expected, 0)) < PRECISION[dtype]


def test_border_makes_the_golden_matrix() -> None:
    bordered = linalg.border(
        tf.constant([[5.0, 0], [7, 10]]), tf.constant([2.0, 3]), tf.constant(1.0)
    )
    assert np.array_equal(linalg.symmetric(bordered), [[5, 7, 2], [7, 10, 3], [2, 3, 1]])


@modes
@pytest.mark.parametrize("stack", [(), (2,)])
def test_symmetric_mirrors_the_lower_triangle(
    stack: tuple[int, ...], dtype: str, jit: bool
) -> None:
    matrix = positive(np.random.default_rng(2), *stack, 5).astype(dtype)
    full = run(linalg.symmetric, triangle(matrix), dtype=dtype, jit=jit)
    assert np.array_equal(full, np.tril(matrix) + np.swapaxes(np.tril(matrix, -1), -1, -2))


@dtypes
def test_shifted_moves_the_spectrum_of_each_matrix_by_its_own_shift(dtype: str) -> None:
    matrices = positive(np.random.default_rng(3), 2, 4)
    moved = run(linalg.shifted, triangle(matrices, 0), [0.5, 2.0], dtype=dtype, jit=False)
    expected = triangle(matrices + np.array([0.5, 2.0])[:, None, None] * np.eye(4), 0)
    assert relative_error(moved, expected) < PRECISION[dtype]


@modes
@pytest.mark.parametrize("shape", [(1,), (2, 4), (40,)])
def test_inverse(shape: tuple[int, ...], dtype: str, jit: bool) -> None:
    check_inverse(shape, dtype, jit)


@dtypes
@pytest.mark.parametrize("shape", [(257,), (300,), (600,), (2, 257)])
def test_inverse_by_halves(shape: tuple[int, ...], dtype: str) -> None:
    check_inverse(shape, dtype, jit=False)


def test_inverse_by_halves_under_xla() -> None:
    check_inverse((257,), "float32", jit=True)


def check_inverse(shape: tuple[int, ...], dtype: str, jit: bool) -> None:
    matrix = positive(np.random.default_rng(4), *shape)
    found = run(linalg.inverse, triangle(matrix), dtype=dtype, jit=jit)
    assert relative_error(found, np.linalg.inv(matrix)) < PRECISION[dtype]
    assert relative_error(found, np.swapaxes(found, -1, -2)) < PRECISION[dtype]


@modes
@pytest.mark.parametrize("bad", [-1.0, np.nan])
def test_inverse_is_not_finite_where_there_is_none(bad: float, dtype: str, jit: bool) -> None:
    stack = np.stack([np.diag([1.0, bad, 2.0]), np.diag([1.0, 2.0, 4.0])])
    found = run(linalg.inverse, stack, dtype=dtype, jit=jit)
    assert not np.isfinite(found[0]).all()
    assert np.allclose(found[1], np.diag([1.0, 0.5, 0.25]))


@dtypes
@pytest.mark.parametrize("shape", [(1,), (6,), (2, 4), (120,)])
def test_eigenbasis_diagonalises(shape: tuple[int, ...], dtype: str) -> None:
    check_eigenbasis(shape, dtype, jit=False, tolerance=PRECISION[dtype])


def test_eigenbasis_diagonalises_under_xla() -> None:
    """XLA's eigh iterates to single precision only, in double precision too."""
    check_eigenbasis((2, 6), "float64", jit=True, tolerance=1e-5)


def check_eigenbasis(shape: tuple[int, ...], dtype: str, *, jit: bool, tolerance: float) -> None:
    matrix = positive(np.random.default_rng(5), *shape)
    values, vectors = run(linalg.eigenbasis, triangle(matrix, 7.0), dtype=dtype, jit=jit)
    transposed = np.swapaxes(vectors, -1, -2)
    assert relative_error((vectors * values[..., None, :]) @ transposed, matrix) < tolerance
    assert np.abs(transposed @ vectors - np.eye(shape[-1])).max() < tolerance
    assert (np.diff(values, axis=-1) >= 0).all()


def test_eigenvalues_are_never_negative() -> None:
    row = np.random.default_rng(6).normal(size=(1, 40))
    values, _ = linalg.eigenbasis(tf.constant(row.T @ row, tf.float32))
    assert np.linalg.eigvalsh(np.float32(row.T @ row)).min() < 0
    assert values.numpy().min() == 0


@pytest.mark.parametrize(
    ("dtype", "jit", "bad"),
    [
        ("float32", False, np.nan),
        ("float64", False, np.nan),
        ("float32", False, np.inf),
        ("float64", False, -np.inf),
        ("float32", True, np.nan),
        ("float32", True, np.inf),
    ],
)
def test_eigenbasis_of_non_finite_input_is_nan_and_raises_nothing(
    dtype: str, jit: bool, bad: float
) -> None:
    matrix = np.eye(3)
    matrix[2, 1] = bad
    values, vectors = run(linalg.eigenbasis, matrix, dtype=dtype, jit=jit)
    assert np.isnan(values).all()
    assert np.isnan(vectors).all()


def test_eigenbasis_ignores_what_is_above_the_diagonal() -> None:
    values, _ = linalg.eigenbasis(tf.constant([[1.0, np.nan], [0.0, 2.0]]))
    assert np.allclose(values, [1, 2])


@pytest.mark.parametrize("jit", [None, False, True], ids=["eager", "graph", "jit"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_all_finite_sees_a_single_bad_entry(bad: float, jit: bool | None) -> None:
    function = linalg.all_finite
    if jit is not None:
        function = tf.function(function, jit_compile=jit)
    good, spoilt = np.full((2, 3), 1e30, np.float32), np.zeros(4)
    assert function(tf.constant(good), tf.constant(spoilt))
    spoilt[2] = bad
    assert not function(tf.constant(good), tf.constant(spoilt))
    assert not function(tf.constant(spoilt), tf.constant(good))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("stack", [(), (2,)])
def test_finite_diagonals_sees_every_bad_diagonal(bad: float, stack: tuple[int, ...]) -> None:
    good, scalar = positive(np.random.default_rng(8), *stack, 3), tf.constant(1.0)
    assert linalg.finite_diagonals(tf.constant(triangle(good)), scalar)
    spoilt = good.copy()
    spoilt.reshape(-1, 3, 3)[-1, 2, 2] = bad
    assert not linalg.finite_diagonals(scalar, tf.constant(good), tf.constant(spoilt))
    assert not linalg.finite_diagonals(tf.constant(good), tf.constant(bad))
    assert not linalg.finite_diagonals(tf.constant([1.0, bad]))


def test_rows_with_one_bad_number_spoil_a_diagonal() -> None:
    """Why it is enough to look there: no non-finite entry is off the diagonal only."""
    rows = np.random.default_rng(9).normal(size=(3, 4))
    for bad in (np.nan, np.inf, 1e200):
        rows[1, 2] = bad
        assert not linalg.finite_diagonals(linalg.second_moment(tf.constant(rows)))


@modes
@pytest.mark.parametrize("shape", [(), (5,), (4, 3), (2, 3, 3, 4, 5)])
def test_dot_is_the_sum_of_products(shape: tuple[int, ...], dtype: str, jit: bool) -> None:
    left, right = np.random.default_rng(0).normal(size=(2, *shape))
    found = run(linalg.dot, left, right, dtype=dtype, jit=jit)
    assert found.shape == ()
    assert np.allclose(found, (left * right).sum(), rtol=PRECISION[dtype], atol=PRECISION[dtype])


@modes
@pytest.mark.parametrize("stack", [(), (3,), (2, 3)])
def test_traces_of_a_stack(stack: tuple[int, ...], dtype: str, jit: bool) -> None:
    matrices = np.random.default_rng(0).normal(size=(*stack, 4, 4))
    found = run(linalg.traces, matrices, dtype=dtype, jit=jit)
    wanted = np.trace(matrices, axis1=-2, axis2=-1)
    assert found.shape == stack
    assert np.allclose(found, wanted, rtol=PRECISION[dtype], atol=PRECISION[dtype])
