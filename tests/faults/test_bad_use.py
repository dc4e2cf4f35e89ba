"""Uses that nobody thought of: they work, or an error says what to do."""

from __future__ import annotations

import pathlib
import threading
import warnings

import keras
import models
import numpy as np
import pytest
import tensorflow as tf

import tfkfac


def fitted(model: keras.Model, *, run_eagerly: bool = True) -> keras.Model:
    model.compile(models.kfac(), models.crossentropy(), run_eagerly=run_eagerly)
    model.fit(*models.vectors(), verbose=0)
    return model


class Odd(keras.layers.Layer):
    def build(self, shape: tuple[int, ...]) -> None:
        self.kernel = self.add_weight(shape=(shape[-1], models.CLASSES), name="odd")

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return tf.matmul(inputs, self.kernel)


@pytest.mark.filterwarnings("ignore:The model does not have any trainable weights")
def test_a_model_without_trainable_weights_is_left_as_it_is() -> None:
    model = models.sequential()
    model.trainable = False
    before = model.get_weights()
    for ours, expected in zip(fitted(model).get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.filterwarnings("ignore:tfkfac knows no Kronecker structure")
def test_a_model_of_layers_that_are_not_known_trains() -> None:
    model = keras.Sequential([keras.Input((models.FEATURES,)), Odd()])
    before = model.get_weights()[0]
    assert np.abs(fitted(model).get_weights()[0] - before).max() > 1e-6


@pytest.mark.parametrize("trained", [False, True])
def test_two_models_cannot_share_an_optimizer(trained: bool) -> None:
    optimizer, first, second = models.kfac(), models.sequential(), models.sequential()
    first.compile(optimizer, models.crossentropy())
    if trained:
        first.fit(*models.vectors(), verbose=0)
    with pytest.raises(ValueError, match=r"already trains a model.*Make a new tfkfac\.KFAC"):
        second.compile(optimizer, models.crossentropy())


def test_compiled_twice_with_one_optimizer_goes_on() -> None:
    model = fitted(models.sequential())
    model.compile(model.optimizer, models.crossentropy())
    model.fit(*models.vectors(), verbose=0)
    assert model.optimizer.counts()["updates"] == 2


@pytest.mark.parametrize("between", ["adam", "kfac"])
def test_compiled_with_another_optimizer_begins_anew(between: str) -> None:
    model = fitted(models.sequential())
    if between == "adam":
        model.compile("adam", models.crossentropy())
        model.fit(*models.vectors(), verbose=0)
    assert fitted(model).optimizer.counts()["updates"] == 1


def test_a_layer_frozen_before_training_stays() -> None:
    model = models.sequential()
    model.compile(models.kfac(), models.crossentropy())
    model.layers[0].trainable = False
    before = model.get_weights()
    model.fit(*models.vectors(), verbose=0)
    np.testing.assert_array_equal(model.get_weights()[0], before[0])
    assert np.abs(model.get_weights()[2] - before[2]).max() > 1e-6


def test_a_layer_frozen_between_two_fits_stays() -> None:
    model = fitted(models.sequential(), run_eagerly=False)
    model.layers[0].trainable = False
    model.compile(model.optimizer, models.crossentropy())
    before = model.get_weights()
    model.fit(*models.vectors(), verbose=0)
    np.testing.assert_array_equal(model.get_weights()[0], before[0])


@pytest.mark.parametrize("at_first", [True, False], ids=["frozen", "unfrozen"])
def test_a_layer_that_is_frozen_or_unfrozen_without_compile_is_told(at_first: bool) -> None:
    """In graphs Keras makes the training step once."""
    model = models.sequential()
    model.layers[0].trainable = at_first
    fitted(model, run_eagerly=False)
    model.layers[0].trainable = not at_first
    with pytest.warns(UserWarning, match=r"2 variables \(.*hidden/kernel.*Compile the model again"):
        model.fit(*models.vectors(), verbose=0)
    if not at_first:
        model.optimizer.rebuild(model)
    model.compile(model.optimizer, models.crossentropy())
    before = model.get_weights()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.fit(*models.vectors(), verbose=0)
        model.fit(*models.vectors(), verbose=0)
    moved = np.abs(model.get_weights()[0] - before[0]).max() > 1e-6
    assert moved == (not at_first)


def test_images_of_another_size_go_on_with_the_same_curvature() -> None:
    model = keras.Sequential(
        [
            keras.Input((None, None, 2)),
            keras.layers.Conv2D(3, 3, padding="same"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(2),
        ]
    )
    model.compile(models.kfac(), "mse")
    rng = np.random.default_rng(0)
    for size in (6, 9):
        model.fit(rng.normal(size=(8, size, size, 2)), rng.normal(size=(8, 2)), verbose=0)
    assert model.optimizer.counts()["updates"] == 2
    assert all(np.isfinite(variable.numpy()).all() for variable in model.optimizer.variables)


def test_a_model_rebuilt_with_a_layer_of_another_shape_says_what_to_do() -> None:
    model = fitted(models.sequential())
    model.pop()
    model.add(keras.layers.Dense(models.CLASSES + 2, name="wider"))
    model.compile(model.optimizer, models.crossentropy(), run_eagerly=True)
    with pytest.raises(ValueError, match=r"wider/kernel.*optimizer\.rebuild\(model\)"):
        model.fit(*models.vectors(), verbose=0)
    model.optimizer.rebuild(model)
    model.compile(model.optimizer, models.crossentropy(), run_eagerly=True)
    model.fit(*models.vectors(), verbose=0)
    assert model.optimizer.counts()["updates"] == 2


def test_a_model_that_another_optimizer_has_trained() -> None:
    model = models.sequential()
    model.compile("adam", models.crossentropy())
    model.fit(*models.vectors(), verbose=0)
    optimizer = models.kfac(model=model)
    x, y = models.vectors()
    with tf.GradientTape() as tape:
        loss = model.compute_loss(x, y, model(x, training=True))
    gradients = tape.gradient(loss, model.trainable_variables)
    optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
    assert optimizer.counts()["updates"] == 1


def test_a_detached_optimizer_says_what_to_do() -> None:
    model = models.sequential()
    model.compile(models.kfac(), models.crossentropy())
    model.optimizer.detach()
    with pytest.raises(ValueError, match=r"has no model.*optimizer\.attach\(model\)"):
        model.fit(*models.vectors(), verbose=0)


def test_a_clone_takes_the_configuration_not_the_optimizer() -> None:
    model = fitted(models.sequential())
    clone = keras.models.clone_model(model)
    with pytest.raises(ValueError, match="already trains a model"):
        clone.compile(model.optimizer, models.crossentropy())
    again = tfkfac.KFAC.from_config(model.optimizer.get_config())
    clone.compile(again, models.crossentropy(), run_eagerly=True)
    clone.fit(*models.vectors(), verbose=0)
    assert again.counts()["updates"] == 1


def test_one_of_several_optimizers(tmp_path: pathlib.Path) -> None:
    """Of what KFAC does not train, it changes nothing."""
    model = models.sequential()
    still = keras.optimizers.SGD(0.0)
    parts = keras.optimizers.OptimizerMap(still, {".*hidden.*": models.kfac()})
    model.compile(keras.optimizers.MultiOptimizer(parts), models.crossentropy())
    before = model.get_weights()
    monitor = tfkfac.callbacks.CurvatureMonitor()
    model.fit(*models.vectors(), verbose=0, callbacks=[monitor])
    hidden, _, logits, _ = (
        np.abs(a - b).max() for a, b in zip(model.get_weights(), before, strict=True)
    )
    assert hidden > 1e-6
    assert logits == 0.0
    assert monitor.history["skipped"] == [0.0]


def test_two_optimizers_of_one_model_say_what_to_do() -> None:
    model = models.sequential()
    model.compile(models.kfac(), models.crossentropy())
    second = models.kfac(model=model)
    with pytest.raises(ValueError, match=r"Two KFACs watch one model.*detach\(\)"):
        model.fit(*models.vectors(), verbose=0)
    second.detach()
    model.fit(*models.vectors(), verbose=0)
    assert model.optimizer.counts()["updates"] == 1


def test_one_of_several_optimizers_goes_on_from_a_file(tmp_path: pathlib.Path) -> None:
    """The file builds it for its own variables, where training builds it for the model."""
    model = models.sequential()
    parts = keras.optimizers.OptimizerMap(keras.optimizers.Adam(), {".*hidden.*": models.kfac()})
    optimizer = keras.optimizers.MultiOptimizer(parts)
    model.compile(optimizer, models.crossentropy(), run_eagerly=True)
    model.fit(*models.vectors(), verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    for each in (model, again):
        each.fit(*models.vectors(), epochs=2, shuffle=False, verbose=0)
    for ours, expected in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_models_are_fitted_in_threads() -> None:
    def made(seed: int) -> keras.Model:
        keras.utils.set_random_seed(seed)
        model = models.sequential()
        model.compile(models.kfac(seed=seed), models.crossentropy())
        return model

    def fit(model: keras.Model) -> None:
        model.fit(*models.vectors(), epochs=3, shuffle=False, verbose=0)

    together, alone = [made(0), made(1)], [made(0), made(1)]
    threads = [threading.Thread(target=fit, args=(model,)) for model in together]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for ours, expected in zip(together, alone, strict=True):
        fit(expected)
        for a, b in zip(ours.get_weights(), expected.get_weights(), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_file_runs_no_code(tmp_path: pathlib.Path) -> None:
    """Keras' safe mode is on, and what a file has of KFAC are numbers and names."""
    model = fitted(models.sequential())
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    for ours, expected in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, expected)
    assert loaded.optimizer.counts() == model.optimizer.counts()


def test_code_in_a_configuration_is_refused() -> None:
    """A function in the place of a hyper-parameter, as a hostile file would have it."""
    lambda_ = keras.layers.Lambda(lambda x: x)
    config = models.kfac().get_config() | {
        "damping": keras.saving.serialize_keras_object(lambda_.function)
    }
    with pytest.raises(ValueError, match="safe_mode"):
        tfkfac.KFAC.from_config(config)
