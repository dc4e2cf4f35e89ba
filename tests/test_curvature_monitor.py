"""What the callback tells of KFAC."""

from __future__ import annotations

import csv
import pathlib
from typing import Any

import keras
import models
import numpy as np
import pytest

import tfkfac
from tfkfac.callbacks import CurvatureMonitor


def _fit(*callbacks: Any, epochs: int = 2, optimizer: Any = None, **arguments: Any) -> Any:
    x, y = models.vectors(32)
    model = models.sequential()
    model.compile(optimizer or tfkfac.KFAC(seed=0), models.crossentropy(), **arguments)
    history = model.fit(x, y, batch_size=16, epochs=epochs, verbose=0, callbacks=list(callbacks))
    return model, history.history


def test_history_csv_and_the_callback_tell_the_same(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "log.csv"
    monitor = CurvatureMonitor()
    model, history = _fit(monitor, keras.callbacks.CSVLogger(path))
    optimizer = model.optimizer
    rows = list(csv.DictReader(path.open()))
    told = {**monitor.history, "trace_A": history["trace_A"]}
    for key in ("damping", "learning_rate", "momentum", "reduction_ratio", "trace_A"):
        assert len(history[key]) == 2
        assert told[key] == history[key]
        np.testing.assert_allclose([float(row[key]) for row in rows], history[key], rtol=1e-6)
    of_layers = [monitor.history[f"{layer}/condition_G"] for layer in ("hidden", "logits")]
    assert history["condition_G"] == list(map(max, zip(*of_layers, strict=True)))
    assert not any("/" in key for key in history)
    np.testing.assert_allclose(history["damping"][-1], optimizer.damping)
    np.testing.assert_allclose(history["learning_rate"][-1], optimizer.learning_rate)
    assert all(second > 0 for second in history["curvature_seconds"])
    assert all(0 <= share <= 1 for share in history["clipped_share"])


def test_traces_and_condition_numbers_are_those_of_the_factors() -> None:
    model, history = _fit(CurvatureMonitor(layers=["logits"]), optimizer=models.kfac(damping=0.3))
    block = model.optimizer.layer_collection["logits"]
    A, G = (block.factors[key].numpy() for key in "AG")
    np.testing.assert_allclose(history["logits/trace_A"][-1], np.trace(A), rtol=1e-5)
    np.testing.assert_allclose(history["logits/trace_G"][-1], np.trace(G), rtol=1e-5)
    balance = np.sqrt(np.trace(A) / len(A) / (np.trace(G) / len(G)))
    damped = A + balance * np.sqrt(0.3) * np.eye(len(A))
    np.testing.assert_allclose(history["logits/condition_A"][-1], np.linalg.cond(damped), rtol=1e-4)
    damped = G + np.sqrt(0.3) / balance * np.eye(len(G))
    np.testing.assert_allclose(history["logits/condition_G"][-1], np.linalg.cond(damped), rtol=1e-4)
    assert not any(key.startswith("hidden") for key in history)


def test_condition_numbers_have_the_damping_of_their_block() -> None:
    model, history = _fit(CurvatureMonitor(layers=["logits"]))
    optimizer = model.optimizer
    block = optimizer.layer_collection["logits"]
    A, G = (block.factors[key].numpy() for key in "AG")
    damping = float(optimizer.damping) * float(block.mean_eigenvalue()) / float(optimizer._unit)
    balance = np.sqrt(np.trace(A) / len(A) / (np.trace(G) / len(G)))
    damped = A + balance * np.sqrt(damping / float(block.uses)) * np.eye(len(A))
    np.testing.assert_allclose(history["logits/condition_A"][-1], np.linalg.cond(damped), rtol=1e-3)


def test_counts_are_those_of_the_epoch() -> None:
    optimizer = models.kfac(learning_rate=5.0, kl_clip=1e-9)
    _, history = _fit(CurvatureMonitor(conditions=False), optimizer=optimizer)
    assert history["clipped_share"] == [1.0, 1.0]
    assert history["taken_back"] == [0.0, 0.0]
    assert not any("condition" in key for key in history)


def test_a_model_that_was_trained_before_is_timed_too() -> None:
    model, _ = _fit(epochs=1)
    x, y = models.vectors(32)
    history = model.fit(x, y, epochs=1, verbose=0, callbacks=[CurvatureMonitor()]).history
    assert history["curvature_seconds"][0] > 0


def test_compiled_steps_have_no_clock() -> None:
    _, history = _fit(CurvatureMonitor(), jit_compile=True)
    assert history["curvature_seconds"] == [0.0, 0.0]
    assert history["damping"][-1] > 0


def test_plot(tmp_path: pathlib.Path) -> None:
    monitor = CurvatureMonitor()
    with pytest.raises(ValueError, match="no epoch of training has ended"):
        monitor.plot()
    _fit(monitor)
    figure = monitor.plot(tmp_path / "curvature.png")
    assert (tmp_path / "curvature.png").stat().st_size > 10_000
    titles = [axis.get_title() for axis in figure.axes if axis.get_visible()]
    assert {"damping", "trace_A", "condition_G", "momentum"} <= set(titles)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"looks at tfkfac\.KFAC"):
        _fit(CurvatureMonitor(), optimizer=keras.optimizers.SGD())
    with pytest.raises(ValueError, match=r"sequence of names, got the string 'hidden'"):
        CurvatureMonitor(layers="hidden")
    with pytest.raises(KeyError, match="No block has a layer named 'unknown'"):
        _fit(CurvatureMonitor(layers=["unknown"]))
