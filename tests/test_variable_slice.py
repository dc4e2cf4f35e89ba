"""Parts of variables: what is taken of tensors is what is put back into them."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfkfac.variable_slice import VariableSlice, put, take, whole_of


def variable(*shape: int, dtype: str = "float32") -> keras.Variable:
    return keras.Variable(np.zeros(shape), dtype=dtype, name="kernel")


def values(*shape: int) -> tf.Tensor:
    return tf.constant(np.random.default_rng(0).normal(size=shape), tf.float32)


ROWS = slice(None)
INDICES = {
    "columns": ((4, 6), (ROWS, slice(2, 4)), (4, 2)),
    "first-columns": ((4, 6), (ROWS, slice(0, 2)), (4, 2)),
    "last-columns": ((4, 6), (ROWS, slice(4, None)), (4, 2)),
    "one-row": ((2, 6), (1, slice(None)), (6,)),
    "columns-of-a-row": ((2, 6), (0, slice(2, 4)), (2,)),
    "entries": ((6,), (slice(1, 4),), (3,)),
    "all": ((4, 6), (ROWS, ROWS), (4, 6)),
}
indices = pytest.mark.parametrize(("whole", "index", "part"), INDICES.values(), ids=INDICES)


@indices
def test_shape_is_that_of_what_is_taken(whole: Any, index: Any, part: Any) -> None:
    sliced, tensor = VariableSlice(variable(*whole), index, "part"), values(*whole)
    assert sliced.shape == part
    found = take(sliced, {id(sliced.variable): tensor})
    assert np.array_equal(found, tensor.numpy()[index])


@indices
def test_zeros_surround_a_part_that_is_put_alone(whole: Any, index: Any, part: Any) -> None:
    sliced = VariableSlice(variable(*whole), index, "part")
    (found,) = put([sliced], [values(*part)]).values()
    expected = np.zeros(whole, "float32")
    expected[index] = values(*part)
    assert np.array_equal(found, expected)


SHARES = {
    "columns": ((4, 6), [(ROWS, slice(i, i + 2)) for i in (0, 2, 4)]),
    "unequal": ((4, 6), [(ROWS, slice(0, 4)), (ROWS, slice(4, 6))]),
    "rows": ((2, 6), [(0, ROWS), (1, ROWS)]),
    "quarters": ((2, 6), [(row, slice(i, i + 3)) for row in (0, 1) for i in (0, 3)]),
    "entries": ((6,), [(slice(0, 1),), (slice(1, 6),)]),
}


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(("whole", "shares"), SHARES.values(), ids=SHARES)
def test_parts_make_the_whole_again(whole: Any, shares: Any, order: int) -> None:
    first, second = variable(*whole), variable(3)
    parts = [VariableSlice(first, index, str(i)) for i, index in enumerate(shares)][::order]
    given = {id(first): values(*whole), id(second): values(3)}
    owners = [parts[0], second, *parts[1:]]
    found = put(owners, [take(owner, given) for owner in owners])
    assert found.keys() == given.keys()
    for key, tensor in given.items():
        assert np.array_equal(found[key], tensor)


def test_part_is_known_by_the_variable_and_its_own_name() -> None:
    whole = variable(4, 6, dtype="float64")
    part = VariableSlice(whole, (ROWS, slice(2, 4)), "1")
    assert (part.name, part.path, part.dtype) == ("kernel_1", f"{whole.path}_1", "float64")
    assert whole_of(part) is whole
    assert whole_of(whole) is whole


def test_parts_are_equal_only_to_themselves() -> None:
    whole = variable(4, 6)
    one, other = (VariableSlice(whole, (ROWS, slice(2, 4)), "1") for _ in range(2))
    assert one == one
    assert one != other
