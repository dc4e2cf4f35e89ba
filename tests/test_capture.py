"""KFAC sees every training forward pass, and is not seen in anything else."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import models
import numpy as np
import pytest
import tensorflow as tf
from steps import apply, attached, gradients, train

import tfkfac
from tfkfac import capture

Factory = Callable[[], keras.Model]
EVERY_MODEL = [
    models.sequential,
    models.functional,
    models.WithTraining,
    models.WithoutTraining,
    models.nested,
    models.siamese,
    models.convolutional,
]


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch) -> list[capture.Record]:
    """All records that are made while the test runs."""
    made: list[capture.Record] = []

    class Noted(capture.Record):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr(capture, "Record", Noted)
    return made


def _fit(model: keras.Model, optimizer: tfkfac.KFAC, **arguments: Any) -> None:
    """One epoch of two steps, in eager mode: it traces nothing."""
    model.compile(optimizer=optimizer, loss=models.crossentropy(), run_eagerly=True)
    x, y = models.vectors()
    model.fit(x, y, **{"batch_size": 8, "verbose": 0, **arguments})


def _dictionaries(model: keras.Model) -> dict[int, dict[str, Any]]:
    return {id(each): dict(vars(each)) for each in [model, *model._flatten_layers()]}


# --- the same with and without KFAC --------------------------------------------------------


def _predict(model: keras.Model, x: Any, path: Path) -> Any:
    return model.predict(x, verbose=0)


def _evaluate(model: keras.Model, x: Any, path: Path) -> Any:
    if not model.compiled:
        model.compile(loss=models.crossentropy())
    return model.evaluate(x, np.zeros(len(x)), verbose=0)


def _save_and_load(model: keras.Model, x: Any, path: Path) -> Any:
    model.save(path / "model.keras")
    return keras.models.load_model(path / "model.keras")(x)


def _save_weights(model: keras.Model, x: Any, path: Path) -> Any:
    model.save_weights(path / "model.weights.h5")
    fresh = keras.models.clone_model(model)
    fresh(x)
    fresh.load_weights(path / "model.weights.h5")
    return fresh(x)


def _export(model: keras.Model, x: Any, path: Path) -> Any:
    model.export(path / "exported", verbose=False)
    loaded = tf.saved_model.load(path / "exported")
    return loaded.serve(x).numpy()


def _clone(model: keras.Model, x: Any, path: Path) -> Any:
    clone = keras.models.clone_model(model)
    clone(x)
    clone.set_weights(model.get_weights())
    return clone(x)


def _deepcopy(model: keras.Model, x: Any, path: Path) -> Any:
    return copy.deepcopy(model)(x)


def _pickle(model: keras.Model, x: Any, path: Path) -> Any:
    return pickle.loads(pickle.dumps(model))(x)


def _configuration(model: keras.Model, x: Any, path: Path) -> Any:
    return repr([model.get_config(), *(layer.get_config() for layer in model.layers)])


def _summary(model: keras.Model, x: Any, path: Path) -> Any:
    text: list[str] = []
    model.summary(print_fn=lambda line, **_: text.append(line))
    lines = "".join(text).splitlines()  # Keras counts an optimizer's variables in the total
    return [line for line in lines if "Total" not in line and "Optimizer" not in line]


ACTIONS = [
    _predict,
    _evaluate,
    _save_and_load,
    _save_weights,
    _export,
    _clone,
    _deepcopy,
    _pickle,
    _configuration,
    _summary,
]


@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.__name__.strip("_"))
@pytest.mark.parametrize("factory", [models.functional, models.WithTraining])
def test_everything_but_training_is_the_same_with_kfac(
    factory: Factory, action: Callable[..., Any], tmp_path: Path
) -> None:
    x, _ = models.vectors()
    model = factory()
    model(x)
    expected = action(model, x, tmp_path)
    model.compile(models.kfac(learning_rate=0.0), models.crossentropy())
    train(model, 1)  # moves nothing
    np.testing.assert_array_equal(action(model, x, tmp_path), expected)


@pytest.mark.parametrize("copied", [copy.deepcopy, keras.models.clone_model])
def test_copies_are_not_observed(
    copied: Callable[[keras.Model], keras.Model], records: list[capture.Record]
) -> None:
    """A copy's calls must neither run nor be recorded as the original's."""
    x, _ = models.vectors()
    model = models.functional()
    optimizer = models.kfac()
    optimizer.attach(model)
    twin = copied(model)
    twin.set_weights([np.zeros_like(weight) for weight in model.get_weights()])
    with tf.GradientTape():
        outputs = twin(x, training=True)
    assert not outputs.numpy().any()
    assert not records


@pytest.mark.parametrize("factory", EVERY_MODEL)
def test_detach_leaves_no_trace(factory: Factory) -> None:
    data = models.data_of(factory)
    model = factory()
    model(data[0])
    model.compile(loss=models.crossentropy())
    model.compute_loss(*data, model(data[0]))
    before, losses = _dictionaries(model), list(model._compile_loss._flat_losses)
    optimizer = models.kfac()
    optimizer.attach(model)
    assert "call" in vars(model)
    apply(model, gradients(model, data), optimizer)
    optimizer.detach()
    for key, now in _dictionaries(model).items():
        assert now.keys() == before[key].keys()
        assert all(now[name] is before[key][name] for name in ("activation",) if name in now)
    assert model._compile_loss._flat_losses == losses
    assert "build" not in vars(model._compile_loss)


def test_detach_puts_back_what_the_instance_had() -> None:
    x, _ = models.vectors()
    model = models.sequential()
    layer = model.get_layer("hidden")
    own_call = layer.call
    layer.call = lambda inputs, **_: 2 * own_call(inputs)
    expected = model(x)
    model.compile(models.kfac(learning_rate=0.0), models.crossentropy())
    train(model, 1)
    np.testing.assert_array_equal(model(x), expected)
    model.optimizer.detach()
    np.testing.assert_array_equal(model(x), expected)


def test_detached_model_can_be_trained_by_another() -> None:
    model = models.sequential()
    model.compile(loss=models.crossentropy())
    first, second = models.kfac(), models.kfac()
    first.attach(model)
    first.detach()
    second.attach(model)
    apply(model, gradients(model), second)
    assert second.iterations == 1
    with pytest.raises(ValueError, match=r"optimizer.attach\(model\)"):
        first.build(model.trainable_variables)


def test_detached_optimizer_may_return_to_its_model() -> None:
    model, reference = attached(models.kfac()), attached(models.kfac())
    train(model, 1)
    model.optimizer.detach()
    model.optimizer.attach(model)
    for ours, expected in zip(train(model, 1), train(reference, 2), strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_compiling_again_observes_once(records: list[capture.Record]) -> None:
    model = attached(models.kfac())
    model.compile(model.optimizer, models.crossentropy())
    train(model, 1)
    assert len(records) == 1
    assert model.optimizer.layer_collection["hidden"].uses == 1


def test_compiling_with_another_optimizer_lets_go(records: list[capture.Record]) -> None:
    model = attached(models.kfac())
    train(model, 1)
    records.clear()
    model.compile(keras.optimizers.SGD(0.1), models.crossentropy())
    train(model, 1)
    assert not records


def test_model_does_not_outlive_its_last_user() -> None:
    model = models.sequential()
    _fit(model, models.kfac())
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


# --- inert outside training ----------------------------------------------------------------


@pytest.mark.parametrize("run_eagerly", [True, False])
@pytest.mark.parametrize("factory", [models.WithTraining, models.WithoutTraining])
def test_nothing_is_recorded_outside_training(
    factory: Factory, run_eagerly: bool, records: list[capture.Record]
) -> None:
    x, y = models.vectors()
    model = factory()
    model(x)
    model.compile(optimizer=models.kfac(), loss=models.crossentropy(), run_eagerly=run_eagerly)
    model.predict(x, verbose=0)
    model.evaluate(x, y, verbose=0)
    model.predict_on_batch(x)
    model.compute_loss(x, y, model(x))
    assert not records
    assert not model.optimizer._recorder._records


def test_dropout_at_prediction_is_not_training(records: list[capture.Record]) -> None:
    x, _ = models.vectors()
    model = models.WithTraining()
    model.compile(optimizer=models.kfac(), loss=models.crossentropy())
    model(x, training=True)
    tf.function(model)(x, training=True)
    assert not records


def test_gradients_at_prediction_are_not_training(records: list[capture.Record]) -> None:
    """Such as a saliency map."""
    x = tf.constant(models.vectors()[0])
    model = models.sequential()
    _fit(model, models.kfac())
    records.clear()
    with tf.GradientTape() as tape:
        tape.watch(x)
        outputs = model(x, training=False)
    assert tape.gradient(outputs, x) is not None
    assert not records


def test_validation_during_training_changes_nothing() -> None:
    def parameters(**arguments: Any) -> list[np.ndarray]:
        keras.utils.set_random_seed(0)
        model = models.sequential()
        _fit(model, models.kfac(), shuffle=False, epochs=2, **arguments)
        return model.get_weights()

    plain, validated = parameters(), parameters(validation_data=models.vectors())
    assert all(np.array_equal(a, b) for a, b in zip(plain, validated, strict=True))


def test_eager_step_holds_nothing_when_it_is_over(records: list[capture.Record]) -> None:
    """Else the activations of the batch would stay in memory."""
    model = models.sequential()
    optimizer = models.kfac()
    _fit(model, optimizer)
    assert len(records) == 2
    assert not optimizer._recorder._records
