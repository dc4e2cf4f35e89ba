"""A training that meets a fault keeps its numbers finite, says what happened, and goes on.

``pytest tests/faults --reliability docs/reliability.md`` writes the table of what happened.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf
from faults import fault_cases
from faults.fault_cases import FAULTS, KEPT, MODES, SIZE, SKIPPED, TRAINS, Batch, Fault
from strategies import mirrored

import tfkfac

BEFORE, FAULTY, AFTER = 4, 2, 4
"""Steps."""


IN_GRAPH = ("NaN in the inputs", "NaN with BatchNormalization", "a loss of 1e30")
"""Faults that are met in a graph whenever tests run; the others eagerly, which is quicker."""


def _scope(mode: str) -> contextlib.AbstractContextManager:
    return mirrored(2).scope() if mode == "2 replicas" else contextlib.nullcontext()


def _kfac_of(model: keras.Model) -> tfkfac.KFAC:
    return getattr(model.optimizer, "inner_optimizer", model.optimizer)


def _trainer(fault: Fault, mode: str) -> tuple[keras.Model, Callable[[Batch], None]]:
    keras.config.set_dtype_policy(fault.policy)
    try:
        with _scope(mode):
            model = fault.model()
            model.compile(
                tfkfac.KFAC(seed=1, **fault.arguments), fault.compiled_loss(), **MODES[mode]
            )
    finally:
        keras.config.set_dtype_policy("float32")
    return model, lambda batch: model.train_on_batch(*batch)


def _not_finite(model: keras.Model) -> list[str]:
    variables = [*model.variables, *model.optimizer.variables]
    return [v.path for v in variables if not np.isfinite(v.numpy().astype("float64")).all()]


def _happened(before: dict[str, float], after: dict[str, float]) -> str:
    """In the faulty steps."""
    if after["skipped"] > before["skipped"]:
        return SKIPPED
    return KEPT if after["failures"] > before["failures"] else TRAINS


@pytest.mark.parametrize(
    ("fault", "mode"),
    [
        pytest.param(
            fault,
            mode,
            id=f"{fault.name}-{mode}",
            marks=[]
            if mode == ("graph" if fault.name in IN_GRAPH else "eager")
            else pytest.mark.slow,
        )
        for fault in FAULTS
        for mode in MODES
    ],
)
def test_a_fault(fault: Fault, mode: str, record_property: Callable[[str, object], None]) -> None:
    model, step = _trainer(fault, mode)
    for number in range(BEFORE):
        step(fault.usual(seed=number))
    before = _kfac_of(model).counts()
    for _ in range(FAULTY):
        step(fault.faulty())
    after = _kfac_of(model).counts()
    happened = _happened(before, after)
    record_property("fault", (fault.name, mode, " or ".join(fault.must), happened))
    assert happened in fault.must
    assert not _not_finite(model)
    for number in range(AFTER):
        step(fault.usual(seed=number))
    assert not _not_finite(model)
    x, y = fault.usual()
    assert float(model.evaluate(x, y, verbose=0)) < 10.0


UNUSUAL = {
    "all automatic": {"momentum": "auto", "weight_decay": 1e-2, "use_ema": True},
    "eigenvalues": {"method": "ekfac", "factor_update_every": 1},
    "micro-batches": {"gradient_accumulation_steps": 2},
}


@pytest.mark.parametrize("arguments", UNUSUAL.values(), ids=UNUSUAL)
def test_a_batch_that_is_left_out_leaves_no_trace(arguments: dict[str, object]) -> None:
    """Training goes on with the same bits as if there had been none, first or later."""

    def trained(faulty: list[Batch]) -> keras.Model:
        keras.utils.set_random_seed(0)
        model = fault_cases.perceptron()
        optimizer = tfkfac.KFAC(seed=1, fisher="exact", **arguments)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer, loss, run_eagerly=True)
        usual = [fault_cases.classified(seed=seed) for seed in range(4)]
        for batch in [*faulty, *usual[:2], *faulty, *usual[2:]]:
            model.train_on_batch(*batch)
        return model

    nan = fault_cases.with_first(np.nan, fault_cases.classified)
    model, expected = trained([nan, nan]), trained([])
    assert model.optimizer.counts()["skipped"] > 0
    for ours, theirs in zip(model.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    counted = ("iteration", "skipped_steps", "failed_steps", "culprit")
    for ours, theirs in zip(model.optimizer.variables, expected.optimizer.variables, strict=True):
        if ours.name not in counted:
            np.testing.assert_array_equal(ours, theirs, err_msg=ours.path)


@pytest.mark.parametrize("accumulated", [None, 2], ids=["each a step", "micro-batches"])
def test_states_of_recurrent_layers_survive_a_batch(accumulated: int | None) -> None:
    """What a stateful layer has kept of a batch with a NaN is no start for the next one."""
    keras.utils.set_random_seed(0)
    layer = keras.layers.LSTM(4, stateful=True)
    model = keras.Sequential([keras.Input(batch_shape=(8, 5, 3)), layer, keras.layers.Dense(1)])
    model.compile(tfkfac.KFAC(seed=0, gradient_accumulation_steps=accumulated), "mse")
    x, y = np.random.default_rng(0).normal(size=(2, 8, 5, 3))
    for batch in (x, x, np.full_like(x, np.nan), x):
        model.train_on_batch(batch, y[:, 0, :1])
        states = [state.numpy() for state in layer.states]
        assert np.isfinite(states).all()
        assert np.any(states)
    assert model.optimizer.counts()["skipped"] == 1


def test_the_monitor_counts_what_went_wrong() -> None:
    """By epochs: two batches that are left out, one whose statistics are, and then nothing.

    Units that are dead have no gradient, whatever their inputs are.
    """
    model = keras.Sequential(
        [
            keras.Input((fault_cases.FEATURES,)),
            keras.layers.Dense(4, "relu", kernel_initializer=keras.initializers.Constant(-1.0)),
            keras.layers.Dense(fault_cases.CLASSES),
        ]
    )
    optimizer = tfkfac.KFAC(seed=1, factor_update_every=1)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, run_eagerly=True)
    x, y = fault_cases.classified()
    usual, nan, large = (scale * np.abs(x) for scale in (1.0, np.nan, 1e25))
    monitor = tfkfac.callbacks.CurvatureMonitor()
    for batches in ([usual, nan, nan], [usual, large, usual], [usual]):
        inputs, labels = np.concatenate(batches), np.tile(y, len(batches))
        model.fit(inputs, labels, batch_size=SIZE, shuffle=False, verbose=0, callbacks=[monitor])
    assert monitor.history["skipped"] == [2.0, 0.0, 0.0]
    assert monitor.history["failures"] == [0.0, 1.0, 0.0]
    assert model.history.history["failures"] == [0.0]


def test_a_scale_and_a_shift_that_one_example_has_seen() -> None:
    """``(vvᵀ + λI)⁻¹v = v / (|v|² + λ)``, with a λ far below what rounds 1 in single precision."""
    model = keras.Sequential(
        [keras.Input((64,)), keras.layers.LayerNormalization(name="norm"), keras.layers.Dense(2)]
    )
    model.compile(tfkfac.KFAC(damping=1e-9, learning_rate=0.1), "mse", run_eagerly=True)
    model.train_on_batch(np.ones([2, 64]), np.ones([2, 2]))
    block = model.optimizer.layer_collection["norm"]
    v = np.random.default_rng(0).normal(size=(64, 2)).astype("float32")
    block.update({"F": tf.constant(v[:, :, None] * v[:, None, :])}, decay=0.0, weight=1.0)
    found = np.stack(block.precondition(list(v.T)), axis=1)
    expected = v / np.square(v).sum(axis=1, keepdims=True)
    np.testing.assert_allclose((found * v).sum(axis=1), 1.0, rtol=0.2)
    assert np.linalg.norm(found - expected) < 0.2 * np.linalg.norm(expected)
