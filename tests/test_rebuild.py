"""Layers that are frozen or unfrozen between two fits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import models
import numpy as np
import pytest

import tfkfac


def _frozen_then_trained() -> tuple[keras.Model, tfkfac.KFAC]:
    model = models.sequential()
    model.get_layer("hidden").trainable = False
    optimizer = models.kfac()
    model.compile(optimizer, models.crossentropy())
    _fit(model)
    model.get_layer("hidden").trainable = True
    return model, optimizer


def _fit(model: keras.Model, **arguments: Any) -> None:
    model.fit(*models.vectors(), batch_size=8, shuffle=False, verbose=0, **arguments)


def test_unfrozen_layer_without_rebuild_is_told_of_it() -> None:
    model, optimizer = _frozen_then_trained()
    model.compile(optimizer, models.crossentropy())
    with pytest.raises(
        ValueError, match=r"2 variables .*hidden/kernel.*optimizer.rebuild\(model\)"
    ):
        _fit(model)


def test_rebuilt_optimizer_keeps_what_stays_and_trains_what_is_new() -> None:
    model, optimizer = _frozen_then_trained()
    before = optimizer.layer_collection["logits"]
    kept = [variable.numpy() for variable in before.state]
    momentum = optimizer._velocities[0].numpy()
    hidden = model.get_layer("hidden").kernel.numpy()
    count = int(optimizer.iterations)
    optimizer.rebuild(model)
    after = optimizer.layer_collection["logits"]
    assert after is not before
    for found, expected in zip(after.state, kept, strict=True):
        np.testing.assert_array_equal(found, expected)
    index = optimizer._get_variable_index(model.get_layer("logits").kernel)
    np.testing.assert_array_equal(optimizer._velocities[index], momentum)
    np.testing.assert_array_equal(optimizer._velocities[0], np.zeros(hidden.shape))
    assert optimizer.iterations == count
    model.compile(optimizer, models.crossentropy())
    _fit(model)
    assert optimizer.iterations == 2 * count
    assert np.abs(model.get_layer("hidden").kernel - hidden).max() > 0
    assert len({id(variable) for variable in optimizer.variables}) == len(optimizer.variables)


def test_rebuilt_for_the_same_layers_goes_on_as_if_nothing_had_happened() -> None:
    trained = []
    for rebuilt in (False, True):
        keras.utils.set_random_seed(0)
        model = models.sequential()
        optimizer = models.kfac(use_ema=True)
        model.compile(optimizer, models.crossentropy())
        _fit(model)
        if rebuilt:
            optimizer.rebuild(model)
        model.compile(optimizer, models.crossentropy())
        _fit(model)
        trained.append(model.get_weights())
    for found, expected in zip(*trained, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_rebuilt_optimizer_is_saved_and_loaded(tmp_path: Path) -> None:
    model, optimizer = _frozen_then_trained()
    optimizer.rebuild(model)
    model.compile(optimizer, models.crossentropy())
    _fit(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert len(loaded.optimizer.variables) == len(optimizer.variables)
    for found, expected in zip(loaded.optimizer.variables, optimizer.variables, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_frozen_layer_is_forgotten() -> None:
    model = models.sequential()
    optimizer = models.kfac()
    model.compile(optimizer, models.crossentropy())
    _fit(model)
    model.get_layer("hidden").trainable = False
    optimizer.rebuild(model)
    assert [block.name for block in optimizer.layer_collection] == ["logits"]
    model.compile(optimizer, models.crossentropy())
    hidden = model.get_layer("hidden").kernel.numpy()
    _fit(model)
    np.testing.assert_array_equal(model.get_layer("hidden").kernel, hidden)
