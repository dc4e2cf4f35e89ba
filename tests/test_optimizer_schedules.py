"""When factors and inverses are renewed, and steps that are not like the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import models
import numpy as np
import pytest
import tensorflow as tf
from steps import Arrays, Data, apply, attached, gradients, train

import tfkfac


def _deep() -> keras.Sequential:
    """Four layers whose inverses cost the same."""
    dense = [keras.layers.Dense(4, name=f"dense_{i}", use_bias=False) for i in range(4)]
    return keras.Sequential([keras.Input((models.FEATURES,)), *dense])


def _batches(*sizes: int) -> Iterator[Data]:
    x, y = models.vectors(sum(sizes))
    ends = np.cumsum(sizes)
    return ((x[e - n : e], y[e - n : e]) for e, n in zip(ends, sizes, strict=True))


def _assert_close(ours: Arrays, expected: Arrays, **tolerances: float) -> None:
    assert len(ours) == len(expected)
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_allclose(a, b, **{"rtol": 0, "atol": 1e-6, **tolerances})


def _differ(ours: Arrays, expected: Arrays) -> bool:
    return not all(np.allclose(a, b, atol=1e-4) for a, b in zip(ours, expected, strict=True))


def _changes(model: keras.Model, look: Callable[[], Arrays], steps: int) -> np.ndarray:
    """``[step, i]``: whether the i-th thing that `look` shows has changed in the step."""
    changed, before = [], look()
    for _ in range(steps):
        train(model, 1)
        now = look()
        changed.append([not np.array_equal(a, b) for a, b in zip(now, before, strict=True)])
        before = now
    return np.array(changed)


def _after_warm_up(model: keras.Model) -> None:
    """Takes the first step, and goes on where rounds have their full length."""
    train(model, 1)
    model.optimizer._updates.assign(1000)


def _factors(model: keras.Model) -> Callable[[], Arrays]:
    return lambda: [block.factors["G"].numpy() for block in model.optimizer.layer_collection]


def _inverses(model: keras.Model) -> Callable[[], Arrays]:
    """What the inverses in use make of a matrix of ones."""
    ones = tf.ones((4, 4))
    collection = model.optimizer.layer_collection
    return lambda: [block.precondition([ones])[0].numpy() for block in collection]


def _built(optimizer: tfkfac.KFAC) -> keras.Model:
    model = attached(optimizer, _deep)
    optimizer.build(model.trainable_variables)
    return model


@pytest.mark.parametrize("every", [1, 3])
def test_factors_change_once_a_round(every: int) -> None:
    model = _built(models.kfac(factor_update_every=every))
    _after_warm_up(model)
    changed = _changes(model, _factors(model), 2 * every)
    for in_round in (changed[:every], changed[every:]):
        assert (in_round.sum(axis=0) == 1).all()
    assert (changed.all(axis=1) == changed.any(axis=1)).all()  # all factors together


@pytest.mark.parametrize("every", [1, 3, 4, 6])
def test_every_inverse_is_renewed_once_a_round(every: int) -> None:
    model = _built(models.kfac(inverse_update_every=every))
    _after_warm_up(model)
    changed = _changes(model, _inverses(model), 2 * every)
    for in_round in (changed[:every], changed[every:]):
        assert (in_round.sum(axis=0) == 1).all()
        assert in_round.sum(axis=1).max() <= -(-4 // every)  # the blocks take turns
    assert changed.all(axis=1).any() == (every == 1)


@pytest.mark.parametrize("arguments", [{"factor_update_every": 4}, {"inverse_update_every": 4}])
def test_first_step_updates_all_and_first_rounds_are_short(arguments: dict[str, int]) -> None:
    model = _built(models.kfac(**arguments))
    look = _factors(model) if "factor_update_every" in arguments else _inverses(model)
    changed = _changes(model, look, 8)
    assert changed[0].all()
    for steps in changed.T:
        gaps = np.diff(np.flatnonzero(steps))
        assert len(gaps) >= 2  # more often than every 4 steps
        assert gaps.max() < 4


def test_first_inverses_are_of_the_first_factors() -> None:
    """At the first step nothing is preconditioned by initial values."""
    model = attached(models.kfac(inverse_update_every=5))
    g = gradients(model)
    apply(model, g)
    for block in model.optimizer.layer_collection:
        ones = [tf.ones(variable.shape) for variable in block.variables]
        for kept, fresh in zip(
            block.precondition(ones), block.precondition(ones, damping=0.1), strict=True
        ):
            np.testing.assert_allclose(kept, fresh, rtol=1e-5)


# --- batches that are not like the others --------------------------------------------------


def test_partial_batch_enters_with_its_share() -> None:
    """``(d·A₁ + ½·A₂) / (d + ½)`` for a batch half as large."""
    model = attached(models.kfac(factor_decay=0.9))
    moments = []
    for x, y in _batches(8, 4):
        apply(model, gradients(model, (x, y)))
        rows = np.concatenate([x, np.ones((len(x), 1))], axis=1)
        moments.append(rows.T @ rows / len(x))
    block = model.optimizer.layer_collection["hidden"]
    expected = (0.9 * moments[0] + 0.5 * moments[1]) / 1.4
    np.testing.assert_allclose(block.factors["A"], expected, rtol=1e-5)
    assert float(block.uses) == pytest.approx(1)


COUNTS = ("iteration", "skipped_steps", "failed_steps", "culprit")
"""What a step that is skipped changes."""


def _state(model: keras.Model, *, but: tuple[str, ...]) -> Arrays:
    kept = [v for v in model.optimizer.variables if v.path.split("/")[-1] not in but]
    assert len(kept) == len(model.optimizer.variables) - len(but)
    return [variable.numpy() for variable in [*kept, *model.variables]]


@pytest.mark.parametrize(
    ("bad", "in_graph"), [(float("nan"), False), (float("inf"), False), (float("nan"), True)]
)
def test_step_with_a_gradient_that_is_not_finite_is_skipped(bad: float, in_graph: bool) -> None:
    """It changes nothing but the counters."""
    arguments = {"use_ema": True, "ema_overwrite_frequency": 3, "weight_decay": 0.1}
    model = attached(models.kfac(**arguments))
    (x, y), later = _batches(8, 8)
    poisoned = x.copy()
    poisoned[3, 1] = bad

    def step(x: Any, y: Any) -> None:
        apply(model, gradients(model, (x, y)))

    step(x, y)
    step(x, y)
    before = _state(model, but=COUNTS)
    (tf.function(step) if in_graph else step)(tf.constant(poisoned), tf.constant(y))
    _assert_close(_state(model, but=COUNTS), before, atol=0)
    assert model.optimizer.iterations == 3
    assert model.optimizer._skipped_steps == 1
    step(*later)
    assert all(np.isfinite(each).all() for each in _state(model, but=()))
    assert _differ(_state(model, but=COUNTS), before)


def test_training_goes_on_after_a_skipped_step_as_if_it_had_not_been() -> None:
    def trained(*, with_bad_batch: bool) -> Arrays:
        model = attached(models.kfac(fisher="exact", factor_update_every=2))
        for number, (x, y) in enumerate(_batches(8, 8, 8)):
            apply(model, gradients(model, (x, y)))
            if with_bad_batch and number == 0:
                apply(model, gradients(model, (x * np.inf, y)))
        return model.get_weights()

    _assert_close(trained(with_bad_batch=True), trained(with_bad_batch=False))
