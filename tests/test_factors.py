"""Decayed averages, the turns of the inverses, and both inverses against dense linear algebra."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import add_variable, damped_block, positive, relative_error

from tfkfac.averages import DecayedAverages
from tfkfac.factor_forms import DENSE
from tfkfac.factors import METHODS, KroneckerInverse, damping_balance

methods = pytest.mark.parametrize("method", METHODS)
modes = pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])


# --- decayed averages --------------------------------------------------------------------------


def averages(dtype: str = "float64") -> DecayedAverages:
    made = DecayedAverages("test", {"x": (), "y": (2,)}, dtype)
    made.build(add_variable)
    return made


def enter(into: DecayedAverages, x: Any, y: Any = (0.0, 0.0), decay: Any = 0.95, weight: Any = 1.0):
    contributions = {"x": tf.constant(x, tf.float64), "y": tf.constant(y, tf.float64)}
    into.update(contributions, tf.constant(decay, tf.float64), tf.constant(weight, tf.float64))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float64", 1e-10)])
def test_decayed_average_is_the_golden_one(dtype: str, tolerance: float) -> None:
    decayed = averages(dtype)
    for value in (1.0, 2.0, 3.0):
        enter(decayed, value, (value, -value))
    read = decayed.read()
    assert read["x"].dtype == dtype
    assert read["x"].numpy() == pytest.approx(2.0341805434, abs=tolerance)
    assert read["y"].numpy() == pytest.approx([2.0341805434, -2.0341805434], abs=tolerance)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(-9, 9), st.floats(0, 0.99), st.floats(0.1, 1)), min_size=1, max_size=5
    )
)
def test_decayed_average_is_a_weighted_mean(batches: list[tuple[float, float, float]]) -> None:
    """The weight of batch i is its share of a whole batch times all decays after it."""
    decayed = averages()
    for value, decay, weight in batches:
        enter(decayed, value, decay=decay, weight=weight)
    values, decays, weights = np.transpose(batches)
    later = np.append(np.cumprod(decays[:0:-1])[::-1], 1.0)
    expected = np.average(values, weights=weights * later)
    assert decayed.read()["x"].numpy() == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_a_partial_batch_enters_with_its_share() -> None:
    decayed = averages()
    enter(decayed, 1.0, decay=0.9)
    enter(decayed, 3.0, decay=0.9, weight=0.5)
    assert decayed.read()["x"].numpy() == pytest.approx((0.9 * 1 + 0.5 * 3) / (0.9 + 0.5))


def test_averages_are_zero_before_the_first_update() -> None:
    unbuilt = DecayedAverages("test", {"x": ()}, "float32")
    assert not unbuilt.built
    decayed = averages()
    assert decayed.built
    assert [value.numpy().tolist() for value in decayed.read().values()] == [0.0, [0.0, 0.0]]


@modes
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_non_finite_batch_is_left_out_as_a_whole(bad: float, graph: bool) -> None:
    decayed = averages()
    step = tf.function(enter) if graph else enter
    for x, y in [(bad, (1.0, 1.0)), (1.0, (2.0, 3.0)), (5.0, (5.0, bad)), (bad, (5.0, 5.0))]:
        step(decayed, x, y)
    assert [value.numpy().tolist() for value in decayed.read().values()] == [1.0, [2.0, 3.0]]
    enter(decayed, 2.0)  # nor has its weight entered
    assert decayed.read()["x"].numpy() == pytest.approx((0.95 * 1 + 2) / 1.95)


# --- inverses ----------------------------------------------------------------------------------


def test_damping_balance_is_the_root_of_the_ratio_of_mean_eigenvalues() -> None:
    rng = np.random.default_rng(0)
    A, G = positive(rng, 3, 4), positive(rng, 3, 2)
    expected = np.sqrt(np.linalg.eigvalsh(A).mean(-1) / np.linalg.eigvalsh(G).mean(-1))
    assert np.allclose(damping_balance(*map(_mean_eigenvalue, (A, G))), expected, rtol=1e-12)


@pytest.mark.parametrize(("a", "g"), [(0.0, 2.0), (2.0, 0.0), (0.0, 0.0)])
def test_damping_balance_is_one_without_a_trace(a: float, g: float) -> None:
    balance = damping_balance(tf.constant(a), tf.constant(g))
    assert balance.numpy() == 1.0
    stacked = damping_balance(tf.constant([a, 9.0]), tf.constant([g, 1.0]))
    assert stacked.numpy().tolist() == [1.0, 3.0]


def _mean_eigenvalue(factor: np.ndarray) -> tf.Tensor:
    return DENSE.mean_eigenvalue(tf.constant(factor))


def precondition(inverse: KroneckerInverse, *matrix_and_damping: tf.Tensor) -> tf.Tensor:
    return inverse.apply(inverse.kept(), *matrix_and_damping)


def make(method: str, stack: tuple[int, ...] = (), dtype: str = "float64") -> KroneckerInverse:
    inverse = METHODS[method]("test", stack, 4, 3, dtype)
    inverse.build(add_variable)
    return inverse


def factors(*stack: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return positive(rng, *stack, 4), 30 * positive(rng, *stack, 3)


def tensors(*values: Any, dtype: str = "float64") -> list[tf.Tensor]:
    return [tf.constant(value, dtype) for value in values]


def gradient(*stack: int) -> np.ndarray:
    return np.random.default_rng(9).normal(size=(*stack, 4, 3))


def solve(A: Any, G: Any, uses: float, damping: float, method: str, matrix: Any) -> np.ndarray:
    dense = damped_block(A, G, uses, damping, method)
    return np.linalg.solve(dense, matrix.reshape(-1)).reshape(matrix.shape)


def state(A: Any, G: Any, uses: Any, damping: Any, dtype: str = "float64") -> tuple[Any, Any]:
    """What an inverse is made of."""
    *averages, damping = tensors(A, G, uses, damping, dtype=dtype)
    return dict(zip(("A", "G", "uses"), averages, strict=True)), damping


@methods
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("float64", 1e-12)])
@pytest.mark.parametrize("stack", [(), (2,)], ids=["one", "groups"])
@pytest.mark.parametrize(("uses", "damping"), [(1.0, 0.0), (1.0, 0.5), (7.5, 0.02), (0.25, 30.0)])
def test_inverse_equals_the_dense_one(
    method: str, dtype: str, tolerance: float, stack: tuple[int, ...], uses: float, damping: float
) -> None:
    A, G = factors(*stack)
    lower = [np.where(np.tri(M.shape[-1]), M, 5.0) for M in (A, G)]
    inverse, V = make(method, stack, dtype), gradient(*stack)
    inverse.refresh(*state(*lower, uses, damping, dtype=dtype))
    found = precondition(inverse, *tensors(V, damping, dtype=dtype))
    assert relative_error(found, solve(A, G, uses, damping, method, V)) < tolerance


@methods
@pytest.mark.parametrize("zero", ["A", "G"])
def test_inverse_with_a_factor_of_zeros_is_the_damping_alone(method: str, zero: str) -> None:
    A, G = factors()
    A, G = (0 * A, G) if zero == "A" else (A, 0 * G)
    inverse, V = make(method), gradient()
    inverse.refresh(*state(A, G, 2.0, 0.3))
    found = precondition(inverse, *tensors(V, 0.3))
    assert relative_error(found, solve(A, G, 2.0, 0.3, method, V)) < 1e-12


def test_eigen_takes_a_new_damping_without_a_new_decomposition() -> None:
    (A, G), V = factors(), gradient()
    inverse = make("eigen")
    inverse.refresh(*state(A, G, 3.0, 0.5))
    found = precondition(inverse, *tensors(V, 0.01))
    assert relative_error(found, solve(A, G, 3.0, 0.01, "eigen", V)) < 1e-12


def test_cholesky_keeps_the_damping_of_its_refresh() -> None:
    (A, G), V = factors(), gradient()
    inverse = make("cholesky")
    inverse.refresh(*state(A, G, 3.0, 0.5))
    found = precondition(inverse, *tensors(V, 0.01))
    assert relative_error(found, solve(A, G, 3.0, 0.5, "cholesky", V)) < 1e-12


@methods
@pytest.mark.parametrize("stack", [(), (2,)])
def test_before_the_first_refresh_the_direction_is_the_gradient(
    method: str, stack: tuple[int, ...]
) -> None:
    V = gradient(*stack)
    assert relative_error(precondition(make(method, stack), *tensors(V, 1e-9)), V) < 1e-8


@methods
@modes
@pytest.mark.parametrize("what", ["A", "G", "uses"])
def test_a_refresh_without_finite_result_is_dropped(method: str, graph: bool, what: str) -> None:
    inverse, V = make(method), tf.constant(gradient())
    refresh = tf.function(inverse.refresh) if graph else inverse.refresh
    good = dict(zip(("A", "G", "uses"), (*factors(), 2.0), strict=True))
    refresh(*state(*good.values(), 0.1))
    before = precondition(inverse, *tensors(V, 0.1)).numpy()
    refresh(*state(*(good | {what: np.nan * good[what]}).values(), 0.1))
    assert np.array_equal(precondition(inverse, *tensors(V, 0.1)), before)
    refresh(*state(*factors(seed=1), 2.0, 0.1))
    assert not np.allclose(precondition(inverse, *tensors(V, 0.1)), before)


def test_cholesky_of_an_indefinite_factor_is_dropped() -> None:
    inverse, V = make("cholesky"), gradient()
    inverse.refresh(*state(-np.eye(4), np.eye(3), 1.0, 0.1))
    assert np.array_equal(precondition(inverse, *tensors(V, 0.1)), V)


@methods
def test_shapes_are_those_of_what_is_kept(method: str) -> None:
    for stack in ((), (2,)):
        inverse = make(method, stack)
        kept = inverse.compute(*state(*factors(*stack), 1.0, 0.1))
        assert [tuple(value.shape) for value in kept] == list(inverse.shapes().values())
        assert [tuple(v.shape) for v in inverse.variables] == list(inverse.shapes().values())
