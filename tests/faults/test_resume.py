"""A training that stops and goes on ends with the same bits as one that never stopped."""

from __future__ import annotations

import pathlib
import signal
import subprocess
import sys

import keras
import models
import numpy as np
import pytest
import tensorflow as tf
from steps import attached, train

import tfkfac


def run(folder: pathlib.Path, what: str) -> subprocess.CompletedProcess[str]:
    script = str(pathlib.Path(__file__).parent / "resume.py")
    command = [sys.executable, script, str(folder), what]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Where all four processes have left what they have."""
    folder = tmp_path_factory.mktemp("resume")
    for what, status in {"whole": 0, "saved": 0, "killed": -signal.SIGKILL, "restarted": 0}.items():
        done = run(folder, what)
        assert done.returncode == status, done.stderr[-4000:]
    return folder


@pytest.mark.parametrize("how", ["model", "callback", "weights", "checkpoint", "backup"])
def test_the_same_bits(how: str, folder: pathlib.Path) -> None:
    whole, found = np.load(folder / "whole.npz"), np.load(folder / f"{how}.npz")
    assert whole.files
    assert len(found.files) == len(whole.files)
    for expected, key in zip(whole.files, found.files, strict=True):
        np.testing.assert_array_equal(found[key], whole[expected], err_msg=expected)


@pytest.mark.slow
def test_under_op_determinism(tmp_path: pathlib.Path) -> None:
    done = run(tmp_path, "deterministic")
    assert done.returncode == 0, done.stderr[-4000:]
    assert (tmp_path / "deterministic").exists()


@pytest.mark.parametrize("method", ["cholesky", "eigen", "ekfac"])
def test_inverses_that_are_not_in_the_file_are_made_anew(
    method: str, tmp_path: pathlib.Path
) -> None:
    """With inverses that are new in every step anyway, nothing changes."""
    made = {}
    for save_inverses in (True, False):
        optimizer = models.kfac(method=method, inverse_update_every=1, save_inverses=save_inverses)
        model = attached(optimizer, models.functional)
        train(model, 2)
        path = tmp_path / f"{save_inverses}.weights.h5"
        model.save_weights(path)
        again = attached(
            models.kfac(method=method, inverse_update_every=1, save_inverses=save_inverses),
            models.functional,
        )
        again.load_weights(path)
        for one in (model, again):
            train(one, 2)
        made[save_inverses] = again.get_weights()
        np.testing.assert_allclose(
            np.concatenate([np.ravel(w) for w in again.get_weights()]),
            np.concatenate([np.ravel(w) for w in model.get_weights()]),
            atol=1e-5,
        )
    for a, b in zip(made[True], made[False], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_files_without_inverses_are_smaller(tmp_path: pathlib.Path) -> None:
    sizes = {}
    for save_inverses in (True, False):
        model = keras.Sequential([keras.Input((400,)), keras.layers.Dense(300)])
        model.compile(tfkfac.KFAC(save_inverses=save_inverses), "mse")
        model.fit(np.ones([4, 400]), np.ones([4, 300]), verbose=0)
        model.save(tmp_path / "model.keras")
        sizes[save_inverses] = (tmp_path / "model.keras").stat().st_size
    parts = {"weights": 120_300, "velocity": 120_300, "factors": 401**2 + 300**2}
    without = 4 * sum(parts.values())
    assert sizes[False] == pytest.approx(without, rel=0.02)
    assert sizes[True] == pytest.approx(without + 4 * parts["factors"], rel=0.02)


class _Store(dict):
    """What Keras gives an optimizer to write into."""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda store: store.pop("format"), "of another optimizer, or of an older tfkfac"),
        (lambda store: store.update(format=np.asarray(99)), "format 99, of a newer tfkfac"),
        (lambda store: store.update(format=np.asarray(0)), "format 0, of an older tfkfac"),
        (lambda store: store.pop("3"), "does not fit"),
        (lambda store: store.update({"999": np.zeros(2)}), "does not fit"),
        (lambda store: store.update({"10": np.zeros([7, 7])}), "variable 10 has shape"),
    ],
)
def test_files_that_do_not_fit(change: object, words: str) -> None:
    model = attached(models.kfac(), models.functional)
    train(model, 1)
    store = _Store()
    model.optimizer.save_own_variables(store)
    change(store)
    with pytest.raises(ValueError, match=words):
        model.optimizer.load_own_variables(store)


@keras.saving.register_keras_serializable(package="tests")
class Subclassed(keras.Model):
    """Without a `build`: Keras finds the shapes of its weights by calling it."""

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.hidden = keras.layers.Dense(8, activation="relu")
        self.dropouts = [keras.layers.Dropout(0.3, seed=i) for i in range(2)]
        self.logits = keras.layers.Dense(models.CLASSES)

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        hidden = self.hidden(inputs)
        for dropout in self.dropouts:
            hidden = dropout(hidden, training=training)
        return self.logits(hidden)

    @classmethod
    def fitted(cls) -> keras.Model:
        model = cls()
        model.compile(models.kfac(), models.crossentropy(), run_eagerly=True)
        model.fit(*models.vectors(), verbose=0)
        return model


def test_a_subclassed_model_is_read_and_goes_on(tmp_path: pathlib.Path) -> None:
    model = Subclassed.fitted()
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    for each in (model, again):
        each.fit(*models.vectors(), epochs=2, shuffle=False, verbose=0)
    for ours, expected in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_a_model_that_was_saved_before_training_begins_alike(
    policy: str, tmp_path: pathlib.Path
) -> None:
    """Its dropout too."""
    keras.config.set_dtype_policy(policy)
    try:
        model = models.sequential()
        model.add(keras.layers.Dropout(0.5))
        model.compile(models.kfac(), models.crossentropy(), run_eagerly=True)
        model.save(tmp_path / "model.keras")
        again = keras.models.load_model(tmp_path / "model.keras")
        for each in (model, again):
            each.fit(*models.vectors(), shuffle=False, verbose=0)
    finally:
        keras.config.set_dtype_policy("float32")
    for ours, expected in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_a_subclassed_model_that_was_saved_before_it_had_weights(tmp_path: pathlib.Path) -> None:
    model = Subclassed()
    model.compile(models.kfac(), models.crossentropy(), run_eagerly=True)
    store: dict[str, np.ndarray] = {}
    model.optimizer.save_own_variables(store)
    assert set(store) == {"format"}
    model.fit(*models.vectors(), verbose=0)
    model.optimizer.load_own_variables(store)
    assert model.optimizer.counts()["updates"] == 1


def test_weights_without_an_optimizer_are_read_before_compile(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "model.weights.h5"
    models.sequential().save_weights(path)
    model = models.sequential()
    model.compile(models.kfac(), models.crossentropy())
    with pytest.raises(ValueError, match=r"no state of an optimizer.*before the model is compiled"):
        model.load_weights(path)
    model = models.sequential()
    model.load_weights(path)
    fitted = attached(models.kfac(), lambda: model)
    train(fitted, 1)


def test_weights_of_layers_that_are_not_built_say_what_to_do(tmp_path: pathlib.Path) -> None:
    Subclassed.fitted().save_weights(tmp_path / "model.weights.h5")
    model = Subclassed()
    model.compile(models.kfac(), models.crossentropy())
    model.build((None, models.FEATURES))  # of which Keras only remembers that it was called
    with pytest.raises(ValueError, match=r"(?s)call the model on a batch of data.*no weights yet"):
        model.load_weights(tmp_path / "model.weights.h5")


def test_backups_within_an_epoch_are_refused(tmp_path: pathlib.Path) -> None:
    model = models.sequential()
    model.compile(models.kfac(), models.crossentropy())
    callback = keras.callbacks.BackupAndRestore(tmp_path, save_freq=2)
    with pytest.raises(ValueError, match=r"save_freq.*from the beginning of the epoch"):
        model.fit(*models.vectors(), verbose=0, callbacks=[callback])
