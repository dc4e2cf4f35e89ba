"""Every benchmark has the same face: it is listed, tells of itself, and goes on where it was."""

from __future__ import annotations

import argparse
import importlib
import json
import pathlib
import platform
import subprocess
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import pytest

import tfkfac
from benchmarks import __main__ as suite
from benchmarks import (
    batch_size,
    communication,
    coverage,
    growth,
    levers,
    machine,
    scaling_model,
    step_cost,
)
from benchmarks.command_line import parser_of, positive_number, start
from benchmarks.late import NEVER, make_late
from benchmarks.recurrent import __main__ as recurrent


@pytest.mark.parametrize("name", suite.benchmarks())
def test_every_benchmark_takes_the_same_arguments(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    package = (suite.FOLDER / name).is_dir()
    module = importlib.import_module(f"benchmarks.{name}" + (".__main__" if package else ""))
    with pytest.raises(SystemExit) as ended:
        module.main(["--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert f"usage: python -m benchmarks.{name} " in told
    for argument in ("--data", "--seeds N", "--quick", "--output"):
        assert argument in told


def test_all_are_listed_with_a_line_and_what_they_need(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        suite.main(["--help"])
    told = " ".join(capsys.readouterr().out.split())
    for name, (what, needs) in suite.benchmarks().items():
        assert f"{name} {what} Needs {needs}" in told
        assert "\n" not in what and needs != "?"
    assert "mnist.npz" in suite.benchmarks()["zoo"][1]
    assert "Horovod" in suite.benchmarks()["communication"][1]


@pytest.mark.parametrize("given", ["0", "-1", "two"])
def test_seeds_are_counted(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = parser_of("anything", "A line.\n\nMore.", quick="is quick", seeds=3)
    assert parser.parse_args([]).seeds == 3
    with pytest.raises(SystemExit):
        parser.parse_args(["--seeds", given])
    assert f"must be an integer of at least 1, got {given}" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["0", "-0.1", "inf", "nan", "soon"])
def test_seconds_are_more_than_none(given: str) -> None:
    assert positive_number("0.5") == 0.5
    with pytest.raises(argparse.ArgumentTypeError, match=f"a number above 0, got {given}"):
        positive_number(given)


@pytest.mark.parametrize(
    ("benchmark", "given"),
    [
        (growth, ["--rounds", "0"]),
        (levers, ["--rounds", "-1"]),
        (recurrent, ["--lengths", "3", "0"]),
    ],
)
def test_counts_are_at_least_one(
    benchmark: Any, given: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        benchmark.main(["--quick", *given])
    argument, *_, value = given
    told = f"argument {argument}: must be an integer of at least 1, got {value}"
    assert told in capsys.readouterr().err


def test_an_interruption_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        start(interrupted)
    assert ended.value.code == 130
    assert "Interrupted. What was finished is kept" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        start(lambda: None)
    assert ended.value.code == 0


def test_output_needs_a_folder(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = parser_of("anything", "A line.", quick="is quick")
    inside = tmp_path / "new" / "folder" / "results"
    assert parser.parse_args(["--output", str(inside)]).output == inside
    assert inside.parent.is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit):
        parser.parse_args(["--output", str(tmp_path / "file" / "results")])
    assert "argument --output: must be in a folder that can be made" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["results.json", "try-0.3", "."])
def test_output_is_a_name_without_a_suffix(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`try-0.3` and `try-0.5` would be one file."""
    with pytest.raises(SystemExit):
        parser_of("anything", "A line.", quick="is quick").parse_args(["--output", given])
    assert "must be a name without a dot, to which .json, .md and" in capsys.readouterr().err


@pytest.mark.parametrize("benchmark", [batch_size, growth, levers, recurrent])
def test_a_page_without_a_place_is_refused_before_anything_is_measured(
    benchmark: Any, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "README.md").write_text("# Mine\n")
    with pytest.raises(SystemExit):
        benchmark.main(["--quick", "--output", str(tmp_path / "README")])
    assert "has no place for the tables; put the lines" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md"]


def test_quick_does_not_train_another_problem(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        batch_size.main(["--quick", "--problems", "mnist-convnet"])
    assert "with --quick there is digits-mlp only" in capsys.readouterr().err


def test_a_commit_is_another_one_if_the_program_is(tmp_path: pathlib.Path) -> None:
    """Results that are written while it runs do not count."""

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True)

    for name in ("tfkfac", "docs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("1")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "-m", "first")
    commit = machine._commit(tmp_path)
    (tmp_path / "docs" / "file").write_text("2")
    assert machine._commit(tmp_path) == commit
    (tmp_path / "tfkfac" / "file").write_text("2")
    assert machine._commit(tmp_path) == f"{commit}-dirty"
    assert machine._commit(tmp_path / "none") == "unknown"


def test_late_steps_renew_nothing_that_is_never_due() -> None:
    """In the beginning rounds are short, whatever their length will be."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    schedule = {"factor_update_every": NEVER, "inverse_update_every": NEVER}
    optimizer = tfkfac.KFAC(learning_rate=0.01, damping=1.0, seed=0, **schedule)
    model.compile(optimizer, "mse")
    inputs, targets = np.eye(3), np.ones((3, 2))

    def after(steps: int) -> np.ndarray:
        for _ in range(steps):
            model.train_on_batch(inputs + np.random.default_rng().normal(size=(3, 3)), targets)
        (block,) = optimizer.layer_collection
        return block.averages()["A"].numpy()

    first = after(1)
    early = after(3)
    assert np.any(early != first)
    make_late(optimizer)
    late = after(1)
    np.testing.assert_array_equal(after(4), late)


def test_processor_is_told_with_its_widest_vectors(tmp_path: pathlib.Path) -> None:
    """TensorFlow takes other kernels with AVX-512, whose seconds are not those of AVX2."""
    told = tmp_path / "cpuinfo"
    one = "processor\t: 0\nmodel name\t: A Chip\nflags\t\t: fpu avx2{}\n\n"
    told.write_text(2 * one.format(""))
    assert machine._processor(told) == "A Chip, AVX2"
    told.write_text(2 * one.format(" avx512f"))
    assert machine._processor(told) == "A Chip, AVX-512"
    assert machine._processor(tmp_path / "none") == (platform.processor() or platform.machine())


def test_communication_goes_on(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in the file is not sent again."""
    started: list[tuple[int, str]] = []

    def ranks(setting: Mapping[str, Any]) -> dict[str, Any]:
        started.append((setting["ranks"], setting["placement"]))
        bytes_ = dict.fromkeys(
            ("predicted", "measured", "kept_predicted", "kept", "largest_block", "all_blocks"), 1e6
        )
        return {**setting, **bytes_}

    monkeypatch.setattr(communication, "of_ranks", ranks)
    arguments = ["--output", str(tmp_path / "sent"), "--ranks", "2", "4", "--placements", "hybrid"]
    communication.main(arguments)
    communication.main(arguments)
    assert started == [(2, "hybrid"), (4, "hybrid")]
    report = json.loads((tmp_path / "sent.json").read_text())
    assert all({"threads", "keras", "commit"} <= run["machine"].keys() for run in report["runs"])
    assert (tmp_path / "sent.png").stat().st_size > 1000


def test_step_cost_goes_on(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A problem is not measured twice, unless the steps are others."""
    measured: list[tuple[str, int, int]] = []

    def measure(
        problem: Any, rounds: int, steps: int, method: str, warm_up: int
    ) -> dict[str, step_cost.Measurement]:
        measured.append((problem.name, rounds, warm_up))
        return {
            name: step_cost.Measurement(1e9, 1, [0.1, 0.2], [1.0, 2.0])
            for name in ("SGD", *problem.settings)
        }

    monkeypatch.setattr(step_cost, "measure", measure)
    monkeypatch.setattr("benchmarks.machine.matmul_rate", lambda: 1e11)
    arguments = ["--output", str(tmp_path / "cost"), "--problems", "convnet"]
    step_cost.main([*arguments, "--quick"])
    step_cost.main([*arguments, "--quick"])
    step_cost.main(arguments)
    assert measured == [("convnet", 2, 10), ("convnet", 5, step_cost.WARM_UP_STEPS)]
    assert (tmp_path / "cost.png").stat().st_size > 1000


def test_coverage_goes_on_from_a_page_as_from_its_file(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scanned: list[str] = []

    def alone(entry: Any, trained: bool) -> coverage.Result:
        scanned.append(entry.name)
        return coverage.Result(entry.name, 10**9, dict.fromkeys(coverage.KINDS, 0.3), 0)

    monkeypatch.setattr(coverage, "in_process_of_its_own", alone)
    arguments = ["--output", str(tmp_path / "covered"), "--quick"]
    coverage.main(arguments)
    assert len(scanned) == 3
    (tmp_path / "covered.md").unlink()
    coverage.main(arguments)
    (tmp_path / "covered.json").unlink()
    coverage.main(arguments)
    assert len(scanned) == 3
    assert (tmp_path / "covered.png").stat().st_size > 1000


def test_all_ways_compute_the_same(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levers, "BLOCK_SECONDS", 1e-3)
    arguments = ["--quick", "--output", str(tmp_path / "levers")]
    levers.main(arguments)
    runs = json.loads((tmp_path / "levers.json").read_text())["runs"]
    assert [run["lever"] for run in runs] == [lever.name for lever in levers.QUICK]
    for run in runs:
        assert max(run["errors"].values()) < 1e-4, run["lever"]
        assert len(run["seconds"]) > 1
    assert (tmp_path / "levers.png").stat().st_size > 1000
    page = (tmp_path / "levers.md").read_text()
    assert page.count("\n|") == 2 + sum(len(run["seconds"]) for run in runs)
    monkeypatch.setattr(levers, "measured", lambda *_: pytest.fail("measured again"))
    levers.main(arguments)


def test_predictions_of_another_network_are_not_taken_over(tmp_path: pathlib.Path) -> None:
    head, rows = {"model": "A", "batch_size": 2}, [{"workers": 4, "placement": "hybrid"}]
    rows[0] |= {"stages": {"passes": 0.5}, "kept": 7.0}
    path = tmp_path / "scaling.json"
    assert scaling_model.known(path, head) == {}
    path.write_text(json.dumps({**head, "predicted": rows}))
    (step,) = scaling_model.known(path, head).values()
    assert step.seconds == 0.5
    assert scaling_model.known(path, head | {"model": "B"}) == {}
