"""The KL clip against its closed form, and the bound of a measured learning rate."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from reference import positive

from tfkfac.step_size import greatest_rate, kl_clip_scale


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
