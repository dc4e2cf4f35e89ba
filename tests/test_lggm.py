"""The chain-structured model of recurrent layers against dense matrices and literal sums."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from chains import (
    Side,
    averages,
    limit_fisher,
    mean_of_lags,
    one_length,
    recurrent_block,
    side_of_samples,
    side_of_values,
    solve,
    symmetric_fisher,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import dense_block, factored_block, relative_error

from tfkfac import lggm
from tfkfac.chain_inverses import LimitChainInverse, SymmetricChainInverse
from tfkfac.factors import CholeskyInverse

FORMS = ["independent", "lggm_symmetric", "lggm_limit"]
CHAINS = {"lggm_symmetric": SymmetricChainInverse, "lggm_limit": LimitChainInverse}
chains = pytest.mark.parametrize("form", CHAINS)

GOLDEN_A = np.array([[2, 0.5], [0.5, 1]]), np.array([[0.6, 0.1], [0.2, -0.3]])
GOLDEN_G = np.array([[1.5, -0.3], [-0.3, 1]]), np.array([[0.4, 0], [0.1, 0.2]])
GOLDEN_V = np.array([[1.0, 2], [3, 4]])
GOLDEN = {
    "independent": [[-0.0261389096, 0.0136918098], [0.5713218820, 0.8912123475]],
    "lggm_symmetric": [[-0.0706632301, -0.0381915211], [0.6843056206, 1.0151315297]],
    "lggm_limit": [[-0.0873528812, -0.0548599437], [0.7263469687, 1.0598390062]],
}


def damped(side: Side, shift: float) -> Side:
    """δ is added at lag 0 only."""
    return side[0] + shift * np.eye(len(side[0])), side[1]


def inverse_of(form: str, inputs: int, outputs: int, dtype: str = "float64") -> Any:
    kind = CHAINS.get(form, CholeskyInverse)
    return kind("inverse", (), inputs, outputs, dtype)


def fisher(form: str, inputs: Side, outputs: Side, lengths: np.ndarray) -> np.ndarray:
    """The dense matrix of a form."""
    if form == "lggm_symmetric":
        return symmetric_fisher(inputs, outputs, lengths)
    mean = float(np.arange(len(lengths)) @ lengths)
    if form == "lggm_limit":
        return limit_fisher(inputs, outputs, mean)
    return dense_block(inputs[0], outputs[0], mean)


def gradient_for(inputs: Side, outputs: Side) -> np.ndarray:
    return np.random.default_rng(9).normal(size=(len(inputs[0]), len(outputs[0])))


def direction(form: str, inputs: Side, outputs: Side, lengths: np.ndarray, **options: Any) -> Any:
    """F⁻¹V by the block of a form."""
    dtype = options.get("dtype", "float64")
    block = recurrent_block(form, inputs, outputs, lengths, **options)
    (found,) = block.precondition([tf.constant(gradient_for(inputs, outputs), dtype)], damping=0.0)
    return found.numpy()


def assert_is_inverse(form: str, inputs: Side, outputs: Side, lengths: np.ndarray) -> None:
    """To 2e-9 (1.5e-9 occurs), or 1e-16 times the condition of F."""
    dense = fisher(form, inputs, outputs, lengths)
    V = gradient_for(inputs, outputs)
    expected = solve(dense, V.reshape(-1)).reshape(V.shape)
    tolerance = max(2e-9, 1e-16 * np.linalg.cond(dense.astype(float)))
    assert relative_error(direction(form, inputs, outputs, lengths), expected) < tolerance


# --- golden ------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_golden_directions_of_the_inverses(form: str) -> None:
    sides = damped(GOLDEN_A, 0.1), damped(GOLDEN_G, 0.2)
    given = averages(*sides, one_length(4), dtype="float64")
    inverse, none = inverse_of(form, 2, 2), tf.constant(0.0, tf.float64)
    found = inverse.apply(inverse.compute(given, none), tf.constant(GOLDEN_V), none)
    np.testing.assert_allclose(found, GOLDEN[form], rtol=0, atol=1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_golden_directions_of_the_block(form: str) -> None:
    block = recurrent_block(form, damped(GOLDEN_A, 0.1), damped(GOLDEN_G, 0.2), one_length(4))
    (found,) = block.precondition([tf.constant(GOLDEN_V)], damping=0.0)
    np.testing.assert_allclose(found, GOLDEN[form], rtol=0, atol=1e-10)
    block.refresh(tf.constant(0.0))
    (found,) = block.precondition([tf.constant(GOLDEN_V)])
    np.testing.assert_allclose(found, GOLDEN[form], rtol=0, atol=1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_single_precision_is_single_precise(form: str) -> None:
    sides = damped(GOLDEN_A, 0.1), damped(GOLDEN_G, 0.2)
    block = recurrent_block(form, *sides, one_length(4), dtype="float32")
    (found,) = block.precondition([tf.constant(GOLDEN_V, tf.float32)], damping=0.0)
    assert relative_error(found, GOLDEN[form]) < 1e-5


# --- dense inverses ----------------------------------------------------------------------------


@chains
@settings(max_examples=10, deadline=None)
@given(
    dims=st.tuples(st.integers(1, 4), st.integers(1, 3)),
    length=st.integers(1, 100),
    seed=st.integers(0, 999),
)
def test_direction_is_the_dense_inverse_of_sampled_chains(
    form: str, dims: tuple[int, int], length: int, seed: int
) -> None:
    inputs, outputs = (side_of_samples(dim, seed + i) for i, dim in enumerate(dims))
    assert_is_inverse(form, inputs, outputs, one_length(length))


NEAR_ONE = [sign * (1 - gap) for sign in (1, -1) for gap in (1e-1, 1e-3, 1e-6)]
psi = st.one_of(st.sampled_from([0.0, *NEAR_ONE]), st.floats(-1 + 1e-6, 1 - 1e-6))


@pytest.mark.parametrize("symmetric", [False, True])
@chains
@settings(max_examples=10, deadline=None)
@given(
    values=st.tuples(st.lists(psi, min_size=1, max_size=3), st.lists(psi, min_size=1, max_size=3)),
    length=st.integers(1, 100),
    seed=st.integers(0, 999),
)
def test_direction_is_the_dense_inverse_of_chains_with_given_correlations(
    form: str, symmetric: bool, values: tuple[list[float], list[float]], length: int, seed: int
) -> None:
    inputs, outputs = (
        side_of_values(np.array(each), seed + i, symmetric=symmetric)
        for i, each in enumerate(values)
    )
    assert_is_inverse(form, inputs, outputs, one_length(length))


@pytest.mark.parametrize("correlation", NEAR_ONE)
@pytest.mark.parametrize("length", [2, 99, 100])
@chains
def test_direction_where_steps_are_all_but_equal_or_opposite(
    form: str, length: int, correlation: float
) -> None:
    inputs = side_of_values(np.array([correlation, 0.5]), 0, symmetric=True)
    outputs = side_of_values(np.array([1 - 1e-6, -0.2]), 1, symmetric=True)
    assert_is_inverse(form, inputs, outputs, one_length(length))


@chains
def test_direction_with_several_lengths(form: str) -> None:
    lengths = np.array([0.1, 0.3, 0.0, 0.4, 0.0, 0.2])
    inputs, outputs = side_of_samples(3, 0), side_of_samples(2, 1)
    assert_is_inverse(form, inputs, outputs, lengths)


@pytest.mark.parametrize("form", FORMS)
def test_dense_form_is_the_sum_over_the_lags(form: str) -> None:
    inputs, outputs = side_of_samples(3, 0), side_of_samples(2, 1)
    lengths = np.array([0.0, 0.5, 0.0, 0.25, 0.25])
    block = recurrent_block(form, inputs, outputs, lengths)
    expected = fisher(form, inputs, outputs, lengths)
    assert relative_error(block.to_dense(), expected) < 1e-12


@pytest.mark.parametrize("form", FORMS)
def test_damping_is_shared_out_between_the_factors_at_lag_0(form: str) -> None:
    inputs, outputs = side_of_samples(3, 0), side_of_samples(2, 1)
    lengths, V = one_length(5), gradient_for(inputs, outputs)
    block = recurrent_block(form, inputs, outputs, lengths, damping=0.3)
    root = np.sqrt(0.3 / 5)
    balance = np.sqrt((np.trace(inputs[0]) / 3) / (np.trace(outputs[0]) / 2))
    sides = damped(inputs, balance * root), damped(outputs, root / balance)
    expected = solve(fisher(form, *sides, lengths), V.reshape(-1)).reshape(V.shape)
    (found,) = block.precondition([tf.constant(V)], damping=0.3)
    assert relative_error(found, expected) < 1e-12
    block.refresh(tf.constant(0.3, tf.float64))
    assert relative_error(block.precondition([tf.constant(V)])[0], expected) < 1e-12


# --- where the forms meet ----------------------------------------------------------------------


def test_one_step_has_no_neighbours() -> None:
    """D_1 = 1, whatever A₁ and G₁ are."""
    inputs, outputs = side_of_samples(3, 0), side_of_samples(2, 1)
    V = gradient_for(inputs, outputs)
    block = recurrent_block("lggm_symmetric", inputs, outputs, one_length(1))
    (found,) = block.precondition([tf.constant(V)], damping=0.2)
    dense = factored_block(inputs[0], outputs[0], 1.0, 0.2)
    assert relative_error(found, solve(dense, V.reshape(-1)).reshape(V.shape)) < 1e-13


@pytest.mark.parametrize("uncorrelated", ["inputs", "outputs", "both"])
@chains
def test_uncorrelated_steps_are_independent(form: str, uncorrelated: str) -> None:
    sides = {"inputs": side_of_samples(3, 0), "outputs": side_of_samples(2, 1)}
    for name, (lag0, lag1) in sides.items():
        if uncorrelated in (name, "both"):
            sides[name] = lag0, 0 * lag1
    lengths = np.array([0.0, 0.5, 0.0, 0.5])
    expected = direction("independent", sides["inputs"], sides["outputs"], lengths)
    found = direction(form, sides["inputs"], sides["outputs"], lengths)
    assert relative_error(found, expected) < 1e-12


def test_the_limit_is_where_long_sequences_lead() -> None:
    """Where lag 1 is symmetric, option 1 tends to option 2 as 1/T."""
    sides = [side_of_values(np.array([0.6, -0.4]), seed, symmetric=True) for seed in (0, 1)]
    errors = []
    for length in (10, 100):
        found, limit = (direction(form, *sides, one_length(length)) for form in FORMS[1:])
        errors.append(relative_error(found, limit))
    assert errors[1] < 0.02
    assert errors[1] == pytest.approx(errors[0] / 10, rel=0.2)


def test_sequences_too_long_to_tell_apart_count_as_several() -> None:
    """Of length 12, where 4 is the longest told apart: three times the curvature of length 4."""
    sides = side_of_samples(3, 0), side_of_samples(2, 1)
    whole = direction("lggm_symmetric", *sides, one_length(4))
    found = direction("lggm_symmetric", *sides, one_length(4), uses=12.0)
    assert relative_error(found, whole / 3) < 1e-13
    block = recurrent_block("lggm_symmetric", *sides, one_length(4), uses=12.0)
    assert relative_error(block.to_dense(), 3 * symmetric_fisher(*sides, one_length(4))) < 1e-12


# --- the mean over lags ------------------------------------------------------------------------

EDGES = [0.0, 1e-8, 1.0, *(1 - 10.0**-k for k in range(1, 16))]
GRID = np.array(sorted({sign * x for x in EDGES for sign in (1, -1)} | set(np.linspace(-1, 1, 41))))
LENGTHS = {
    **{f"T={length}": one_length(length) for length in (1, 2, 3, 8, 33, 100)},
    "mixed": np.array([0.0, 0.25, 0.0, 0.5, 0.125, 0.0, 0.125]),
    "with-empty": np.array([0.5, 0.0, 0.25, 0.25]),
    "several-uses": np.array([0.0, 1.0, 2.0, 1.0]),
}
all_lengths = pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)


@all_lengths
def test_mean_of_lags_is_the_literal_sum(lengths: np.ndarray) -> None:
    found = lggm.mean_of_lags(tf.constant(GRID), tf.constant(lengths)).numpy()
    expected = mean_of_lags(GRID, lengths)
    mean = np.arange(len(lengths)) @ lengths
    assert np.all(np.abs(found - expected) <= 1e-13 * np.abs(expected) + 1e-15 * mean)


@settings(max_examples=30, deadline=None)
@given(
    x=st.floats(-1, 1),
    shares=st.lists(st.floats(0, 1), min_size=2, max_size=40).filter(lambda s: sum(s[1:]) > 0.1),
)
def test_mean_of_lags_of_any_distribution(x: float, shares: list[float]) -> None:
    lengths = np.array(shares)
    found = float(lggm.mean_of_lags(tf.constant([x], tf.float64), tf.constant(lengths))[0])
    expected = float(mean_of_lags(x, lengths))
    mean = np.arange(len(lengths)) @ lengths
    assert found == pytest.approx(expected, rel=1e-13, abs=1e-14 * mean)


@all_lengths
def test_mean_of_lags_in_single_precision(lengths: np.ndarray) -> None:
    """Nothing cancels towards 1; towards −1 it is floored, where it is all but 0."""
    x = GRID.astype("float32")
    found = lggm.mean_of_lags(tf.constant(x), tf.constant(lengths, tf.float32)).numpy()
    mean = np.arange(len(lengths)) @ lengths
    expected = np.maximum(mean_of_lags(x, lengths), lggm.FLOOR * mean)
    assert np.all(np.abs(found - expected)[x >= 0] <= 1e-5 * expected[x >= 0])
    assert np.all(np.abs(found - expected) <= 1e-5 * expected + 1e-6 * mean)
    assert np.all(found >= np.float32(lggm.FLOOR) * np.float32(mean))


@all_lengths
def test_lags_of_lengths_are_expectations(lengths: np.ndarray) -> None:
    sizes = np.arange(len(lengths))
    expected = [np.maximum(sizes - lag, 0) @ lengths for lag in sizes]
    np.testing.assert_allclose(lggm.lags_of_lengths(tf.constant(lengths)), expected, atol=1e-14)


# --- failures, and before the first refresh ----------------------------------------------------


def nan_at(key: str) -> dict[str, tf.Tensor]:
    """Averages of the golden case, one of them with a NaN in its upper right corner."""
    given = averages(GOLDEN_A, GOLDEN_G, one_length(4), dtype="float64")
    corner = [0] if key == "lengths" else [0, 1] if key.endswith("1") else [1, 0]
    return given | {key: tf.tensor_scatter_nd_update(given[key], [corner], [np.float64("nan")])}


BROKEN = {
    **{f"nan-{key}": nan_at(key) for key in ("A", "A1", "G", "G1")},
    "indefinite-A": averages(
        (np.diag([1.0, -2]), GOLDEN_A[1]), GOLDEN_G, one_length(4), dtype="float64"
    ),
    "indefinite-G": averages(
        GOLDEN_A, (np.diag([-2.0, 1]), GOLDEN_G[1]), one_length(4), dtype="float64"
    ),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
@chains
def test_inverse_that_cannot_be_computed_leaves_the_last_one(form: str, broken: Any) -> None:
    block = recurrent_block(form, GOLDEN_A, GOLDEN_G, one_length(4))
    block.refresh(tf.constant(0.1))
    before = [variable.numpy() for variable in block.inverse.variables]
    block.inverse.refresh(broken, tf.constant(0.1, tf.float64))
    for variable, expected in zip(block.inverse.variables, before, strict=True):
        assert np.array_equal(variable, expected)
    (found,) = block.precondition([tf.constant(GOLDEN_V)])
    assert np.all(np.isfinite(found))


@chains
def test_direction_is_the_gradient_before_the_first_refresh(form: str) -> None:
    inputs, outputs = side_of_samples(3, 0), side_of_samples(2, 1)
    V = gradient_for(inputs, outputs)
    block = recurrent_block(form, inputs, outputs, one_length(4))
    assert np.array_equal(block.precondition([tf.constant(V)])[0], V)


@chains
def test_compiled_inverses_are_those_of_the_graph(form: str) -> None:
    dtype = "float32"
    given = averages(side_of_samples(4, 0), side_of_samples(3, 1), one_length(7), dtype=dtype)
    inverse = inverse_of(form, 4, 3, dtype)
    V = tf.constant(np.random.default_rng(0).normal(size=(4, 3)), dtype)

    def solve() -> tf.Tensor:
        damping = tf.constant(0.1, dtype)
        return inverse.apply(inverse.compute(given, damping), V, damping)

    graph, compiled = (tf.function(solve, jit_compile=jit)() for jit in (False, True))
    assert relative_error(compiled, graph) < 1e-4
    assert relative_error(graph, solve()) < 1e-4
