"""The KL clip against its closed form, the bound and the relaxation of a measured learning rate."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from reference import positive

from tfkfac.step_size import greatest_rate, kl_clip_scale, rate_between, relaxation


def scale(clip: float, learning_rate: float, decrement: float) -> float:
    return float(
        kl_clip_scale(
            tf.constant(clip, tf.float64), tf.constant(learning_rate**2 * decrement, tf.float64)
        )
    )


def test_clip_is_the_golden_one() -> None:
    assert scale(0.5, 0.1, 174.0) == pytest.approx(0.5360562674, abs=1e-10)


@pytest.mark.parametrize("clip", [1e-6, 1e-3, 0.5])
@pytest.mark.parametrize("learning_rate", [1e-3, 0.1, 1.0])
def test_the_step_is_as_long_as_allowed_and_no_longer_than_asked(
    clip: float, learning_rate: float
) -> None:
    """``(ν·α)²·pᵀF̂p = min(c, α²·pᵀF̂p)`` with p = F̂⁻¹g."""
    rng = np.random.default_rng(0)
    F, g = positive(rng, 5), rng.normal(size=5)
    p = np.linalg.solve(F, g)
    ν = scale(clip, learning_rate, g @ p)
    asked = learning_rate**2 * p @ F @ p
    assert (ν * learning_rate) ** 2 * p @ F @ p == pytest.approx(min(clip, asked), rel=1e-12)


@pytest.mark.parametrize("decrement", [0.0, -1e-3, 49.9])
def test_a_short_step_is_left_alone(decrement: float) -> None:
    assert scale(0.5, 0.1, decrement) == 1.0


def test_no_step_has_no_length() -> None:
    assert scale(0.5, 0.0, 174.0) == 1.0


def test_greatest_learning_rate() -> None:
    found = [float(greatest_rate(tf.constant(before, tf.float64))) for before in (0.0, 4.0, 7.0)]
    assert found == [10.0, 10.0, 14.0]


@pytest.mark.parametrize(
    ("learning_rate", "momentum", "expected"),
    [
        (0.0, 0.6, 0.7),  # 1.75·(1 − μ)
        (0.0, 0.9, 0.175),
        (0.0, 0.3, 1.0),
        (0.5, 0.6, 0.85),  # half-way to 1
        (1.0, 0.9, 1.0),
        (30.0, 0.6, 1.0),
    ],
)
def test_relaxation(learning_rate: float, momentum: float, expected: float) -> None:
    numbers = (tf.constant(each, tf.float64) for each in (learning_rate, momentum))
    assert float(relaxation(*numbers)) == pytest.approx(expected, rel=1e-12)


def test_relaxed_projections_onto_noisy_batches_end_nearer_to_the_solution() -> None:
    """Batches of fewer equations than unknowns, each with noise of its own.

    A step is `scale` times the projection onto what fits its batch. With μ = 0.6 the steps add up
    to 2.5 projections, relaxed to some 1.75.
    """
    dim, rows, μ = 40, 10, 0.6
    κ = float(relaxation(tf.constant(0.02, tf.float64), tf.constant(μ, tf.float64)))
    distances = {}
    for scale in (1.0, κ):
        rng = np.random.default_rng(0)
        w, d = np.zeros(dim), np.zeros(dim)
        late = []
        for step in range(600):
            A = rng.normal(size=(rows, dim))
            b = A @ np.ones(dim) + 0.1 * rng.normal(size=rows)
            p = np.linalg.pinv(A) @ (A @ w - b)
            d = μ * d - scale * p
            w = w + d
            if step >= 300:
                late.append(np.linalg.norm(w - 1.0))
        distances[scale] = np.mean(late)
    assert distances[κ] < 0.75 * distances[1.0]


@pytest.mark.parametrize(
    ("learning_rate", "then", "now", "expected"),
    [
        (1.0, 1.0, 4.0, 0.5),  # the root keeps α²·pᵀg, with pᵀFp = pᵀg
        (3.0, 1.0, 4.0, 1.5),
        (1e-9, 1.0, 4.0, 0.25e-9),  # α·pᵀg is kept, with pᵀFp that goes with its square
        (0.5, 1.0, 16.0, 0.0625),
        (1.0, 4.0, 1.0, 1.0),
        (3.0, 4.0, 1.0, 3.0),
        (1e-9, 1.5, 1.0, 1.5e-9),
        (1e-9, 4.0, 1.0, 2e-9),
        (0.5, 4.0, 1.0, 0.5 * 2**0.5),
        (1.0, 0.0, 1.0, 0.0),
        (1.0, 1.0, 1.0, 1.0),
    ],
)
def test_a_rate_between(learning_rate: float, then: float, now: float, expected: float) -> None:
    numbers = (tf.constant(each, tf.float64) for each in (learning_rate, then, now))
    assert float(rate_between(*numbers)) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("steeper", [0.9, 1.5, 2.0])
def test_a_steeper_batch_of_few_equations_is_fitted_by_the_rate_of_another(steeper: float) -> None:
    """With F̂ = I; the least of ½‖Jw − r‖²/N along p = Jᵀr/N is at α = pᵀp / (‖Jp‖²/N)."""
    rng = np.random.default_rng(0)
    J, r = rng.normal(size=(5, 400)), rng.normal(size=5)

    def best(J: np.ndarray) -> tuple[float, float]:
        p = J.T @ r / 5
        return p @ p / np.mean((J @ p) ** 2), p @ p

    (α, then), (wanted, now) = best(J), best(steeper * J)
    assert α < 0.1
    between = rate_between(*(tf.constant(each, tf.float64) for each in (α, then, now)))
    np.testing.assert_allclose(between, wanted, rtol=0.05)
