"""Noise: the same numbers in every mode, other numbers each time, and the right distribution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfkfac.noise import PhiloxNoise
from tfkfac.predictive import Bernoulli, Categorical, Normal

SHAPE = [64, 5]

KINDS: dict[str, Callable[[PhiloxNoise], tf.Tensor]] = {
    "uniform": lambda noise: noise.uniform(SHAPE, tf.float32),
    "uniform64": lambda noise: noise.uniform(SHAPE, tf.float64),
    "normal": lambda noise: noise.normal(SHAPE, tf.float32),
    "seed": lambda noise: noise.seed(),
}

MODES: dict[str, Callable[[Any], Any]] = {
    "graph": tf.function,
    "jit": lambda function: tf.function(function, jit_compile=True),
}


def draw(kind: str, seed: int = 3, step: int = 0, skipped: int = 0) -> np.ndarray:
    """The numbers of one draw, eagerly."""
    noise = PhiloxNoise(seed, tf.constant(step))
    for _ in range(skipped):
        noise.uniform([1], tf.float32)
    return KINDS[kind](noise).numpy()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_graph_and_xla_give_the_eager_numbers(kind: str, mode: str) -> None:
    def both_draws(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        noise = PhiloxNoise(3, step)
        return KINDS[kind](noise), KINDS[kind](noise)

    compiled = MODES[mode](both_draws)
    for step in (0, 5):
        eager, other = both_draws(tf.constant(step)), compiled(tf.constant(step))
        tolerance = 1e-5 if kind == "normal" else 0.0  # XLA has its own logarithm.
        np.testing.assert_allclose(other, eager, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("make", [Categorical, Bernoulli, Normal])
def test_sampled_gradients_are_the_same_in_every_mode(make: Any, mode: str) -> None:
    outputs = tf.random.stateless_normal(SHAPE, seed=(1, 2))

    def sample(outputs: tf.Tensor) -> tf.Tensor:
        return make(outputs).sampled_gradient(PhiloxNoise(11, tf.constant(4)))

    np.testing.assert_allclose(MODES[mode](sample)(outputs), sample(outputs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_depend_on_seed_step_and_draw_alone(kind: str) -> None:
    first = draw(kind)
    np.testing.assert_array_equal(draw(kind), first)
    for other in ({"seed": 4}, {"step": 1}, {"skipped": 1}):
        assert np.mean(draw(kind, **other) == first) < 0.6, f"{other} repeats the numbers"


@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_streams_are_independent(kind: str) -> None:
    """No correlation between steps, draws, seeds, or neighbouring seeds and draws."""
    streams = [draw(kind, seed, step, skipped) for seed, step, skipped in np.ndindex(2, 3, 3)]
    correlations = np.corrcoef([np.ravel(stream) for stream in streams])
    assert np.abs(correlations - np.eye(len(streams))).max() < 5.0 / np.sqrt(np.prod(SHAPE))


def test_uniform_moments() -> None:
    numbers = PhiloxNoise(0, tf.constant(0)).uniform([200_000], tf.float32).numpy()
    np.testing.assert_allclose(numbers.mean(), 1 / 2, atol=0.003)
    np.testing.assert_allclose(numbers.var(), 1 / 12, atol=0.001)
    counts = np.histogram(numbers, bins=20, range=(0.0, 1.0))[0]
    assert np.square(counts - 10_000).sum() / 10_000 < 45.0  # χ² with 19 degrees of freedom


def test_normal_moments() -> None:
    numbers = PhiloxNoise(0, tf.constant(0)).normal([200_000], tf.float32).numpy()
    moments = [np.mean(numbers.astype(float) ** k) for k in (1, 2, 3, 4)]
    np.testing.assert_allclose(moments, [0.0, 1.0, 0.0, 3.0], atol=0.08)
    np.testing.assert_allclose(moments[:2], [0.0, 1.0], atol=0.012)


@pytest.mark.parametrize("bits", [0, 2**32 - 1, 2**31 - 1, 2**31])
def test_no_bits_give_zero_or_one(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """0 and 1 are excluded, since their normal numbers are infinite."""

    def constant_bits(shape: Any, *args: Any, **kwargs: Any) -> tf.Tensor:
        return tf.fill(shape, tf.constant(bits, tf.uint32))

    monkeypatch.setattr(tf.random, "stateless_uniform", constant_bits)
    uniform = PhiloxNoise(0, tf.constant(0)).uniform([1], tf.float32).numpy()
    assert 0.0 < uniform[0] < 1.0
    assert np.isfinite(PhiloxNoise(0, tf.constant(0)).normal([1], tf.float32)).all()


@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1])
def test_seeds_for_other_samplers(seed: int) -> None:
    """Two numbers that every stateless sampler accepts, for large seeds and steps too."""
    noise = PhiloxNoise(seed, tf.constant(10**12, tf.int64))
    first, second = noise.seed(), noise.seed()
    assert first.dtype == tf.int32
    assert first.shape == (2,)
    assert (first.numpy() >= 0).all()
    assert (first.numpy() != second.numpy()).any()
    assert np.isfinite(tf.random.stateless_normal([3], first)).all()
