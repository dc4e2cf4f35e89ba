"""Tensors that travel together."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfkfac.distribution.packing import Parcel, fold, folded_shape, pack, size_of, unfold, unpack


@pytest.mark.parametrize("dim", range(1, 9))
@pytest.mark.parametrize("stack", [(), (3,)])
def test_a_folded_triangle_has_no_gaps_and_unfolds(dim: int, stack: tuple[int, ...]) -> None:
    matrices = np.random.default_rng(dim).normal(size=(*stack, dim, dim))
    matrices = matrices + np.swapaxes(matrices, -1, -2)
    rectangle = fold(tf.constant(np.tril(matrices)))
    assert rectangle.shape == (*stack, *folded_shape(dim))
    assert np.prod(folded_shape(dim)) == dim * (dim + 1) // 2
    assert np.all(rectangle.numpy() != 0)
    np.testing.assert_array_equal(unfold(rectangle, dim), matrices)


def test_the_layout_is_that_of_the_docstring() -> None:
    matrix = 10.0 * np.arange(4)[:, None] + np.arange(4)
    np.testing.assert_array_equal(
        fold(tf.constant(matrix)), [[0, 33, 32, 31, 30], [10, 11, 22, 21, 20]]
    )


def test_what_is_above_the_diagonal_does_not_travel() -> None:
    lower = np.tril(np.ones([3, 3]))
    np.testing.assert_array_equal(
        fold(tf.constant(lower + np.triu(np.ones([3, 3]), 1) * 7)), fold(tf.constant(lower))
    )


def test_a_vector_of_everything() -> None:
    parcels = [Parcel((2, 3)), Parcel((4, 4), symmetric=True), Parcel(())]
    symmetric = tf.linalg.diag([1.0, 2.0, 3.0, 4.0])
    tensors = [tf.random.normal([2, 3]), symmetric, tf.constant(5.0)]
    vector = pack(parcels, tensors)
    assert vector.shape == (size_of(parcels),) == (6 + 10 + 1,)
    for found, expected in zip(unpack(parcels, vector), tensors, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_nothing() -> None:
    assert unpack([], tf.zeros([0])) == []
