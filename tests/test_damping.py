"""The rule of Levenberg and Marquardt."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfkfac
from tfkfac.damping import LevenbergMarquardt, bursts, ratio_of


def _adapted(rule: LevenbergMarquardt, damping: float, ratio: float) -> float:
    """λ for a step that was to lower the loss by 1."""
    change = tf.constant(-ratio, tf.float64)
    return float(
        rule.adapted(
            tf.constant(damping, tf.float64),
            tf.constant(ratio, tf.float64),
            change,
            tf.constant(-1.0, tf.float64),
        )
    )


def test_golden_numbers() -> None:
    """maths.md §5."""
    rule, damping, seen = LevenbergMarquardt(decay=0.95, every=5), 150.0, []
    for ratio in (0.9, 0.5, 0.1, 0.1, 0.8):
        damping = _adapted(rule, damping, ratio)
        seen.append(damping)
    np.testing.assert_allclose(seen, [116.0671, 116.0671, 150, 193.8533, 150], rtol=1e-6)


@pytest.mark.parametrize("ratio", [np.nan, np.inf, -np.inf, -3.0])
def test_what_is_not_finite_or_falls_short_is_more_careful(ratio: float) -> None:
    rule = LevenbergMarquardt(every=1)
    one = tf.constant(1.0, tf.float64)
    adapted = rule.adapted(one, tf.constant(ratio, tf.float64), 3.0 * one, -one)
    np.testing.assert_allclose(adapted, 1 / 0.95)


def test_a_fall_where_a_rise_was_foreseen_is_less_careful() -> None:
    one = tf.constant(1.0, tf.float64)
    adapted = LevenbergMarquardt(every=1).adapted(one, -one, -one, one)
    np.testing.assert_allclose(adapted, 0.95)


def test_bounds_are_in_units_of_the_mean_eigenvalue() -> None:
    unit = tf.constant(10.0, tf.float64)
    relative = LevenbergMarquardt(initial=1.0, minimum=0.5, maximum=2.0)
    values = [float(relative.bounded(tf.constant(v, tf.float64), unit)) for v in (1.0, 7.0, 50.0)]
    assert values == [5.0, 7.0, 20.0]
    assert float(relative.first(unit)) == 10.0
    absolute = LevenbergMarquardt(initial=1.0, minimum=0.5, maximum=2.0, relative=False)
    values = [float(absolute.bounded(tf.constant(v, tf.float64), unit)) for v in (0.1, 1.5, 50.0)]
    assert values == [0.5, 1.5, 2.0]
    assert float(absolute.first(unit)) == 1.0


def test_the_least_damping_is_a_tenth_of_the_first() -> None:
    one = tf.constant(1.0, tf.float64)
    assert float(LevenbergMarquardt(initial=1.0).bounded(1e-3 * one, 10.0 * one)) == 1.0
    rule = LevenbergMarquardt(initial=1e-3)
    np.testing.assert_allclose(rule.bounded(1e-9 * one, one), 1e-4)


def test_changes_that_drown_in_rounding_say_nothing() -> None:
    loss = tf.constant(100.0)
    assert float(ratio_of(tf.constant(3e-5), tf.constant(-2e-5), loss)) == 0.5
    np.testing.assert_allclose(ratio_of(tf.constant(-1.0), tf.constant(-2.0), loss), 0.5)
    np.testing.assert_allclose(ratio_of(tf.constant(-3.0), tf.constant(-2.0), loss), 1.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"initial": 0.0}, "`initial` must be a number > 0, got initial=0.0"),
        ({"decay": 1.0}, "`decay` must be .* < 1"),
        ({"every": 0}, "`every` must be an integer >= 1"),
        ({"every": 2.5}, "`every` must be an integer >= 1"),
        ({"minimum": 2.0}, "in this order, got minimum=2.0, initial=0.1"),
        ({"maximum": "1"}, "`maximum` must be a number"),
        ({"recurrent_minimum": -1.0}, "`recurrent_minimum` must be a number >= 0"),
        ({"relative": 1}, "`relative` must be True or False, got 1"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LevenbergMarquardt(**arguments)


def test_config_of_the_rule_goes_round() -> None:
    rule = LevenbergMarquardt(initial=3.0, every=7)
    optimizer = tfkfac.KFAC.from_config(tfkfac.KFAC(damping=rule).get_config())
    assert optimizer.levenberg_marquardt == rule
    assert optimizer.get_config()["damping"]["config"]["initial"] == 3.0
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(rule))
    assert again == rule
    assert tfkfac.KFAC().get_config()["damping"] == "auto"


@pytest.mark.parametrize(
    ("change", "expected"),
    [(-3.0, False), (2.4, False), (2.6, True), (np.inf, True), (np.nan, True)],
)
def test_a_step_bursts_if_it_doubles_the_loss(change: float, expected: bool) -> None:
    for value in (2.0, -2.0):
        found = bursts(tf.constant(change), tf.constant(-0.5), tf.constant(value))
        assert bool(found) is expected


def test_a_rise_that_was_foreseen_is_a_burst_all_the_same() -> None:
    assert bool(bursts(tf.constant(2.1), tf.constant(50.0), tf.constant(2.0)))
