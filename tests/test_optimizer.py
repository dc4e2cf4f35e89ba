"""Arguments of KFAC: what is refused, and hyper-parameters that change while it trains."""

from __future__ import annotations

from typing import Any

import keras
import models
import numpy as np
import pytest
import tensorflow as tf
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


# --- bad input -----------------------------------------------------------------------------

NAN = float("nan")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("damping", value) for value in (0, -1.0, NAN, float("inf"), "big", None)),
        *(("momentum", value) for value in (-0.1, 1.0, 1.5, NAN)),
        *(("learning_rate", value) for value in (-0.1, NAN)),
        *(("factor_decay", value) for value in (-0.1, 1.0, NAN)),
        *(("kl_clip", value) for value in (0.0, -1.0, NAN)),
        *(("factor_update_every", value) for value in (0, -1, 1.5, NAN)),
        *(("inverse_update_every", value) for value in (0, 2.5)),
    ],
)
def test_number_out_of_range_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError) as error:
        tfkfac.KFAC(**{name: value})
    assert f"`{name}`" in str(error.value)
    assert f"{name}={value!r}" in str(error.value)
    assert "must be" in str(error.value)


@pytest.mark.parametrize("name", ["factor_update_every", "inverse_update_every"])
def test_count_of_steps_cannot_be_scheduled(name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be an integer"):
        tfkfac.KFAC(**{name: _schedule(1, 2)})


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("fisher", "full", "'mc', 'exact', 'empirical'"),
        ("method", "lu", "'cholesky', 'eigen', 'ekfac'"),
    ],
)
def test_unknown_choice_is_refused(name: str, value: str, allowed: str) -> None:
    with pytest.raises(
        ValueError, match=f"`{name}` must be one of {allowed}; got {name}={value!r}"
    ):
        tfkfac.KFAC(**{name: value})


def test_unknown_argument_is_refused() -> None:
    with pytest.raises(ValueError, match="nesterov"):
        tfkfac.KFAC(nesterov=True)


@pytest.mark.parametrize("pattern", ["dense_7", "^idden", "HIDDEN"])
def test_skip_pattern_that_matches_nothing_is_refused(pattern: str) -> None:
    model = attached(models.kfac(skip=("logits", pattern)))
    with pytest.raises(ValueError, match=r"`skip`.*matches no layer.*hidden, .*logits") as error:
        train(model)
    assert repr(pattern) in str(error.value)


def test_skip_is_a_sequence_of_patterns() -> None:
    """A lone string would be taken for its letters, which match nearly everything."""
    with pytest.raises(ValueError, match=r"`skip`.*'hidden'"):
        tfkfac.KFAC(skip="hidden")


def test_optimizer_without_a_model_is_refused() -> None:
    model = models.sequential()
    gradients = [tf.zeros(variable.shape) for variable in model.trainable_variables]
    optimizer = tfkfac.KFAC()
    with pytest.raises(ValueError, match=r"no model.*import tfkfac.*optimizer.attach\(model\)"):
        optimizer.apply(gradients, model.trainable_variables)
    with pytest.raises(ValueError, match="no model"):
        _ = optimizer.layer_collection
    with pytest.raises(ValueError, match="no model"), optimizer.record():
        pass


@pytest.mark.parametrize("trained", [False, True])
def test_model_swapped_under_the_optimizer_is_refused(trained: bool) -> None:
    optimizer = models.kfac()
    model = attached(optimizer)
    if trained:
        train(model, 1)
    other = models.sequential()
    for introduce in (optimizer.attach, lambda model: model.compile(optimizer, "mse")):
        with pytest.raises(ValueError, match=r"already trains a model.*Make a new") as error:
            introduce(other)
        assert repr(model.name) in str(error.value) and repr(other.name) in str(error.value)


def test_optimizer_that_has_trained_stays_with_its_model() -> None:
    optimizer = models.kfac()
    train(attached(optimizer), 1)
    optimizer.detach()
    with pytest.raises(ValueError, match="already trains a model"):
        optimizer.attach(models.sequential())


def test_variables_of_another_model_are_refused() -> None:
    model, other = models.sequential(), models.sequential()
    optimizer = models.kfac(model=model)
    for variables, foreign in (
        (other.trainable_variables, 4),
        (model.trainable_variables[:2], 0),
        ([*model.trainable_variables, *other.trainable_variables], 4),
    ):
        with pytest.raises(ValueError, match=f"{foreign} are not the model's.*Attach") as error:
            optimizer.build(variables)
        assert repr(model.name) in str(error.value)
    optimizer.build(model.trainable_variables)
    gradients = [tf.zeros(variable.shape) for variable in other.trainable_variables]
    with pytest.raises(ValueError, match=r"4 variables .*optimizer.rebuild"):
        optimizer.apply(gradients, other.trainable_variables)


# --- hyper-parameters ----------------------------------------------------------------------


def _kfac(**arguments: Any) -> tfkfac.KFAC:
    return models.kfac(**{"kl_clip": 1.0, "inverse_update_every": 1, **arguments})


@pytest.mark.parametrize("name", HYPERPARAMETERS)
def test_assigned_hyperparameter_is_as_good_as_a_given_one(name: str) -> None:
    value = HYPERPARAMETERS[name]
    given, assigned, neither = _kfac(**{name: value}), _kfac(), _kfac()
    setattr(assigned, name, value)
    assert float(getattr(assigned, name)) == pytest.approx(value)
    assert assigned.get_config() == given.get_config() != neither.get_config()
    trained = [attached(optimizer, models.linear) for optimizer in (given, assigned, neither)]
    for model in trained:
        train(model, 3)
    weights = [model.get_weights() for model in trained]
    _assert_equal(weights[1], weights[0])
    assert not np.array_equal(weights[2], weights[0])


@pytest.mark.parametrize("name", SCHEDULED)
def test_schedule_is_as_good_as_assigning(name: str) -> None:
    first, later = HYPERPARAMETERS[name], HYPERPARAMETERS[name] / 2
    scheduled = _kfac(**{name: _schedule(first, later)})
    assigned = _kfac(**{name: first})
    trained = [attached(optimizer, models.linear) for optimizer in (scheduled, assigned)]
    for model in trained:
        train(model, 1)
    setattr(assigned, name, later)
    assert float(getattr(scheduled, name)) == pytest.approx(later)
    for model in trained:
        train(model, 2)
    _assert_equal(*(model.get_weights() for model in trained))


@pytest.mark.parametrize("name", SCHEDULED)
def test_scheduled_hyperparameter_cannot_be_assigned(name: str) -> None:
    optimizer = _kfac(**{name: _schedule(0.5, 0.25)})
    with pytest.raises(TypeError, match=r"(?i)schedule"):
        setattr(optimizer, name, 0.1)
    assert float(getattr(optimizer, name)) == 0.5


@pytest.mark.parametrize(("name", "value"), [("damping", 0.0), ("momentum", NAN), ("kl_clip", -1)])
def test_assigned_number_out_of_range_is_refused(name: str, value: float) -> None:
    optimizer = _kfac()
    before = float(getattr(optimizer, name))
    with pytest.raises(ValueError, match=f"`{name}` must be .*{name}={value!r}"):
        setattr(optimizer, name, value)
    assert float(getattr(optimizer, name)) == before


def test_clip_that_was_switched_off_cannot_be_assigned() -> None:
    optimizer = models.kfac(kl_clip=None)
    assert optimizer.kl_clip is None
    with pytest.raises(ValueError, match="kl_clip=None"):
        optimizer.kl_clip = 0.1
