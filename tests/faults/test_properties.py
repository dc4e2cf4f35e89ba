"""Whatever the network and the hyper-parameters: no crash, finite weights, and always downhill."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from faults.random_trainings import Training, trainings
from hypothesis import HealthCheck, given, settings

STEPS = 5

_SETTINGS = {"deadline": None, "suppress_health_check": list(HealthCheck)}


def _slopes(model: keras.Model, x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    """g, in double precision."""
    with tf.GradientTape() as tape:
        loss = model.compute_loss(x, y, model(x, training=True))
    found = tape.gradient(loss, model.trainable_variables)
    return [np.asarray(tf.convert_to_tensor(g), "float64") for g in found]


def _weights(model: keras.Model) -> list[np.ndarray]:
    return [v.numpy().astype("float64") for v in model.trainable_variables]


def _must_go_downhill(training: Training) -> bool:
    """Whether nothing but F̂⁻¹g on this batch decides where a step goes."""
    given = training.arguments
    others = ("weight_decay", "gradient_accumulation_steps", "clipnorm")
    return given["momentum"] == 0.0 and not training.is_noisy and not set(others) & set(given)


def check(training: Training) -> None:
    model = training.compiled()
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    before = {"updates": 0.0, "taken_back": 0.0, "skipped": 0.0}
    for number in range(STEPS):
        x, y = training.batch(number)
        slopes, start = _slopes(model, x, y), _weights(model)
        model.train_on_batch(x, y)
        after = optimizer.counts()
        done = {key: after[key] - value for key, value in before.items()}
        before = {key: after[key] for key in before}
        changes = [b - a for a, b in zip(start, _weights(model), strict=True)]
        assert all(np.isfinite(v.numpy().astype("float64")).all() for v in optimizer.variables)
        assert all(np.isfinite(change).all() for change in changes)
        if training.policy != "mixed_float16":  # whose scale is sought by skipping
            assert done["skipped"] == 0, "gᵀF̂⁻¹g < 0, or not finite"
        length = np.sqrt(sum((g**2).sum() for g in slopes))
        burns_in = after["updates"] <= training.arguments.get("burn_in", 0)
        stays = burns_in or not done["updates"] or done["taken_back"] or done["skipped"]
        if _must_go_downhill(training) and not stays and length > 1e-6:
            assert sum((g * d).sum() for g, d in zip(slopes, changes, strict=True)) < 0


@settings(max_examples=50, derandomize=True, **_SETTINGS)
@given(trainings())
def test_properties(training: Training) -> None:
    check(training)


@pytest.mark.slow
@settings(max_examples=430, print_blob=True, **_SETTINGS)
@given(trainings())
def test_many_properties(training: Training) -> None:
    check(training)


@pytest.mark.slow
@settings(max_examples=70, print_blob=True, **_SETTINGS)
@given(trainings(("graph", "jit")))
def test_properties_in_graphs(training: Training) -> None:
    check(training)
