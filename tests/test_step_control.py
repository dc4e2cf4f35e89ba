"""KFAC that chooses its own learning rate, momentum and damping."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import keras
import models
import numpy as np
import pytest
import tensorflow as tf
from steps import attached

import tfkfac
from tfkfac import keras_internals
from tfkfac.local_model import LocalModel
from tfkfac.quadratic_model import QuadraticModel
from tfkfac.step_size import relaxation

layers = keras.layers
AUTO = {"learning_rate": "auto", "momentum": "auto", "damping": "auto"}


def _regression(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A well-conditioned linear problem with noise: its least loss is not zero."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(64, 6))
    return x, x @ rng.normal(size=(6, 3)) + 0.3 * rng.normal(size=(64, 3))


def _linear(optimizer: tfkfac.KFAC, loss: Any = "mse", **compile_arguments: Any) -> keras.Model:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), layers.Dense(3)])
    model.compile(optimizer, loss, **compile_arguments)
    return model


def _least_loss(x: np.ndarray, y: np.ndarray) -> float:
    rows = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    return float(np.mean((rows @ np.linalg.lstsq(rows, y, rcond=None)[0] - y) ** 2))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("fisher", ["mc", "exact"])
def test_a_quadratic_problem_is_solved_within_25_updates(fisher: str) -> None:
    """Full batch, cond(A) < 10, a small λ₀: the excess loss is 1e-8 of what it was."""
    x, y = _regression()
    assert np.linalg.cond(x.T @ x) < 10
    rule = tfkfac.LevenbergMarquardt(initial=1e-3)
    model = _linear(tfkfac.KFAC(**{**AUTO, "damping": rule}, fisher=fisher, kl_clip=None, seed=0))
    before = model.evaluate(x, y, batch_size=64, verbose=0)
    model.fit(x, y, batch_size=64, epochs=25, verbose=0)
    least = _least_loss(x, y)
    assert (model.evaluate(x, y, batch_size=64, verbose=0) - least) / (before - least) < 1e-8


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("regulariser", [None, keras.regularizers.L2(0.05)])
@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum"])
def test_foreseen_is_what_happens_on_a_quadratic_problem(reduction: str, regulariser: Any) -> None:
    """ρ = 1, for the δ that was really applied, whatever the clip made of it."""
    x, y = _regression()
    loss = keras.losses.MeanSquaredError(reduction=reduction)
    for arguments in (
        AUTO,
        {**AUTO, "momentum": 0.5},
        {**AUTO, "learning_rate": 0.05, "kl_clip": 1e-3},
        {**AUTO, "learning_rate": 0.05, "momentum": 0.9, "weight_decay": 0.01},
    ):
        rule = tfkfac.LevenbergMarquardt(every=1)
        optimizer = tfkfac.KFAC(**{**arguments, "damping": rule}, seed=0)
        model = keras.Sequential(
            [keras.Input((6,)), layers.Dense(3, kernel_regularizer=regulariser)]
        )
        model.compile(optimizer, loss)
        for _ in range(2):
            model.train_on_batch(x, y)
            np.testing.assert_allclose(optimizer._ratio, 1.0, rtol=1e-6)  # kept in float32


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("damping", [0.1, "auto"])
@pytest.mark.parametrize("regulariser", [None, keras.regularizers.L2(0.05)])
def test_no_other_rate_and_momentum_do_better_on_a_quadratic_problem(
    regulariser: Any, damping: Any
) -> None:
    """(α, μ) minimise h(θ + δ) + ½λ‖δ‖² exactly, in the units of the one block."""
    x, y = _regression()
    optimizer = tfkfac.KFAC(
        learning_rate="auto", momentum="auto", damping=damping, kl_clip=None, seed=0
    )
    model = keras.Sequential([keras.Input((6,)), layers.Dense(3, kernel_regularizer=regulariser)])
    model.compile(optimizer, "mse", run_eagerly=True)
    model.train_on_batch(x, y)
    before = [variable.numpy() for variable in model.trainable_variables]
    last = [velocity.numpy() for velocity in optimizer._velocities]
    model.train_on_batch(x, y)
    rate, momentum = float(optimizer.learning_rate), float(optimizer.momentum)
    moved = [v.numpy() - old for v, old in zip(model.trainable_variables, before, strict=True)]
    (block,) = optimizer.layer_collection.kronecker_blocks
    unit = float(block.mean_eigenvalue()) / float(optimizer._unit) if damping == "auto" else 1.0
    damped = float(optimizer.damping) * unit
    direction = [(momentum * d - m) / rate for d, m in zip(last, moved, strict=True)]

    def objective(rate: float, momentum: float) -> float:
        steps = [momentum * d - rate * p for d, p in zip(last, direction, strict=True)]
        for variable, old, step in zip(model.trainable_variables, before, steps, strict=True):
            variable.assign(old + step)
        loss = model.compute_loss(x, y, model(x, training=True))
        return float(loss) + 0.5 * damped * sum(np.sum(step**2) for step in steps)

    assert momentum != 0.0
    best = objective(rate, momentum)
    for e, f in ((1e-3, 0), (-1e-3, 0), (0, 1e-3), (0, -1e-3), (1e-3, 1e-3), (-1e-3, 1e-3)):
        assert objective(rate * (1 + e), momentum * (1 + f)) > best
    slope = (objective(rate + 1e-5, momentum) - objective(rate - 1e-5, momentum)) / 2e-5
    assert abs(slope) < 1e-8


def _sequences() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    tokens = rng.integers(7, size=(32, 6))
    return tokens, tokens % 3


def _recurrent(layer: Callable[..., Any]) -> keras.Model:
    tokens = keras.Input((6,), dtype="int32")
    hidden = layers.Embedding(7, 6)(tokens)
    hidden = layer(8, return_sequences=True)(hidden)
    return keras.Model(tokens, layers.Dense(models.CLASSES)(hidden))


def _attention() -> keras.Model:
    tokens = keras.Input((6,), dtype="int32")
    hidden = layers.Embedding(7, 8)(tokens)
    hidden += layers.MultiHeadAttention(2, 4)(hidden, hidden)
    hidden = layers.LayerNormalization()(hidden)
    return keras.Model(tokens, layers.Dense(models.CLASSES)(hidden))


def _images() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input(models.IMAGE),
            layers.Conv2D(6, 3, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dropout(0.2),
            layers.Dense(models.CLASSES),
        ]
    )


@pytest.mark.parametrize(
    ("factory", "data"),
    [
        (lambda: _recurrent(layers.LSTM), _sequences),
        (lambda: _recurrent(layers.GRU), _sequences),
        (_attention, _sequences),
        (_images, lambda: models.images(32)),
    ],
    ids=["LSTM", "GRU", "attention", "images"],
)
def test_everything_automatic_trains_networks_of_all_kinds(factory: Any, data: Any) -> None:
    x, y = data()
    model = factory()
    model.compile(tfkfac.KFAC(**AUTO, seed=0), models.crossentropy())
    losses = model.fit(x, y, batch_size=32, epochs=25, verbose=0).history["loss"]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("how", [{"run_eagerly": True}, {"jit_compile": True}])
def test_eager_and_compiled_equal_the_graph(how: dict[str, bool]) -> None:
    x, y = models.vectors(32)

    def trained(**arguments: bool) -> list[np.ndarray]:
        keras.utils.set_random_seed(0)
        model = models.sequential()
        model.compile(tfkfac.KFAC(**AUTO, seed=0), models.crossentropy(), **arguments)
        model.fit(x, y, batch_size=16, epochs=3, verbose=0, shuffle=False)
        return model.get_weights()

    expected = trained(jit_compile=False)
    for ours, theirs in zip(trained(**how), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=2e-4)


def _stateful(kind: str) -> keras.Model:
    """The second batch begins where the first one ends."""
    recurrent = {
        "LSTM": lambda: layers.LSTM(5, stateful=True),
        "both ways": lambda: layers.Bidirectional(layers.GRU(4, stateful=True)),
        "cells": lambda: layers.RNN([layers.LSTMCell(4), layers.GRUCell(3)], stateful=True),
    }[kind]()
    return keras.Sequential(
        [
            keras.Input(batch_shape=(16, *models.IMAGE)),
            layers.Reshape((models.IMAGE[0], -1)),
            recurrent,
            layers.Dense(models.CLASSES),
        ]
    )


@pytest.mark.parametrize(
    "factory",
    [_images, *(functools.partial(_stateful, kind) for kind in ("LSTM", "both ways", "cells"))],
    ids=["images", "LSTM", "both ways", "cells"],
)
def test_the_second_look_sees_the_same_noise_and_leaves_no_trace(
    factory: Callable[[], keras.Model],
) -> None:
    """Dropout, BatchNormalization, states: after a step all is as without the look."""
    x, y = models.images(16)

    def states(**arguments: Any) -> list[np.ndarray]:
        keras.utils.set_random_seed(0)
        model = factory()
        optimizer = tfkfac.KFAC(learning_rate=0.0, momentum=0.0, seed=0, **arguments)
        model.compile(optimizer, models.crossentropy(), metrics=["accuracy"])
        for _ in range(2):
            logs = model.train_on_batch(x, y, return_dict=True)
            if "damping" in optimizer.automatic:  # a step of length 0 changes nothing
                assert optimizer.reduction_ratio == 0.5
        return [*(v.numpy() for v in keras_internals.states_of(model)), *logs.values()]

    expected = states(damping=1.0)
    for ours, theirs in zip(states(damping="auto"), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


class _Counting(keras.layers.Layer):
    """Counts its calls."""

    calls = 0

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        _Counting.calls += 1
        return inputs


def test_looks_every_so_many_updates_once_the_damping_serves() -> None:
    x, y = models.vectors()
    _Counting.calls = 0
    model = keras.Sequential(
        [keras.Input((models.FEATURES,)), _Counting(), layers.Dense(models.CLASSES)]
    )
    rule = tfkfac.LevenbergMarquardt(every=4, initial=10.0)
    model.compile(tfkfac.KFAC(damping=rule, seed=0), models.crossentropy(), run_eagerly=True)
    model.optimizer.build(model.trainable_variables)
    model.optimizer._settled.assign(100)
    looks = []
    for _ in range(9):
        before = _Counting.calls
        model.train_on_batch(x, y)
        looks.append(_Counting.calls - before - 1)
    assert looks == [1, 0, 0, 0, 1, 0, 0, 0, 1]


def test_damping_and_learning_rate_look_at_one_quadratic_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By default q is measured once in twenty steps, for both."""
    planes, looks = [], []
    measure, evaluate = LocalModel.plane, tfkfac.KFAC._change_of_loss

    def plane(model: LocalModel, *arguments: Any) -> Any:
        planes.append(int(optimizer._updates))
        return measure(model, *arguments)

    def change(optimizer: tfkfac.KFAC, *arguments: Any) -> Any:
        looks.append(int(optimizer._updates))
        return evaluate(optimizer, *arguments)

    monkeypatch.setattr(LocalModel, "plane", plane)
    monkeypatch.setattr(tfkfac.KFAC, "_change_of_loss", change)
    optimizer = tfkfac.KFAC(seed=0)
    model = attached(optimizer)
    optimizer.build(model.trainable_variables)
    optimizer._settled.assign(100)
    optimizer._updates.assign(100)  # after the beginning, when all is measured more often
    for _ in range(40):
        model.train_on_batch(*models.vectors())
    assert planes == looks == [100, 120]


def _overshooting(every: int = 10) -> keras.Model:
    """A steep net with hardly any damping, and a learning rate that overshoots."""
    rule = tfkfac.LevenbergMarquardt(initial=1e-6, every=every)
    optimizer = tfkfac.KFAC(learning_rate=500.0, momentum=0.9, damping=rule, kl_clip=None, seed=0)
    keras.utils.set_random_seed(0)
    model = models.sequential()
    model.compile(optimizer, models.crossentropy())
    return model


def _thrown_back() -> keras.Model:
    """After a step, whose momentum is turned round: the next one raises the loss, as foreseen."""
    model = models.sequential()
    model.compile(tfkfac.KFAC(momentum=0.9, damping="auto", seed=0), models.crossentropy())
    model.train_on_batch(*models.vectors(32))
    for velocity in model.optimizer._velocities:
        velocity.assign(-3.0 * velocity)
    return model


def test_a_step_that_fails_is_taken_back_and_the_damping_raised() -> None:
    x, y = models.vectors(32)
    model = _overshooting()
    optimizer = model.optimizer
    before = model.get_weights()
    model.train_on_batch(x, y)
    damping = float(optimizer.damping)
    assert optimizer.counts()["taken_back"] == 1
    for ours, theirs in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert all(not np.any(v.numpy()) for v in optimizer._velocities)
    model.train_on_batch(x, y)
    assert optimizer.counts()["taken_back"] == 2
    np.testing.assert_allclose(optimizer.damping, 5 * damping, rtol=1e-6)
    for _ in range(30):
        model.train_on_batch(x, y)
    assert optimizer.counts()["taken_back"] < 30
    assert model.evaluate(x, y, verbose=0) < 1.0


def test_a_step_that_momentum_has_spoilt_is_taken_back_with_it() -> None:
    """A rise of the loss that was foreseen has a ρ of 1, and is no success."""
    x, y = models.vectors(32)
    model = _thrown_back()
    optimizer = model.optimizer
    kept = model.get_weights()
    damping = float(optimizer.damping)
    model.train_on_batch(x, y)
    assert optimizer.reduction_ratio > 0.25
    assert optimizer.counts()["taken_back"] == 1
    for ours, theirs in zip(model.get_weights(), kept, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert all(not np.any(v.numpy()) for v in optimizer._velocities)
    np.testing.assert_allclose(optimizer.damping, 5 * damping, rtol=1e-6)


@pytest.mark.parametrize("every", [1, 100])
def test_a_step_that_doubles_the_loss_is_taken_back_at_any_time(every: int) -> None:
    """Also long after a λ was found; and the next step is looked at, whatever `every` is."""
    x, y = models.vectors(32)
    model = _overshooting(every)
    optimizer = model.optimizer
    optimizer.build(model.trainable_variables)
    optimizer._settled.assign(100)
    before = model.get_weights()
    for taken_back in (1, 2):
        model.train_on_batch(x, y)
        assert optimizer.counts()["taken_back"] == taken_back
        for ours, theirs in zip(model.get_weights(), before, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert not optimizer._is_searching()


def test_a_rise_that_does_not_double_the_loss_is_kept_once_a_damping_was_found() -> None:
    """The damping rises a little, that is all."""
    x, y = models.vectors(32)
    model = _thrown_back()
    model.optimizer._settled.assign(100)
    model.optimizer._updates.assign(20)
    model.optimizer._ratio.assign(0.0)
    kept = model.evaluate(x, y, verbose=0)
    model.train_on_batch(x, y)
    assert model.optimizer.reduction_ratio != 0.0  # It was looked at.
    assert kept < model.evaluate(x, y, verbose=0) < 2.0 * kept
    assert model.optimizer.counts()["taken_back"] == 0


def test_above_ten_a_learning_rate_does_no_more_than_double() -> None:
    """A batch that is as good as certain has no curvature to speak of."""
    x, y = models.vectors(32)
    model = models.sequential()
    options = {"learning_rate_update_every": 1, "factor_update_every": 10**6, "kl_clip": None}
    optimizer = tfkfac.KFAC(momentum=0.0, damping=1e-3, seed=0, **options)
    model.compile(optimizer, models.crossentropy())
    model.train_on_batch(x, y)
    rates = []
    for _ in range(10):
        for block in optimizer.layer_collection.kronecker_blocks:  # of another problem altogether
            for variable in block.variables:
                variable.assign(variable * 1.3)
        model.train_on_batch(x, model.predict(x, verbose=0).argmax(axis=1))
        rates.append(float(optimizer.learning_rate))
    highest = [max(10.0, 2.0 * before) for before in rates]
    assert max(rates) > 10.0
    assert all(rate <= bound for rate, bound in zip(rates[1:], highest, strict=False))


@pytest.mark.parametrize("momentum", [0.0, 0.6, 0.9])
def test_a_learning_rate_with_a_given_momentum_is_the_best_one_relaxed(momentum: float) -> None:
    plane = QuadraticModel(*map(tf.constant, (1.0, -0.01, 5.0, 0.01, 0.5)))
    μ = tf.constant(momentum)
    rate, kept = tfkfac.KFAC(momentum=momentum)._best_on(plane, tf.constant(0.1), μ)
    best = plane.learning_rate(μ)
    assert float(rate) == pytest.approx(float(relaxation(best, μ) * best))
    assert float(rate) / float(best) == pytest.approx(
        {0.0: 1.0, 0.6: 0.76, 0.9: 0.34}[momentum], abs=0.01
    )
    assert float(kept) == pytest.approx(momentum)


def test_momentum_is_the_best_for_a_learning_rate_that_is_bounded() -> None:
    plane = QuadraticModel(*map(tf.constant, (1.0, -0.01, 0.02, 0.01, 0.5)))
    best = [float(each) for each in plane.minimiser()]
    optimizer = tfkfac.KFAC(momentum="auto")
    for before, most in ((1.0, 10.0), (15.0, 30.0), (100.0, best[0])):
        rate, momentum = optimizer._best_on(plane, tf.constant(before), tf.constant(0.3))
        assert float(rate) == pytest.approx(most)
        expected = plane.momentum(tf.constant(most))
        np.testing.assert_allclose(momentum, expected, rtol=1e-4)
    assert best[0] > 30.0


@pytest.mark.parametrize("relative", [True, False])
def test_a_block_is_damped_in_its_own_units(relative: bool) -> None:
    x, y = models.vectors(32)
    rule = tfkfac.LevenbergMarquardt(initial=0.3, relative=relative)
    optimizer = tfkfac.KFAC(damping=rule, seed=0)
    model = models.sequential()
    model.compile(optimizer, models.crossentropy(), run_eagerly=True)
    model.train_on_batch(x, y)
    blocks = optimizer.layer_collection.kronecker_blocks
    traces = [float(block.trace()) / block.parameters for block in blocks]
    whole = optimizer.layer_collection.curvature_blocks
    mean = sum(float(b.trace()) for b in whole) / sum(b.parameters for b in whole)
    assert max(traces) > 1.3 * min(traces)
    np.testing.assert_allclose(optimizer.damping, 0.3 * (mean if relative else 1.0), rtol=1e-5)
    for block, trace in zip(blocks, traces, strict=True):
        damping = tf.constant(0.3 * trace if relative else 0.3)
        expected = block.inverse.compute(block.averages(), damping)
        for ours, theirs in zip(block.inverse.kept(), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4 * np.abs(theirs).max())


def test_inverses_follow_a_damping_that_has_jumped() -> None:
    """Before the next step all of them are made anew."""
    x, y = models.vectors(32)
    rule = tfkfac.LevenbergMarquardt(initial=1e-6)
    optimizer = tfkfac.KFAC(
        learning_rate=500.0,
        momentum=0.0,
        damping=rule,
        kl_clip=None,
        seed=0,
        inverse_update_every=1000,
    )
    model = models.sequential()
    model.compile(optimizer, models.crossentropy(), run_eagerly=True)
    model.train_on_batch(x, y)
    optimizer._updates.assign(500)
    block = optimizer.layer_collection["hidden"]
    before = [each.numpy() for each in block.inverse.variables]
    assert optimizer.counts()["taken_back"] == 1
    model.train_on_batch(x, y)
    after = [each.numpy() for each in block.inverse.variables]
    assert all(not np.allclose(a, b) for a, b in zip(after, before, strict=True))


def test_a_loss_that_is_summed_trains_as_its_mean_does() -> None:
    """λ₀ and the clip are relative: 784 times the loss makes the same steps."""
    x, y = models.vectors(32)

    def trained(weight: float) -> list[np.ndarray]:
        keras.utils.set_random_seed(0)
        model = models.sequential()
        model.compile(tfkfac.KFAC(seed=0), models.crossentropy(), loss_weights=[weight])
        model.fit(x, y, batch_size=16, epochs=5, verbose=0, shuffle=False)
        return model.get_weights()

    for ours, theirs in zip(trained(784.0), trained(1.0), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=1e-3)


def _rates(optimizer: tfkfac.KFAC, steps: int) -> list[float]:
    """The learning rate of each step."""
    x, y = models.vectors(32)
    model = models.sequential()
    model.compile(optimizer, models.crossentropy())
    rates = []
    for _ in range(steps):
        model.train_on_batch(x, y)
        rates.append(float(optimizer.learning_rate))
    return rates


def test_a_learning_rate_is_measured_every_so_many_steps() -> None:
    rule = tfkfac.LevenbergMarquardt(every=1000)
    rates = _rates(tfkfac.KFAC(damping=rule, learning_rate_update_every=4, seed=0), 60)
    changes = np.flatnonzero(np.diff(rates[40:])) + 1
    assert len(changes) >= 4
    np.testing.assert_array_equal(np.diff(changes), 4)
    assert len(set(rates[:8])) > 4


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("times", [10.0, 0.5])
def test_a_step_that_is_not_measured_is_no_longer_than_the_one_that_was(times: float) -> None:
    """The second step has a gradient of so many times the first, and the same F̂."""
    x, _ = _regression()
    residual = np.random.default_rng(1).normal(size=(64, 3))
    optimizer = tfkfac.KFAC("auto", momentum=0.0, damping=1e-2, kl_clip=None, seed=0)
    model = _linear(optimizer)

    def length_of_step(residual: np.ndarray) -> float:
        before = model.get_weights()
        model.train_on_batch(x, model.predict(x, verbose=0) + residual)
        moved = [np.sum((a - b) ** 2) for a, b in zip(model.get_weights(), before, strict=True)]
        return float(np.sqrt(sum(moved)))

    first = length_of_step(residual)
    optimizer._updates.assign(4)  # not its turn, see tfkfac/schedule.py
    second = length_of_step(times * residual)
    α = min(1.0, float(optimizer.learning_rate))
    assert α > 0.9
    assert second < 1.001 * first
    expected = 10.0 ** (α - 1.0) if times == 10.0 else 0.5 * 2.0 ** (1.0 - α)
    np.testing.assert_allclose(second / first, expected, rtol=1e-6)


def test_a_learning_rate_is_measured_after_a_burn_in() -> None:
    optimizer = tfkfac.KFAC(damping=0.1, burn_in=4, learning_rate_update_every=1000, seed=0)
    rates = _rates(optimizer, 5)
    assert rates[:4] == [0.0] * 4
    assert rates[4] > 0


def test_a_learning_rate_of_zero_is_measured_again() -> None:
    """Nothing would move until the next turn otherwise."""
    optimizer = tfkfac.KFAC(damping=0.1, learning_rate_update_every=1000, seed=0)
    x, y = models.vectors(32)
    model = models.sequential()
    model.compile(optimizer, models.crossentropy())
    model.train_on_batch(x, y)
    optimizer._updates.assign(5)  # not its turn, see tfkfac/schedule.py
    optimizer._learning_rate.assign(0.0)
    model.train_on_batch(x, y)
    assert float(optimizer.learning_rate) > 0


def test_steps_of_ones_own_measure_it_as_seldom() -> None:
    """Nobody looks after these steps, so no λ is ever found; that is no reason to measure."""
    x, y = models.vectors(32)
    model = models.sequential()
    optimizer = tfkfac.KFAC(learning_rate_update_every=1000, seed=0, model=model)
    loss, rates = models.crossentropy(), []
    for _ in range(12):
        with tf.GradientTape() as tape, optimizer.record() as record:
            value = record.loss(loss, y, model(x, training=True))
        gradients = tape.gradient(value, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        rates.append(float(optimizer.learning_rate))
    assert len(set(rates)) < 9


def test_an_embedding_keeps_its_rows() -> None:
    """Tokens that never occur stay as they are, with everything automatic."""
    x, y = _sequences()
    x = np.minimum(x, 4)
    model = _recurrent(layers.LSTM)
    model.compile(tfkfac.KFAC(**AUTO, seed=0), models.crossentropy())
    embeddings = model.layers[1].embeddings
    before = embeddings.numpy()
    model.fit(x, y, batch_size=16, epochs=2, verbose=0)
    np.testing.assert_array_equal(embeddings.numpy()[5:], before[5:])
    assert not np.allclose(embeddings.numpy()[:5], before[:5])


def test_an_unknown_loss_with_the_labels_of_the_data() -> None:
    x, y = _regression()
    x, y = x.astype("float32"), y.astype("float32")
    model = _linear(tfkfac.KFAC(**AUTO, fisher="empirical", seed=0), "mean_absolute_error")
    losses = model.fit(x, y, batch_size=64, epochs=20, verbose=0).history["loss"]
    assert losses[-1] < 0.5 * losses[0]


def test_a_step_of_its_own_keeps_its_first_damping() -> None:
    """With ``record`` nobody knows how to evaluate the loss again."""
    x, y = models.vectors()
    model = models.sequential()
    optimizer = tfkfac.KFAC(seed=0, model=model)
    loss = models.crossentropy()
    for _ in range(4):
        with tf.GradientTape() as tape, optimizer.record() as record:
            value = record.loss(loss, y, model(x, training=True))
        gradients = tape.gradient(value, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        unit = float(optimizer._unit)
        np.testing.assert_allclose(optimizer.damping, 0.1 * unit, rtol=1e-6)
    assert float(loss(y, model(x))) < float(value)


def test_burn_in_collects_statistics_and_moves_nothing() -> None:
    x, y = models.vectors(32)
    model = models.sequential()
    model.compile(tfkfac.KFAC(seed=0, burn_in=3), models.crossentropy())
    before = model.get_weights()
    seen = []
    for _ in range(3):
        model.train_on_batch(x, y)
        seen.append(model.optimizer.layer_collection["hidden"].factors["G"].numpy())
        for ours, theirs in zip(model.get_weights(), before, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert not np.allclose(seen[0], seen[1]) and not np.allclose(seen[1], seen[2])
    model.train_on_batch(x, y)
    assert not np.allclose(model.get_weights()[0], before[0])


@pytest.mark.parametrize("first", ["burn-in", "not finite"])
def test_averages_of_weights_begin_with_the_first_that_move(first: str) -> None:
    """Keras' own begin where `iterations` is 0, where nothing was averaged here."""
    x, y = models.vectors(32)
    model = models.sequential()
    burn_in = int(first == "burn-in")
    optimizer = tfkfac.KFAC(seed=0, burn_in=burn_in, use_ema=True, ema_momentum=0.9)
    model.compile(optimizer, models.crossentropy())
    model.train_on_batch(x if burn_in else np.full_like(x, np.nan), y)
    model.train_on_batch(x, y)
    once = model.get_weights()
    for ours, expected in zip(optimizer._model_variables_moving_average, once, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-6)
    model.train_on_batch(x, y)
    for ours, before, now in zip(
        optimizer._model_variables_moving_average, once, model.get_weights(), strict=True
    ):
        np.testing.assert_allclose(ours, 0.9 * before + 0.1 * now, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["learning_rate", "momentum", "damping", "kl_clip"])
def test_auto_is_read_configured_and_not_assigned(name: str) -> None:
    x, y = models.vectors()
    optimizer = tfkfac.KFAC(**{name: "auto"}, seed=0)
    assert optimizer.get_config()[name] == "auto"
    again = tfkfac.KFAC.from_config(optimizer.get_config())
    assert again.get_config() == optimizer.get_config()
    with pytest.raises(TypeError, match=f"created with {name}='auto', .* not settable"):
        setattr(optimizer, name, 0.1)
    model = models.sequential()
    model.compile(optimizer, models.crossentropy())
    model.fit(x, y, batch_size=8, epochs=2, verbose=0)
    assert np.isfinite(float(getattr(optimizer, name)))
    assert float(optimizer.learning_rate) > 0 and float(optimizer.damping) > 0


def test_numbers_stay_assignable() -> None:
    optimizer = tfkfac.KFAC(learning_rate=0.1, momentum=0.5, damping=0.1, kl_clip=0.1)
    for name in ("learning_rate", "momentum", "damping", "kl_clip"):
        setattr(optimizer, name, 0.25)
        assert float(getattr(optimizer, name)) == 0.25


def test_two_names_for_one_bound() -> None:
    assert tfkfac.KFAC(norm_constraint=0.5).get_config()["kl_clip"] == 0.5
    with pytest.raises(ValueError, match=r"two names for one bound, got kl_clip=0\.1"):
        tfkfac.KFAC(kl_clip=0.1, norm_constraint=0.5)
    with pytest.raises(ValueError, match=r"`norm_constraint` must be a number > 0"):
        tfkfac.KFAC(norm_constraint=-1.0)


def test_ten_steps_from_a_file_are_those_of_a_run_that_never_stopped(tmp_path: Any) -> None:
    x, y = models.images(32)

    def start() -> keras.Model:
        keras.utils.set_random_seed(0)
        model = _images()
        model.compile(tfkfac.KFAC(**AUTO, seed=0), models.crossentropy())
        return model

    whole = start()
    whole.fit(x, y, batch_size=16, epochs=6, verbose=0, shuffle=False)
    stopped = start()
    stopped.fit(x, y, batch_size=16, epochs=3, verbose=0, shuffle=False)
    stopped.save(tmp_path / "stopped.keras")
    loaded = keras.models.load_model(tmp_path / "stopped.keras")
    for layer, other in zip(stopped.layers, loaded.layers, strict=True):
        if isinstance(layer, layers.Dropout):  # Keras does not save these
            other.seed_generator.state.assign(layer.seed_generator.state)
    loaded.fit(x, y, batch_size=16, epochs=3, verbose=0, shuffle=False)
    for ours, theirs in zip(loaded.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_inverses_that_cost_much_are_made_less_often_early() -> None:
    """At 400 units and 2 examples a round of inverses is the work of more than 20 steps."""
    model = keras.Sequential([keras.Input((400,)), keras.layers.Dense(400)])
    optimizer = tfkfac.KFAC(0.0, damping=1.0, seed=0, kl_clip=None, factor_update_every=1)
    model.compile(optimizer, "mse")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 2, 400)), rng.normal(size=(6, 2, 400))
    kept = []
    for inputs, outputs in zip(x, y, strict=True):
        model.train_on_batch(inputs, outputs)
        (block,) = optimizer.layer_collection.kronecker_blocks
        kept.append(block.inverse.kept()[0].numpy())
    made = [not np.array_equal(*pair) for pair in itertools.pairwise(kept)]
    assert made == [False, True, False, False, False]  # a first round of e − 1 updates, then longer
