"""KFAC in configurations and files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import models
import numpy as np
import pytest
from steps import attached, train

import tfkfac

HYPERPARAMETERS = {
    "learning_rate": 0.02,
    "momentum": 0.7,
    "damping": 0.3,
    "factor_decay": 0.8,
    "kl_clip": 1e-4,
    "factor_update_every": 2,
    "inverse_update_every": 5,
}
SCHEDULED = [name for name in HYPERPARAMETERS if not name.endswith("_every")]


def _schedule(first: float, later: float) -> Any:
    """One value for the first step, another from then on."""
    return keras.optimizers.schedules.PiecewiseConstantDecay([0], [first, later])


def _assert_equal(ours: Any, expected: Any) -> None:
    assert len(ours) == len(expected)
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_array_equal(a, b)


EVERY_ARGUMENT = {
    **HYPERPARAMETERS,
    "fisher": "exact",
    "method": "eigen",
    "skip": ["hidden"],
    "max_exact_outputs": 5,
    "burn_in": 2,
    "gradient_accumulation_steps": 3,
    "seed": 7,
    "name": "mine",
    "weight_decay": 0.1,
    "clipnorm": 2.0,
    "use_ema": True,
    "ema_momentum": 0.5,
    "ema_overwrite_frequency": 3,
    "loss_scale_factor": 2.0,
}
SCHEDULES = {name: _schedule(0.5, 0.25) for name in SCHEDULED}


def _by_config(optimizer: tfkfac.KFAC) -> tfkfac.KFAC:
    return tfkfac.KFAC.from_config(json.loads(json.dumps(optimizer.get_config())))


def _by_saving(optimizer: tfkfac.KFAC) -> tfkfac.KFAC:
    serialized = json.dumps(keras.saving.serialize_keras_object(optimizer))
    return keras.saving.deserialize_keras_object(json.loads(serialized))


def _by_optimizers(optimizer: tfkfac.KFAC) -> tfkfac.KFAC:
    return keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))


@pytest.mark.parametrize("copied", [_by_config, _by_saving, _by_optimizers])
@pytest.mark.parametrize(
    "arguments",
    [{}, EVERY_ARGUMENT, SCHEDULES, {"kl_clip": None}],
    ids=["defaults", "numbers", "schedules", "no clip"],
)
def test_configuration_tells_all(
    arguments: dict[str, Any], copied: Callable[[tfkfac.KFAC], tfkfac.KFAC]
) -> None:
    optimizer = tfkfac.KFAC(**arguments)
    again = copied(optimizer)
    assert type(again) is tfkfac.KFAC
    assert again.get_config() == optimizer.get_config()
    for name, value in arguments.items():
        if name in SCHEDULES and arguments is SCHEDULES:
            assert float(getattr(again, name)) == 0.5
            again.iterations.assign(1)
            assert float(getattr(again, name)) == 0.25
            again.iterations.assign(0)
        elif name in HYPERPARAMETERS and value is not None:
            assert float(getattr(again, name)) == pytest.approx(value)
        else:
            assert again.get_config()[name] == value


def test_configuration_has_no_model() -> None:
    optimizer = tfkfac.KFAC(model=models.sequential())
    assert "model" not in optimizer.get_config()
    again = tfkfac.KFAC.from_config(optimizer.get_config())
    with pytest.raises(ValueError, match="no model"):
        _ = again.layer_collection


def test_seed_is_drawn_once() -> None:
    """It is kept, so that a loaded optimizer goes on with the same samples."""
    keras.utils.set_random_seed(0)
    first, second = tfkfac.KFAC(), tfkfac.KFAC()
    assert first.seed != second.seed
    assert first.get_config()["seed"] == first.seed
    keras.utils.set_random_seed(0)
    assert tfkfac.KFAC().seed == first.seed


@pytest.mark.parametrize("method", ["cholesky", "eigen", "ekfac"])
@pytest.mark.parametrize("factory", [models.functional, models.WithoutTraining])
def test_loaded_model_goes_on_where_it_stopped(
    factory: Callable[[], keras.Model], method: str, tmp_path: Path
) -> None:
    optimizer = models.kfac(method=method, kl_clip=0.01, inverse_update_every=50, use_ema=True)
    model = attached(optimizer, factory)
    train(model, 2)
    optimizer._updates.assign(1001)  # rounds have their full length, and no inverse is due
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    _assert_equal(loaded.optimizer.variables, optimizer.variables)
    for each in (model, loaded):
        train(each, 2)
    _assert_equal(loaded.get_weights(), model.get_weights())
    _assert_equal(loaded.optimizer.variables, optimizer.variables)
