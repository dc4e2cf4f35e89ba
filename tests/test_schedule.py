"""Turns: every block once a round, evenly spread, more often early in training."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfkfac.schedule import WARM_UP, is_due, phase_of_multiples, rounds, stagger

costs_of_blocks = st.lists(st.floats(1.0, 1e9), min_size=1, max_size=12)


def grown(every: int) -> int:
    """The update from which rounds are `every` updates long."""
    return int(WARM_UP * (every - 1)) + 1


def turns(costs: list[float], every: int, updates: range) -> np.ndarray:
    """``[updates, blocks]``: whether it is a block's turn."""
    counted = tf.range(updates.start, updates.stop)
    due = [is_due(counted, tf.constant(every), phase).numpy() for phase in stagger(costs)]
    return np.stack(due, axis=1)


@settings(max_examples=30, deadline=None)
@given(costs_of_blocks, st.integers(1, 20))
def test_every_block_has_one_turn_a_round(costs: list[float], every: int) -> None:
    start = grown(every)
    due = turns(costs, every, range(start, start + 3 * every)).reshape(3, every, len(costs))
    assert (due.sum(axis=1) == 1).all()
    assert (due == due[:1]).all()


@settings(max_examples=30, deadline=None)
@given(costs_of_blocks, st.integers(1, 20))
def test_turns_are_balanced(costs: list[float], every: int) -> None:
    """No update does more than its even share and two blocks (the last and the first)."""
    start = grown(every)
    work = turns(costs, every, range(start, start + every)) @ np.array(costs)
    assert work.max() <= (sum(costs) / every + 2 * max(costs)) * (1 + 1e-9)


@pytest.mark.parametrize("every", [1, 3, 10])
def test_the_first_update_does_everything(every: int) -> None:
    assert turns([1.0, 5.0, 2.0], every, range(1)).all()


def test_a_round_of_one_update_is_every_update() -> None:
    assert turns([1.0, 5.0], 1, range(50)).all()


@pytest.mark.parametrize("every", [1, 2, 7, 10, 15, 20, 64])
def test_turns_at_multiples(every: int) -> None:
    """Once rounds have grown; at the beginning there is one at update 0, and others soon."""
    every_update = tf.range(10 * every)
    due = is_due(every_update, tf.constant(every), phase_of_multiples(tf.constant(every)))
    turns = np.flatnonzero(due.numpy())
    assert turns[0] == 0
    assert turns[1] <= 2
    late = turns[turns > grown(every)]
    np.testing.assert_array_equal(late, np.arange(late[0], 10 * every, every))
    assert late[0] % every == 0


def test_early_rounds_are_short_and_grow() -> None:
    due = np.flatnonzero(turns([1.0], 10, range(100))[:, 0])
    gaps = np.diff(due)
    assert gaps[0] <= 2
    assert gaps.max() == gaps[-1] == 10
    assert (np.diff(gaps) >= -1).all()


def test_the_clock_is_the_integral_of_its_rate() -> None:
    """d rounds / dt = 1 / min(every, 1 + t / WARM_UP), by numerical integration."""
    times = np.linspace(0.0, 100.0, 100_001)
    rate = 1.0 / np.minimum(8.0, 1.0 + times / WARM_UP)
    expected = np.concatenate([[0.0], np.cumsum((rate[1:] + rate[:-1]) / 2 * 1e-3)])
    np.testing.assert_allclose(rounds(tf.constant(times), tf.constant(8)), expected, atol=1e-6)


def test_turns_are_the_same_under_xla() -> None:
    counted = tf.range(60)
    compiled = tf.function(lambda t: is_due(t, tf.constant(7), 0.3), jit_compile=True)
    np.testing.assert_array_equal(compiled(counted), is_due(counted, tf.constant(7), 0.3))


def test_rounds_that_cost_much_are_not_short() -> None:
    """d rounds / dt = 1 / min(every, max(min(shortest, 1 + t), 1 + t / WARM_UP))."""
    times = np.linspace(0.0, 120.0, 120_001)
    for shortest, every in ((3.0, 8.0), (20.0, 8.0), (0.2, 8.0)):
        least = np.minimum(shortest, 1.0 + times)
        rate = 1.0 / np.minimum(every, np.maximum(least, 1.0 + times / WARM_UP))
        expected = np.concatenate([[0.0], np.cumsum((rate[1:] + rate[:-1]) / 2 * np.diff(times))])
        made = rounds(tf.constant(times), tf.constant(every), tf.constant(shortest))
        np.testing.assert_allclose(made, expected, atol=1e-5)


def test_early_rounds_of_costly_inverses() -> None:
    due = is_due(tf.range(12), tf.constant(20), 0.0, tf.constant(4.0)).numpy()
    np.testing.assert_array_equal(np.flatnonzero(due), [0, 2, 6, 10])  # the second ends at e − 1
