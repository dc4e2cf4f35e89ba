"""Horovod: ranks that share a batch make the steps of one process that has it all."""

from __future__ import annotations

import importlib.util
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from cases import CASES, weights_of
from distribution.alone import assert_as_alone

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("horovod") is None,
    reason="Horovod is not installed (tools/install_horovod.sh)",
)

FAST = ("automatic", "one-example", "masks", "ekfac")
"""Cases that are run always; the others are slow tests."""

FOUR = ("uneven", "one-example", "two-losses", "ekfac", "convolutions-one-example")
"""Cases for four ranks."""


def run_ranks(script: str, ranks: int, *arguments: str, timeout: float = 900) -> str:
    """Runs a script of this folder under horovodrun; returns all that was printed."""
    here = pathlib.Path(__file__).parent
    command = [sys.executable, "-m", "horovod.runner.launch", "--gloo", "-np", str(ranks)]
    command += ["-H", f"localhost:{ranks}", sys.executable, str(here / script), *arguments]
    run = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    output = run.stdout + run.stderr
    if run.returncode:
        raise RuntimeError(output)
    return output


def test_two_ranks_make_the_steps_of_one_process(tmp_path: pathlib.Path) -> None:
    run_ranks("rank.py", 2, str(tmp_path), "mem_opt", *FAST)
    for name in FAST:
        assert_as_alone(name, np.load(tmp_path / f"{name}.npy"))


@pytest.mark.slow
@pytest.mark.parametrize("quarter", range(4))
def test_two_ranks_in_all_cases(quarter: int, tmp_path: pathlib.Path) -> None:
    names = list(CASES)[quarter::4]
    run_ranks("rank.py", 2, str(tmp_path), "mem_opt", *names)
    for name in names:
        assert_as_alone(name, np.load(tmp_path / f"{name}.npy"))


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["comm_opt", "hybrid", "mem_opt"])
def test_four_ranks_make_the_steps_of_one_process(placement: str, tmp_path: pathlib.Path) -> None:
    run_ranks("rank.py", 4, str(tmp_path), placement, *FOUR)
    for name in FOUR:
        assert_as_alone(name, np.load(tmp_path / f"{name}.npy"))


def test_what_is_refused_and_what_is_kept(tmp_path: pathlib.Path) -> None:
    """Several claims in one run of two ranks, each of which prints a line when it holds."""
    output = run_ranks("rank_claims.py", 2, str(tmp_path))
    for claim in (
        "unequal steps",
        "unequal models",
        "unequal settings",
        "built late",
        "wrapped",
        "nan",
        "scaled",
        "memory",
        "saved",
        "logs",
        "halves",
    ):
        assert output.count(f"{claim}: holds") == 2, (claim, output[-4000:])
    model = keras.models.load_model(tmp_path / "model.keras")  # goes on in one process
    of_both_ranks = np.arange(24).reshape(2, 3, 4).swapaxes(0, 1).ravel()
    x, y = (array[of_both_ranks] for array in CASES["automatic"].arrays())
    model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    np.testing.assert_allclose(
        weights_of(model), np.load(tmp_path / "continued.npy"), rtol=0, atol=1e-5
    )


def test_a_dead_rank_ends_the_run() -> None:
    with pytest.raises(RuntimeError, match=r"Process name: 1"):
        run_ranks("rank_fails.py", 2, "dies", timeout=240)


def test_a_rank_without_data_is_named() -> None:
    """Where the number of steps is not known beforehand."""
    with pytest.raises(RuntimeError, match=r"worker\(s\) 1 ran out of data after 3 batches"):
        run_ranks("rank_fails.py", 2, "ends", timeout=240)


def test_a_late_rank_is_named() -> None:
    with pytest.raises(RuntimeError, match=r"has waited for worker\(s\) 1 for"):
        run_ranks("rank_fails.py", 2, "sleeps", timeout=240)
