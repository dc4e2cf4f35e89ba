"""Dense and diagonal factors: the diagonal form is the dense one of a diagonal matrix."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from reference import relative_error

import tfkfac
from tfkfac.factor_forms import DENSE, DIAGONAL, form_of

STACKS = [(), (2,)]


def _diagonals(stack: tuple[int, ...]) -> tuple[tf.Tensor, tf.Tensor]:
    values = tf.constant(np.random.default_rng(0).uniform(0.1, 1, size=(*stack, 4)))
    return values, tf.linalg.diag(values)


@pytest.mark.parametrize("stack", STACKS)
def test_diagonal_form_is_the_dense_one_of_a_diagonal_matrix(stack: tuple[int, ...]) -> None:
    values, matrix = _diagonals(stack)
    rng = np.random.default_rng(1)
    shift = tf.constant(rng.uniform(size=stack))
    left, right = rng.normal(size=(*stack, 4, 3)), rng.normal(size=(*stack, 3, 4))
    vector, dense = DIAGONAL.inverse(values, shift), DENSE.inverse(matrix, shift)
    np.testing.assert_allclose(tf.linalg.diag(vector), dense, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(DIAGONAL.left(vector, left), DENSE.left(dense, left), rtol=1e-9)
    np.testing.assert_allclose(DIAGONAL.right(right, vector), DENSE.right(right, dense), rtol=1e-9)
    np.testing.assert_allclose(DIAGONAL.mean_eigenvalue(values), DENSE.mean_eigenvalue(matrix))
    np.testing.assert_allclose(DIAGONAL.to_dense(values), DENSE.to_dense(matrix))
    np.testing.assert_allclose(DIAGONAL.diagonal(values), DENSE.diagonal(matrix))
    assert DIAGONAL.shape(stack, 4) == values.shape and DENSE.shape(stack, 4) == matrix.shape


@pytest.mark.parametrize("stack", STACKS)
def test_second_moment_and_border_keep_the_diagonal(stack: tuple[int, ...]) -> None:
    rows = tf.constant(np.random.default_rng(0).normal(size=(*stack, 6, 4)))
    sums, corner = tf.reduce_sum(rows, -2), tf.constant(np.full(stack, 6.0))
    dense = DENSE.border(DENSE.second_moment(rows), sums, corner)
    diagonal = DIAGONAL.border(DIAGONAL.second_moment(rows), sums, corner)
    np.testing.assert_allclose(diagonal, tf.linalg.diag_part(dense), rtol=1e-12)


def test_limit_is_the_largest_dense_dimension() -> None:
    assert form_of(10, 10) is DENSE
    assert form_of(11, 10) is DIAGONAL
    assert form_of(10**9, None) is DENSE


def _model() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((4, 4, 2)),
            layers.Conv2D(4, 3, groups=2, name="conv"),
            layers.Flatten(),
            layers.Dense(12, activation="tanh", name="wide"),
            layers.Dense(3, name="narrow"),
        ]
    )


@pytest.mark.parametrize("method", ["cholesky", pytest.param("eigen", marks=pytest.mark.slow)])
def test_large_factors_keep_their_diagonal(method: str) -> None:
    """The statistics are the diagonals of the dense ones, the preconditioner their inverse."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 4, 4, 2)), rng.normal(size=(8, 3))
    factors: list[dict[str, Any]] = []
    for limit in (None, 9):
        keras.utils.set_random_seed(0)
        model = _model()
        kfac = tfkfac.KFAC(seed=0, method=method, max_factor_size=limit, factor_decay=0.0)
        model.compile(kfac, "mse")
        model.train_on_batch(x, y)
        factors.append({block.name: block.factors for block in kfac.layer_collection})
    dense, limited = factors
    assert limited["wide"]["A"].shape == (17,) and limited["wide"]["G"].shape == (12,)
    assert limited["conv"]["A"].shape == (2, 10) and limited["conv"]["G"].shape == (2, 2, 2)
    assert limited["narrow"]["A"].shape == (13,) and limited["narrow"]["G"].shape == (3, 3)
    for name in dense:
        for key, full in dense[name].items():
            found = limited[name][key]
            same = found if found.shape == full.shape else tf.linalg.diag(found)
            diagonal = full if found.shape == full.shape else tf.linalg.diag_part(full)
            assert relative_error(found, diagonal) < 1e-5, (name, key)
            assert same.shape == full.shape
    block = kfac.layer_collection["narrow"]
    gradients = [tf.constant(rng.normal(size=v.shape), tf.float32) for v in block.variables]
    found = tf.concat(block.precondition(gradients, damping=0.1)[:1], axis=0)
    matrix = np.concatenate([gradients[0], gradients[1][None]]).astype("float64")
    A, G = np.diag(block.factors["A"].numpy().astype("float64")), block.factors["G"].numpy()
    damped = np.kron(A, G) + 0.1 * np.eye(39)
    if method == "cholesky":
        balance = np.sqrt((np.trace(A) / 13) / (np.trace(G) / 3))
        root = np.sqrt(0.1)
        damped = np.kron(A + balance * root * np.eye(13), G + root / balance * np.eye(3))
    expected = np.linalg.solve(damped, matrix.reshape(-1)).reshape(13, 3)[:-1]
    assert relative_error(found, expected) < 1e-4


@pytest.mark.parametrize("value", [0, -1, 2.5, float("nan"), "large"])
def test_limit_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"max_factor_size.*integer >= 1"):
        tfkfac.KFAC(max_factor_size=value)
