"""MirroredStrategy: replicas that share a batch make the steps of one device that has it all."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import CASES, Case, train, weights_of
from distribution.alone import assert_as_alone, fast_ones_first
from strategies import mirrored

import tfkfac

FAST = ("automatic", "one-example", "mean-by-weights", "accumulation-automatic")
"""Cases that are run always; the others are slow tests."""

FOUR = ("uneven", "one-example", "two-losses", "ekfac", "convolutions-one-example")
"""Cases for four replicas."""


def placed(name: str, placement: str | float) -> Case:
    case = CASES[name]
    return dataclasses.replace(case, arguments={**case.arguments, "placement": placement})


@pytest.mark.parametrize("name", fast_ones_first(CASES, FAST))
@pytest.mark.usefixtures("float64")
def test_two_replicas_make_the_steps_of_one_device(name: str) -> None:
    with mirrored(2).scope():
        weights, optimizer = train(placed(name, "mem_opt"))
    assert optimizer.counts()["updates"] >= 20
    assert_as_alone(name, weights)


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["comm_opt", "hybrid", 0.25])
@pytest.mark.parametrize("name", FOUR)
@pytest.mark.usefixtures("float64")
def test_four_replicas_make_the_steps_of_one_device(name: str, placement: str | float) -> None:
    with mirrored(4).scope():
        weights, _ = train(placed(name, placement))
    assert_as_alone(name, weights)


@pytest.mark.usefixtures("float64")
def test_a_worker_without_examples_adds_nothing_to_the_squares_of_ekfac() -> None:
    case = CASES["one-example"]  # in the last batch
    case = dataclasses.replace(case, arguments={**case.arguments, "method": "ekfac"})
    alone, _ = train(case)
    with mirrored(2).scope():
        together, _ = train(case)
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-12 * np.abs(alone).max())


@pytest.mark.usefixtures("float64")
def test_one_replica_is_one_device() -> None:
    with mirrored(1).scope():
        weights, _ = train(CASES["automatic"])
    assert_as_alone("automatic", weights)


def test_single_precision() -> None:
    alone, _ = train(CASES["uneven"])
    with mirrored(2).scope():
        together, _ = train(CASES["uneven"])
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5)


def test_a_loop_of_ones_own() -> None:
    case = CASES["numbers"]
    arrays = tuple(case.arrays())
    data = tf.data.Dataset.from_tensor_slices(arrays).batch(case.batch)
    alone = case.compiled()
    alone.fit(data, epochs=2, verbose=0)
    strategy = mirrored(2)
    with strategy.scope():
        model = case.compiled()

    def step(x: tf.Tensor, y: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            loss = model.compute_loss(x, y, model(x, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        model.optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

    @tf.function
    def together(x: tf.Tensor, y: tf.Tensor) -> None:
        strategy.run(step, args=(x, y))

    for _ in range(2):
        for x, y in strategy.experimental_distribute_dataset(data):
            together(x, y)
    np.testing.assert_allclose(weights_of(model), weights_of(alone), rtol=0, atol=1e-5)


def test_a_batch_with_nan_is_skipped_by_all() -> None:
    case = CASES["numbers"]
    x, y = case.arrays()
    x[9] = np.nan  # of the second batch, in the first replica
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(case.batch)
    with mirrored(2).scope():
        model = case.compiled()
    model.fit(data, verbose=0, callbacks=[tfkfac.callbacks.CheckWorkers(every=1)])
    assert model.optimizer.counts()["skipped"] == 1
    assert np.isfinite(weights_of(model)).all()


def test_drifting_replicas_are_noticed() -> None:
    case = CASES["numbers"]
    data = tf.data.Dataset.from_tensor_slices(tuple(case.arrays())).batch(case.batch)
    strategy = mirrored(2)
    with strategy.scope():
        model = case.compiled()
    model.fit(data, verbose=0)
    copies = strategy.experimental_local_results(model.trainable_variables[0].value)
    copies[1].assign_add(tf.ones_like(copies[1]))
    with pytest.raises(RuntimeError, match=r"drifted apart.*kernel.*on workers \[1\]"):
        model.fit(data, verbose=0, callbacks=[tfkfac.callbacks.CheckWorkers(every=1)])


def test_a_saved_model_goes_on_alone(tmp_path: object) -> None:
    case = CASES["uneven"]
    data = tf.data.Dataset.from_tensor_slices(tuple(case.arrays())).batch(case.batch)
    with mirrored(2).scope():
        model = case.compiled()
    model.fit(data, epochs=2, verbose=0)
    model.save(f"{tmp_path}/model.keras")
    model.fit(data, epochs=2, verbose=0)
    alone = keras.models.load_model(f"{tmp_path}/model.keras")
    alone.fit(data, epochs=2, verbose=0)
    np.testing.assert_allclose(weights_of(alone), weights_of(model), rtol=0, atol=1e-5)


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.usefixtures("float64")
def test_a_model_saved_between_micro_batches_goes_on(replicas: int, tmp_path: object) -> None:
    case = CASES["accumulation"]  # of 3 micro-batches
    data = tf.data.Dataset.from_tensor_slices(tuple(case.arrays())).batch(case.batch)
    with mirrored(2).scope():
        model = case.compiled()
    model.fit(data, steps_per_epoch=2, verbose=0)
    model.save(f"{tmp_path}/model.keras")
    with mirrored(replicas).scope():
        again = keras.models.load_model(f"{tmp_path}/model.keras")
    for one in (model, again):
        one.fit(data, epochs=2, verbose=0)
    np.testing.assert_allclose(weights_of(again), weights_of(model), rtol=0, atol=1e-12)


def test_a_scaled_loss_is_scaled_down_if_one_replica_overflows() -> None:
    keras.config.set_dtype_policy("mixed_float16")
    try:
        with mirrored(2).scope():
            model = CASES["numbers"].compiled()
        x, y = CASES["numbers"].arrays()
        model.fit(x[:8], y[:8], verbose=0)
        before, scale = weights_of(model), model.optimizer.dynamic_scale.numpy()
        x[5] = np.inf  # in the second replica
        model.fit(x[:8], y[:8], verbose=0)
        assert model.optimizer.dynamic_scale.numpy() == scale / 2
        np.testing.assert_array_equal(weights_of(model), before)
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("every", [0, 1.5, "epoch", True])
def test_check_workers_refuses(every: object) -> None:
    with pytest.raises(ValueError, match=r"`every` must be an integer >= 1"):
        tfkfac.callbacks.CheckWorkers(every=every)
