"""MultiWorkerMirroredStrategy: processes that share a batch make the steps of one process."""

from __future__ import annotations

import pathlib
import socket
import subprocess
import sys
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import CASES, weights_of
from distribution.alone import assert_as_alone

LOOP = ("automatic", "uneven", "one-example", "masks")
"""Cases in a loop of one's own."""

FOUR = ("uneven", "one-example")
"""Cases for four processes."""

FIT = ("exact-numbers", "exact")
"""Without draws: `fit` gives every second example to a worker, and draws go by their order."""


def start(
    folder: pathlib.Path,
    how: str,
    names: tuple[str, ...],
    workers: int = 2,
    placement: str = "comm_opt",
) -> list[subprocess.Popen[str]]:
    """Processes on this machine."""
    sockets = [socket.socket() for _ in range(workers)]
    for each in sockets:
        each.bind(("localhost", 0))
    ports = ",".join(str(each.getsockname()[1]) for each in sockets)
    for each in sockets:
        each.close()
    script = str(pathlib.Path(__file__).parent / "worker.py")
    return [
        subprocess.Popen(
            [sys.executable, script, str(index), ports, str(folder), how, placement, *names],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(workers)
    ]


def run_workers(*arguments: Any, **options: Any) -> None:
    """Processes that do what they should."""
    processes = start(*arguments, **options)
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        assert not process.returncode, output[-4000:]


@pytest.fixture(scope="module")
def loops(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("loops")
    run_workers(folder, "loop", LOOP)
    return folder


@pytest.fixture(scope="module")
def fits(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("fits")
    run_workers(folder, "fit", FIT)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", LOOP)
def test_a_loop_of_ones_own(name: str, loops: pathlib.Path) -> None:
    for index in range(2):
        assert_as_alone(name, np.load(loops / f"{name}.{index}.npy"))


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["comm_opt", "hybrid", "mem_opt"])
def test_four_processes(placement: str, tmp_path: pathlib.Path) -> None:
    run_workers(tmp_path, "loop", FOUR, workers=4, placement=placement)
    for name in FOUR:
        for index in range(4):
            assert_as_alone(name, np.load(tmp_path / f"{name}.{index}.npy"))


@pytest.mark.parametrize("name", FIT)
def test_fit(name: str, fits: pathlib.Path) -> None:
    for index in range(2):
        assert_as_alone(name, np.load(fits / f"{name}.{index}.npy"))


def test_drifting_processes_are_noticed(tmp_path: pathlib.Path) -> None:
    run_workers(tmp_path, "drift", ("numbers",))


@pytest.mark.usefixtures("float64")
def test_a_model_saved_between_micro_batches_goes_on_alone(tmp_path: pathlib.Path) -> None:
    run_workers(tmp_path, "save", ("accumulation-exact",))
    case = CASES["accumulation-exact"]
    model = keras.models.load_model(tmp_path / "model.keras")
    model.fit(
        tf.data.Dataset.from_tensor_slices(tuple(case.arrays())).batch(case.batch),
        epochs=2,
        verbose=0,
    )
    expected = np.load(tmp_path / "accumulation-exact.0.npy")
    np.testing.assert_allclose(weights_of(model), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "how, told", [("dies", "task:1"), ("sleeps", "has waited for worker(s) 1 for")]
)
def test_a_failing_process_is_named(how: str, told: str, tmp_path: pathlib.Path) -> None:
    first, second = start(tmp_path, how, ("numbers",))
    try:
        output = first.communicate(timeout=240)[0]
    finally:
        second.kill()
        second.communicate()
    assert first.returncode
    assert told in output, output[-4000:]
