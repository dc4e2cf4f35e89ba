"""Noise: the same numbers in every mode, other numbers each time, and the right distribution.

A share of a batch draws its rows of the draw of the whole batch, bit for bit.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfkfac import noise
from tfkfac.noise import PhiloxNoise
from tfkfac.predictive import Bernoulli, Categorical, Normal

SHAPE = [64, 5]

BATCH, CUTS = 13, (0, 1, 2, 6, 13)
"""A batch, and where it is cut; rows of 1, 3 and 10 numbers start anywhere in a counter step."""

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


def draw(
    kind: str, seed: int = 3, step: int = 0, skipped: int = 0, first_example: int = 0
) -> np.ndarray:
    """The numbers of one draw, eagerly."""
    source = PhiloxNoise(seed, tf.constant(step), first_example)
    for _ in range(skipped):
        source.uniform([1], tf.float32)
    return KINDS[kind](source).numpy()


def two_draws(kind: str, dtype: str) -> Callable[[tf.Tensor, tf.Tensor], list[tf.Tensor]]:
    """Draws, one after the other, of the shape of a tensor."""

    def draws(like: tf.Tensor, first_example: tf.Tensor) -> list[tf.Tensor]:
        source = PhiloxNoise(3, tf.constant(2), first_example)
        return [getattr(source, kind)(tf.shape(like), dtype) for _ in range(2)]

    return draws


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [3, 4295, 2**31 - 1])  # beyond 4294 more than 32 bits are needed
def test_graph_and_xla_give_the_eager_numbers(seed: int, kind: str, mode: str) -> None:
    def both_draws(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        source = PhiloxNoise(seed, step)
        return KINDS[kind](source), KINDS[kind](source)

    compiled = MODES[mode](both_draws)
    for step in (0, 5, 2**40):
        step = tf.constant(step, tf.int64)
        eager, other = both_draws(step), compiled(step)
        tolerance = 1e-5 if kind == "normal" else 0.0  # XLA has its own logarithm.
        np.testing.assert_allclose(other, eager, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("make", [Categorical, Bernoulli, Normal])
def test_sampled_gradients_are_the_same_in_every_mode(make: Any, mode: str) -> None:
    outputs = tf.random.stateless_normal(SHAPE, seed=(1, 2))

    def sample(outputs: tf.Tensor) -> tf.Tensor:
        return make(outputs).sampled_gradient(PhiloxNoise(11, tf.constant(4)))

    np.testing.assert_allclose(MODES[mode](sample)(outputs), sample(outputs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["eager", *MODES])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["uniform", "normal"])
@pytest.mark.parametrize("row", [(), (3,), (5, 2)])
def test_shares_of_a_batch_draw_its_rows(
    row: tuple[int, ...], kind: str, dtype: str, mode: str
) -> None:
    """The first example and the size of a share are known to the step alone."""
    compiled = MODES.get(mode, lambda function: function)(two_draws(kind, dtype))
    whole = compiled(tf.zeros([BATCH, *row]), tf.constant(0, tf.int64))
    shares = [
        compiled(tf.zeros([stop - start, *row]), tf.constant(start, tf.int64))
        for start, stop in itertools.pairwise(CUTS)
    ]
    for which in range(2):
        together = np.concatenate([share[which] for share in shares])
        assert together.dtype == dtype
        np.testing.assert_array_equal(together, whole[which])


@pytest.mark.parametrize("mode", MODES)
def test_shares_have_the_eager_numbers(mode: str) -> None:
    """And without an offset they are those of TensorFlow's own generator."""
    like, first = tf.zeros([4, 5]), tf.constant(7, tf.int64)
    eager = two_draws("uniform", "float32")(like, first)
    found = MODES[mode](two_draws("uniform", "float32"))(like, first)
    np.testing.assert_array_equal(found, eager)
    bits = tf.random.stateless_uniform(
        SHAPE, (3 * 1_000_003 + 1, 2), minval=None, maxval=None, dtype=tf.uint32, alg="philox"
    )
    expected = (np.right_shift(bits, 9) + 0.5) * 2.0**-23
    np.testing.assert_array_equal(draw("uniform", step=2), expected)


@pytest.mark.parametrize("mode", ["eager", *MODES])
def test_shares_of_a_large_batch_draw_its_rows(mode: str) -> None:
    """Many threads, and vector instructions that a share fills otherwise than the batch."""
    compiled = MODES.get(mode, lambda function: function)(two_draws("normal", "float32"))
    whole = compiled(tf.zeros([50_000, 7]), tf.constant(0, tf.int64))[0]
    for start, stop in [(1, 3), (4321, 4328), (20_001, 49_999)]:
        share = compiled(tf.zeros([stop - start, 7]), tf.constant(start, tf.int64))[0]
        np.testing.assert_array_equal(share, whole[start:stop])


def test_far_examples_have_numbers_of_their_own() -> None:
    """The counter has 64 bits."""
    firsts = [0, 2**31, 2**32, 2**34, 2**40, 2**53]
    found = [draw("uniform", first_example=first).ravel() for first in firsts]
    assert len(np.unique(found)) > 0.99 * np.size(found)


@pytest.mark.parametrize("make", [Categorical, Bernoulli, Normal])
def test_shares_sample_the_same_targets(make: Any) -> None:
    """Of sequences, and of classes that are not the last axis."""
    options = [{}, {"axis": 1}] if make is Categorical else [{}]
    outputs = tf.random.stateless_normal([BATCH, 3, 5], seed=(1, 2))

    def sampled(start: int, stop: int, option: Any) -> tf.Tensor:
        source = PhiloxNoise(11, tf.constant(4), start)
        return make(outputs[start:stop], **option).sampled_gradient(source)

    for option in options:
        shares = [sampled(start, stop, option) for start, stop in itertools.pairwise(CUTS)]
        whole = sampled(0, BATCH, option)
        np.testing.assert_allclose(np.concatenate(shares), whole, rtol=1e-5, atol=1e-6)


def test_shares_have_seeds_of_their_own() -> None:
    """No slice of a step repeats the seed of another, whichever the draw."""
    seeds = set()
    for first in range(100):
        source = PhiloxNoise(3, tf.constant(1), first)
        seeds |= {tuple(source.seed().numpy()) for _ in range(5)}
    assert len(seeds) == 100 * 5


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_depend_on_seed_step_draw_and_example_alone(kind: str) -> None:
    first = draw(kind)
    np.testing.assert_array_equal(draw(kind), first)
    for other in ({"seed": 4}, {"step": 1}, {"skipped": 1}, {"first_example": 1}):
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

    def constant_bits(seed: Any, before: Any, count: Any) -> tf.Tensor:
        return tf.fill([count], tf.constant(bits, tf.uint32))

    monkeypatch.setattr(noise, "_bits", constant_bits)
    uniform = PhiloxNoise(0, tf.constant(0)).uniform([1], tf.float32).numpy()
    assert 0.0 < uniform[0] < 1.0
    assert np.isfinite(PhiloxNoise(0, tf.constant(0)).normal([1], tf.float32)).all()


@pytest.mark.parametrize("first_example", [0, 10**12])
@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1])
def test_seeds_for_other_samplers(seed: int, first_example: int) -> None:
    """Two numbers that every stateless sampler accepts, for large seeds and steps too."""
    source = PhiloxNoise(seed, tf.constant(10**12, tf.int64), first_example)
    first, second = source.seed(), source.seed()
    assert first.dtype == tf.int32
    assert first.shape == (2,)
    assert (first.numpy() >= 0).all()
    assert (first.numpy() != second.numpy()).any()
    assert np.isfinite(tf.random.stateless_normal([3], first)).all()
