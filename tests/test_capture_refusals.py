"""What cannot be recorded is reported, and spoils nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import models
import numpy as np
import pytest
import tensorflow as tf
from steps import Arrays, apply, attached, gradients, train

import tfkfac


class CompiledModel(models.WithoutTraining):
    """A user's attempt to make the model faster."""

    @tf.function
    def call(self, inputs: Any) -> Any:
        return self.logits(self.hidden(inputs))


class CompiledLayer(keras.layers.Layer):
    """The same for a part of a model."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = keras.layers.Dense(models.FEATURES, name="hidden")

    @tf.function
    def call(self, inputs: Any) -> Any:
        return self.inner(inputs)


class Branch(CompiledLayer):
    """Uses a layer in a branch."""

    def call(self, inputs: Any) -> Any:
        return tf.cond(tf.reduce_all(inputs > 0), lambda: self.inner(inputs), lambda: inputs)


class BranchAfterUse(Branch):
    """Uses a layer where it is seen, and once more in a branch."""

    def call(self, inputs: Any) -> Any:
        return super().call(self.inner(inputs))


class Loop(CompiledLayer):
    """Uses a layer in a loop."""

    def call(self, inputs: Any) -> Any:
        return keras.ops.fori_loop(0, 3, lambda _, state: self.inner(state), inputs)


@pytest.mark.parametrize("part", [None, CompiledLayer, Branch, BranchAfterUse, Loop])
def test_layer_in_an_inner_graph_is_reported(part: Callable[[], keras.layers.Layer] | None) -> None:
    x, y = models.vectors()
    logits = keras.layers.Dense(models.CLASSES, name="logits")
    model = CompiledModel() if part is None else keras.Sequential([part(), logits])
    model(x)
    model.compile(models.kfac(), models.crossentropy())
    with pytest.raises(
        ValueError, match=r"'hidden' .*inner graph.*without a tf.function.*skip=\('hidden',\)"
    ):
        model.fit(x, y, verbose=0)


def test_model_under_tf_function_in_a_loop_is_reported() -> None:
    x, y = models.vectors()
    model, optimizer = models.sequential(), models.kfac()
    model.compile(loss=models.crossentropy())
    optimizer.attach(model)
    compiled = tf.function(model)
    with tf.GradientTape() as tape:
        loss = model.compute_loss(x, y, compiled(x, training=True))
    gradients = tape.gradient(loss, model.trainable_variables)
    with pytest.raises(ValueError, match=r"no training forward pass.*optimizer.record\(\)"):
        optimizer.apply(gradients, model.trainable_variables)


def _unattached() -> tuple[keras.Model, tfkfac.KFAC]:
    """A model that was compiled without the optimizer that it has met."""
    model, optimizer = models.sequential(), models.kfac()
    model.compile(loss=models.crossentropy())
    optimizer.attach(model)
    return model, optimizer


def test_model_called_twice_in_a_step_is_reported() -> None:
    x, y = models.vectors()
    model, optimizer = _unattached()
    with tf.GradientTape() as tape:
        loss = sum(model.compute_loss(x, y, model(x, training=True)) for _ in range(2))
    twice = tape.gradient(loss, model.trainable_variables)
    with pytest.raises(ValueError, match=r"called 2 times .* `with optimizer.record\(\)"):
        apply(model, twice, optimizer)
    apply(model, gradients(model), optimizer)  # the next step is none the worse
    assert optimizer.layer_collection["hidden"].uses == 1


def test_step_without_a_loss_that_kfac_knows_is_reported() -> None:
    x, _ = models.vectors()
    model, optimizer = _unattached()
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(x, training=True))
    found = tape.gradient(loss, model.trainable_variables)
    with pytest.raises(ValueError, match=r"no loss.*compute_loss.*record.loss"):
        apply(model, found, optimizer)


def test_step_without_a_forward_pass_is_reported() -> None:
    model, optimizer = _unattached()
    found = gradients(model)
    apply(model, found, optimizer)
    with pytest.raises(ValueError, match=r"no training forward pass.*optimizer.record\(\)"):
        apply(model, found, optimizer)


class Interrupted(keras.Sequential):
    """Its first training step is interrupted after the forward pass."""

    interrupted = False

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        if not self.interrupted:
            self.interrupted = True
            raise KeyboardInterrupt
        return super().compute_loss(*args, **kwargs)


def _by_hand(model: keras.Model) -> None:
    train(model, 1)


def _on_batch(model: keras.Model) -> None:
    model.train_on_batch(*models.vectors())


def _recorded(model: keras.Model) -> None:
    x, y = models.vectors()
    with tf.GradientTape() as tape, model.optimizer.record():
        loss = model.compute_loss(x, y, model(x, training=True))
    apply(model, tape.gradient(loss, model.trainable_variables))


@pytest.mark.parametrize("step", [_by_hand, _on_batch, _recorded])
def test_interrupted_eager_step_does_not_spoil_the_next(step: Callable[..., None]) -> None:
    def trained(*, interrupted: bool) -> Arrays:
        model = attached(models.kfac(), lambda: Interrupted(models.sequential().layers))
        model.interrupted = not interrupted
        if interrupted:
            with pytest.raises(KeyboardInterrupt):
                step(model)
        step(model)
        return model.get_weights()

    for ours, expected in zip(trained(interrupted=True), trained(interrupted=False), strict=True):
        np.testing.assert_array_equal(ours, expected)


class Recomputed(keras.layers.Layer):
    """Calls a layer within a function that has a gradient of its own."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.inner = keras.layers.Dense(3, name="inner")

    def build(self, input_shape: Any) -> None:
        self.inner.build(input_shape)

    def call(self, inputs: Any) -> Any:
        return tf.recompute_grad(lambda x: self.inner(x))(inputs)


def test_layer_that_no_path_leads_back_to_is_reported() -> None:
    """Its G would be zero, and its steps far too long."""
    model = keras.Sequential([keras.Input((models.FEATURES,)), Recomputed()])
    model.compile(models.kfac(), models.crossentropy(), run_eagerly=True)
    with pytest.raises(ValueError, match=r"'inner'.*no path.*skip=\('inner',\)"):
        model.fit(*models.vectors(), verbose=0)
    model.compile(models.kfac(skip=("inner",)), models.crossentropy(), run_eagerly=True)
    model.fit(*models.vectors(), verbose=0)


def test_layer_that_is_recomputed_in_a_graph_follows_the_plain_gradient() -> None:
    """What recomputes it reads its kernel outside of its call."""
    model = keras.Sequential([keras.Input((models.FEATURES,)), Recomputed()])
    model.compile(models.kfac(), models.crossentropy())
    with pytest.warns(UserWarning, match=r"plain gradient for inner \(.*used outside"):
        model.fit(*models.vectors(), verbose=0)
