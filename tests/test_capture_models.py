"""What is recorded is right for every kind of model, and what cannot be recorded is reported."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import keras
import models
import numpy as np
import pytest
import tensorflow as tf
from steps import apply, gradients

import tfkfac

Factory = Callable[[], keras.Model]


def _inputs_of(model: keras.Model, layer: keras.layers.Layer, x: Any) -> list[np.ndarray]:
    """What a layer receives in a forward pass of the model, a list entry a use."""
    seen: list[np.ndarray] = []
    call = layer.call

    def look(inputs: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(np.asarray(inputs))
        return call(inputs, *args, **kwargs)

    vars(layer)["call"] = look
    model(x)
    vars(layer)["call"] = call
    return seen


def _second_moment(rows: np.ndarray) -> np.ndarray:
    rows = np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
    return rows.T @ rows / len(rows)


def _expected_factors(
    model: keras.Model, layer: keras.layers.Layer, x: Any, losses: Callable[[Any], tf.Tensor]
) -> dict[str, np.ndarray]:
    """A and G of a layer that is used once, where g_n is the gradient of example n at the bias."""
    with tf.GradientTape() as tape:
        values = losses(model(x))
    g = tape.jacobian(values, layer.bias.value).numpy()
    return {"A": _second_moment(*_inputs_of(model, layer, x)), "G": g.T @ g / len(g)}


def _assert_factors(block: tfkfac.blocks.Block, expected: dict[str, np.ndarray]) -> None:
    for name, factor in expected.items():
        np.testing.assert_allclose(block.factors[name], factor, rtol=1e-4, atol=1e-6)


def _layers(model: keras.Model) -> Iterator[keras.layers.Layer]:
    return (each for each in model._flatten_layers() if type(each) is keras.layers.Dense)


@pytest.mark.parametrize(
    "factory",
    [
        models.sequential,
        models.functional,
        models.WithTraining,
        models.WithoutTraining,
        models.LayersFromBuild,
        models.nested,
    ],
)
def test_factors_of_every_layer_are_those_of_the_batch(factory: Factory) -> None:
    x, y = models.vectors()
    model = factory()
    model(x)
    if hasattr(model, "dropout"):
        model.dropout.rate = 0.0
    values = models.crossentropy(reduction="none")
    expected = {
        layer.path: _expected_factors(model, layer, x, lambda logits: values(y, logits))
        for layer in _layers(model)
    }
    model.compile(models.kfac(fisher="empirical"), models.crossentropy(), run_eagerly=True)
    model.fit(x, y, batch_size=len(x), shuffle=False, verbose=0)
    collection = model.optimizer.layer_collection
    assert len(expected) == len(collection.kronecker_blocks) == len(collection)
    for path, factors in expected.items():
        _assert_factors(collection[path], factors)


def test_shared_layer_collects_all_of_its_uses() -> None:
    x, y = models.vectors()
    model = models.siamese()
    rows = np.concatenate(_inputs_of(model, model.get_layer("shared"), x))
    model.compile(models.kfac(), models.crossentropy(), run_eagerly=True)
    model.fit(x, y, batch_size=len(x), verbose=0)
    block = model.optimizer.layer_collection["shared"]
    assert block.uses == 2
    _assert_factors(block, {"A": _second_moment(rows)})


def _sizes(y: np.ndarray) -> np.ndarray:
    return y[:, None].astype("float32") - 1


def _two_losses(form: type, *, as_strings: bool) -> dict[str, Any]:
    """Arguments of `compile` for two outputs."""
    if as_strings:
        losses = {"kind": "sparse_categorical_crossentropy", "size": "mse"}
    else:
        losses = {
            "kind": keras.losses.SparseCategoricalCrossentropy(),
            "size": keras.losses.MeanSquaredError(),
        }
    weights = {"kind": 0.5, "size": 3.0}
    if form is list:
        return {"loss": list(losses.values()), "loss_weights": list(weights.values())}
    return {"loss": losses, "loss_weights": weights}


@pytest.mark.parametrize(("form", "as_strings"), [(dict, True), (list, False)])
def test_two_inputs_two_outputs_with_weighted_losses(form: type, as_strings: bool) -> None:
    x, y = models.vectors()
    inputs = [x[:, :2], np.concatenate([x[:, 2:], x[:, :1]], axis=1)]
    model = models.two_inputs_two_outputs(as_dict=form is dict)

    def weighted(outputs: Any) -> tf.Tensor:
        kind, size = outputs.values() if form is dict else outputs
        crossentropy = keras.losses.sparse_categorical_crossentropy(y, kind)
        error = tf.square(_sizes(y) - size)[:, 0]
        return tf.sqrt(0.5) * crossentropy + tf.sqrt(3.0) * error

    expected = {
        layer.name: _expected_factors(model, layer, inputs, weighted) for layer in _layers(model)
    }
    labels = {"kind": y, "size": _sizes(y)}
    model.compile(
        optimizer=models.kfac(fisher="empirical"),
        run_eagerly=True,
        **_two_losses(form, as_strings=as_strings),
    )
    model.fit(inputs, labels if form is dict else list(labels.values()), batch_size=16, verbose=0)
    assert len(expected) == 3
    for name, factors in expected.items():
        _assert_factors(model.optimizer.layer_collection[name], factors)


# --- layers that come late -----------------------------------------------------------------


class LateLayer(keras.layers.Layer):
    """Makes its own layer when it is built."""

    def build(self, input_shape: Any) -> None:
        self.inner = keras.layers.Dense(input_shape[-1], name="inner")
        self.inner.build(input_shape)

    def call(self, inputs: Any) -> Any:
        return self.inner(inputs)


def _with_late_layer() -> keras.Sequential:
    return keras.Sequential([LateLayer(), keras.layers.Dense(models.CLASSES, name="logits")])


LATE = [models.WithoutTraining, models.LayersFromBuild, _with_late_layer]


@pytest.mark.parametrize("factory", LATE)
def test_model_without_weights_can_be_fitted(factory: Factory) -> None:
    model = factory()
    model.compile(models.kfac(), models.crossentropy())
    model.fit(*models.vectors(), batch_size=8, verbose=0)
    assert model.optimizer.layer_collection.coverage() == 1.0
    assert all(float(b.uses) == pytest.approx(1) for b in model.optimizer.layer_collection)


@pytest.mark.parametrize("factory", LATE)
def test_model_without_weights_can_be_trained_by_a_loop(factory: Factory) -> None:
    model = factory()
    model.compile(loss=models.crossentropy())
    optimizer = models.kfac()
    optimizer.attach(model)
    apply(model, gradients(model), optimizer)
    assert all(block.uses == 1 for block in optimizer.layer_collection)


# --- several optimizers --------------------------------------------------------------------


def _heads() -> tuple[keras.Model, keras.Model]:
    """Two models on top of one layer, "shared"."""
    inputs = keras.Input((models.FEATURES,))
    hidden = keras.layers.Dense(3, activation="tanh", name="shared")(inputs)
    one, two = (
        keras.Model(inputs, keras.layers.Dense(models.CLASSES, name=name)(hidden))
        for name in ("one", "two")
    )
    for model in (one, two):
        model.compile(loss=models.crossentropy())
    return one, two


def test_two_optimizers_on_models_that_share_a_layer() -> None:
    def train(both: bool) -> list[np.ndarray]:
        keras.utils.set_random_seed(0)
        one, two = _heads()
        first, second = models.kfac(), models.kfac(learning_rate=0.0, seed=2)
        first.attach(one)
        second.attach(two)
        for _ in range(2):
            apply(one, gradients(one), first)
            if both:
                apply(two, gradients(two), second)
        second.detach()
        apply(one, gradients(one), first)
        return one.get_weights()

    for alone, together in zip(train(False), train(True), strict=True):
        np.testing.assert_array_equal(alone, together)


@pytest.mark.parametrize("in_graph", [False, True])
def test_two_models_are_trained_in_two_threads(in_graph: bool) -> None:
    steps = 2
    together = threading.Barrier(2)

    def prepare(seed: int) -> tuple[keras.Model, tfkfac.KFAC]:
        keras.utils.set_random_seed(seed)
        model, optimizer = models.sequential(), models.kfac(seed=seed)
        model.compile(loss=models.crossentropy())
        optimizer.attach(model)
        optimizer.build(model.trainable_variables)
        return model, optimizer

    def train(model: keras.Model, optimizer: tfkfac.KFAC) -> None:
        def step() -> None:
            found = gradients(model)
            together.wait(60)
            apply(model, found, optimizer)

        step = tf.function(step) if in_graph else step
        for _ in range(steps):
            step()

    trained = [prepare(seed) for seed in (1, 2)]
    threads = [threading.Thread(target=train, args=each) for each in trained]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, (model, optimizer) in enumerate(trained, start=1):
        assert optimizer.iterations == steps
        alone, its_optimizer = prepare(seed)
        for _ in range(steps):
            apply(alone, gradients(alone), its_optimizer)
        for ours, expected in zip(model.get_weights(), alone.get_weights(), strict=True):
            np.testing.assert_allclose(ours, expected, atol=1e-5)
