"""The quadratic model on a plane: its minimiser and its edges, against dense algebra."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfkfac.quadratic_model import QuadraticModel


def _plane(seed: int = 0) -> tuple[QuadraticModel, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A model of a random positive definite C, with g, p, d and C."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(9, 6))
    C, (g, p, d) = rows.T @ rows, rng.normal(size=(3, 6))
    if g @ p < 0:
        p = -p
    return _model(g, p, d, C), g, p, d, C


def _model(g: np.ndarray, p: np.ndarray, d: np.ndarray, C: np.ndarray) -> QuadraticModel:
    scalars = (g @ p, g @ d, p @ C @ p, p @ C @ d, d @ C @ d)
    return QuadraticModel(*(tf.constant(each, tf.float64) for each in scalars))


def _q(g: np.ndarray, C: np.ndarray, step: np.ndarray) -> float:
    return float(g @ step + 0.5 * step @ C @ step)


@pytest.mark.parametrize("seed", range(5))
def test_change_is_the_quadratic_function(seed: int) -> None:
    model, g, p, d, C = _plane(seed)
    for rate, momentum in ((0.3, 0.0), (0.3, 0.9), (1.7, -0.4)):
        change = model.change(tf.constant(rate, tf.float64), tf.constant(momentum, tf.float64))
        np.testing.assert_allclose(change, _q(g, C, momentum * d - rate * p), rtol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_minimiser_solves_the_system_of_martens_and_grosse(seed: int) -> None:
    """(α, μ) = −M⁻¹b of maths.md §4, with the directions (−p, d)."""
    model, g, p, d, C = _plane(seed)
    basis = np.stack([-p, d], axis=1)
    expected = -np.linalg.solve(basis.T @ C @ basis, basis.T @ g)
    if expected[0] <= 0:
        expected = np.array([g @ p / (p @ C @ p), 0.0])
    np.testing.assert_allclose(model.minimiser(), expected, rtol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_one_of_both_alone(seed: int) -> None:
    model, g, p, d, C = _plane(seed)
    rate = model.learning_rate(tf.constant(0.6, tf.float64)).numpy()
    best = (g @ p + 0.6 * p @ C @ d) / (p @ C @ p)
    np.testing.assert_allclose(rate, best if best > 0 else g @ p / (p @ C @ p), rtol=1e-12)
    around = [_q(g, C, 0.6 * d - (best + e) * p) for e in (-1e-4, 0.0, 1e-4)]
    assert around[1] < around[0] and around[1] < around[2]
    momentum = model.momentum(tf.constant(0.2, tf.float64)).numpy()
    around = [_q(g, C, (momentum + e) * d - 0.2 * p) for e in (-1e-4, 0.0, 1e-4)]
    assert around[1] < around[0] and around[1] < around[2]


def test_no_momentum_without_a_step_before() -> None:
    _, g, p, _, C = _plane()
    model = _model(g, p, np.zeros(6), C)
    rate, momentum = model.minimiser()
    np.testing.assert_allclose(rate, g @ p / (p @ C @ p), rtol=1e-12)
    assert momentum.numpy() == 0.0
    assert model.momentum(tf.constant(0.1, tf.float64)).numpy() == 0.0


def test_no_momentum_along_the_same_direction() -> None:
    _, g, p, _, C = _plane()
    rate, momentum = _model(g, p, -2.0 * p, C).minimiser()
    np.testing.assert_allclose(rate, g @ p / (p @ C @ p), rtol=1e-6)
    assert momentum.numpy() == 0.0


def test_a_rate_that_is_not_positive_is_that_of_no_momentum() -> None:
    """The plane's minimum lies behind: α = gᵀp / pᵀCp, μ = 0."""
    C, p, d = np.eye(2), np.array([1.0, 0.0]), np.array([1.0, 0.5])
    g = np.array([0.1, 10.0])
    unconstrained = np.linalg.solve(np.stack([-p, d], axis=1), -g)
    assert unconstrained[0] < 0
    rate, momentum = _model(g, p, d, C).minimiser()
    np.testing.assert_allclose([rate, momentum], [0.1, 0.0], rtol=1e-12)


def test_no_step_where_there_is_nothing_to_go_by() -> None:
    model = _model(np.zeros(2), np.zeros(2), np.zeros(2), np.eye(2))
    assert [float(each) for each in model.minimiser()] == [0.0, 0.0]
    assert float(model.learning_rate(tf.constant(0.9, tf.float64))) == 0.0
