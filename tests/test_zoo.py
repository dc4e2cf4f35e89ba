"""The benchmark zoo makes its runs once, keeps them, and says what is wrong with its arguments."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import pathlib
import types
from typing import Any

import numpy as np
import pytest

from benchmarks import machine
from benchmarks.zoo import __main__ as command_line
from benchmarks.zoo import data, tuning
from benchmarks.zoo.budget import Budget
from benchmarks.zoo.data import Examples
from benchmarks.zoo.optimizers import CENTRES, optimizer, rates
from benchmarks.zoo.problems import PROBLEMS
from benchmarks.zoo.results import Results
from benchmarks.zoo.runner import Runner, missing, run_all
from benchmarks.zoo.training import Setting, compiled, train

PROBLEM = PROBLEMS["digits-mlp"]
BUDGETS = {PROBLEM.name: Budget(3)}
SGD = Setting(PROBLEM.name, "SGD", 0.1, 0, Budget(3))


def run_of(setting: Setting, end: float | None = 1.0) -> dict[str, Any]:
    """A run that was not made."""
    curve = {"updates": [1, 2], "losses": [2.0, 1.0], "seconds": [0.0, 0.5]}
    made = {"evaluated": end, "end": end, "diverged": end is None, "first_step": 1.0}
    return setting.in_file() | made | {"smoothing": 1, "curve": curve, "others": None}


def test_kfac_and_sgd_learn_the_digits(tmp_path: pathlib.Path) -> None:
    """The budget counts updates; on the clock, the first step is as long as the second."""
    examples = PROBLEM.examples(None)
    budget = Budget(30)
    for setting in (
        dataclasses.replace(SGD, budget=budget),
        Setting(PROBLEM.name, "KFAC", None, 0, budget),
    ):
        run = train(PROBLEM, examples, setting)
        curve = run["curve"]
        assert curve["updates"] == list(range(1, 31))
        assert 0 < curve["seconds"][1] == pytest.approx(2 * curve["seconds"][0], abs=2e-4)
        assert run["first_step"] > 0.05 > np.median(np.diff(curve["seconds"]))
        assert run["evaluated"] < run["end"] < 0.5 * curve["losses"][0]
        assert not run["diverged"]
        json.dumps(run, allow_nan=False)


def test_recorded_losses_are_those_of_the_batches() -> None:
    """With a learning rate of 0, those of the first weights on each batch by itself."""
    problem = dataclasses.replace(PROBLEM, batch_size=64, smoothing=1)
    images, labels = data.digits()
    examples = Examples(images.reshape(-1, 64), labels, streams=True)
    setting = dataclasses.replace(SGD, learning_rate=0.0, budget=Budget(3))
    run = train(problem, examples, setting)
    model = compiled(problem, examples, setting)
    batches = [slice(64 * i, 64 * i + 64) for i in range(3)]
    outputs = [np.asarray(model(examples.inputs[batch])) for batch in batches]
    alone = [
        float(model.compute_loss(y=labels[batch], y_pred=output))
        for batch, output in zip(batches, outputs, strict=True)
    ]
    assert np.std(alone) > 0.01
    assert run["curve"]["losses"] == pytest.approx(alone, rel=1e-5)


def test_a_training_that_is_not_finite_ends_and_is_marked() -> None:
    images, labels = data.digits()
    images = images.reshape(-1, 64).copy()
    run = train(PROBLEM, Examples(images * np.nan, labels), SGD)
    assert run["diverged"] and run["end"] is None and run["evaluated"] is None
    assert run["curve"]["updates"] == []
    rising = train(PROBLEM, Examples(images, labels), dataclasses.replace(SGD, learning_rate=1e4))
    assert rising["diverged"] and rising["end"] is None


def test_seconds_end_a_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock on which every step takes a quarter of a second."""
    ticks = itertools.count()
    clock = types.SimpleNamespace(perf_counter=lambda: 0.25 * next(ticks))
    monkeypatch.setattr("benchmarks.zoo.curves.time", clock)
    budget = Budget(100_000, seconds=1.1)
    run = train(PROBLEM, PROBLEM.examples(None), dataclasses.replace(SGD, budget=budget))
    assert run["curve"]["seconds"] == [0.25, 0.5, 0.75, 1.0, 1.25]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Setting]:
    """Nothing trains; what would have been trained is noted down."""
    made: list[Setting] = []

    def note(problem: Any, examples: Any, setting: Setting) -> dict[str, Any]:
        made.append(setting)
        best = CENTRES.get(setting.optimizer, 1.0)
        return run_of(setting, abs((setting.learning_rate or 1.0) / best - 1.0))

    monkeypatch.setattr("benchmarks.zoo.runner.train", note)
    return made


def test_what_is_in_the_file_is_not_made_again(
    tmp_path: pathlib.Path, trained: list[Setting]
) -> None:
    """All, none, and what is missing, also of a file that is cut in the middle of a run."""
    path = tmp_path / "zoo.json"

    def start() -> list[Setting]:
        trained.clear()
        results = Results(path)
        work = missing([PROBLEM], ["KFAC", "SGD"], BUDGETS, results, None)
        run_all(work, BUDGETS, results, None)
        return list(trained)

    everything = start()
    assert len(everything) == len(set(everything)) == 3 + 7 + 3 + 2
    assert start() == []
    text = path.read_text()
    path.write_text(text[: int(0.6 * len(text))])
    kept = len(Results(path).runs)
    assert 0 < kept < len(everything)
    assert start() == everything[kept:]
    assert path.read_text() == text
    assert list(tmp_path.iterdir()) == [path]


def test_a_run_says_what_it_was_made_on_and_an_older_file_goes_on_saying_it(
    tmp_path: pathlib.Path,
) -> None:
    """Of an older file the head tells, and of its runs alone, also when it was cut."""
    path = tmp_path / "old.json"
    path.write_text('{"machine": {"threads": 99},\n"runs": [\n{"a": 1},\n{"a": 2')
    Results(path).get({"a": 3}, dict)
    document = json.loads(path.read_text())
    assert document["machine"] == {"threads": 99}
    assert [run["a"] for run in document["runs"]] == [1, 3]
    assert "machine" not in document["runs"][0]
    assert {"processor", "tensorflow", "commit"} <= document["runs"][1]["machine"].keys()


@pytest.mark.parametrize("text", ["{}", "notes of mine\n", '["runs"]'])
def test_other_files_are_no_results(text: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"something else than runs; name another one by --output"):
        Results(path)


@pytest.mark.parametrize(
    ("loads", "kept"), [([0.02], 0.02), ([0.5, 0.02], 0.02), ([0.5, 0.3, 0.4, 0.0], 0.3)]
)
def test_what_was_disturbed_is_made_again(
    loads: list[float], kept: float, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most twice; the most quiet one counts."""
    left = list(loads)
    monkeypatch.setattr(
        "benchmarks.zoo.runner.train", lambda *_: run_of(SGD, 1.0) | {"others": left.pop(0)}
    )
    with Runner(Results(tmp_path / "zoo.json"), 1.0) as runner:
        assert runner.get(PROBLEM, PROBLEM.examples(None))(SGD)["others"] == kept
    assert len(left) == len(loads) - min(len(loads), 3)


def test_what_the_kernel_tells_of_the_work_of_others(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ticks of user, nice, system, idle, waiting, two kinds of interrupts, and other guests."""
    monkeypatch.setattr(os, "sysconf", lambda _: 100)
    own = [(1.0, 0.0, 0.0, 0.0, 0.0), (4.0, 1.0, 0.0, 0.0, 0.0)]  # 4 s
    monkeypatch.setattr(os, "times", lambda: own.pop(0))
    counts = tmp_path / "stat"
    counts.write_text("cpu  100 10 50 1000 100 0 0 40 7 7\ncpu0 9 9 9 9 9 9 9 9 9 9\n")
    others = machine.OtherWork(counts)
    counts.write_text("cpu  500 10 150 1200 200 0 0 140 9 9\ncpu0 9 9 9 9 9 9 9 9 9 9\n")
    assert others.share() == pytest.approx((4.0 + 1.0 + 1.0 - 4.0) / (6.0 + 2.0 + 1.0))


def test_where_the_kernel_does_not_tell_nothing_is_known(tmp_path: pathlib.Path) -> None:
    assert machine.OtherWork(tmp_path / "stat").share() is None


def test_seven_rates_then_three_then_three_seeds(trained: list[Setting]) -> None:
    found = tuning.runs_of(
        PROBLEM, "Adam", Budget(40, 8.0), lambda s: run_of(s, abs(s.learning_rate - 3e-3))
    )
    assert [(run["learning_rate"], run["seed"]) for run in found] == [(3e-3, s) for s in (0, 1, 2)]
    assert Budget(40, 8.0).share(0.25) == Budget(10, 2.0)
    assert rates(PROBLEM, "Adam") == [3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2]


def test_a_rate_that_diverged_is_not_the_best() -> None:
    def get(setting: Setting) -> dict[str, Any]:
        return run_of(setting, None if setting.learning_rate > 0.1 else setting.learning_rate)

    assert tuning.best_rate(SGD, [0.01, 0.3, 0.1], Budget(1), 2, get) == 0.01


def test_muon_leaves_the_last_layer_to_adamw() -> None:
    model = PROBLEM.network(PROBLEM.examples(None))
    muon = optimizer("Muon", 0.01, model)
    muon.build(model.trainable_variables)
    kernels = [v for v in model.trainable_variables if len(v.shape) == 2]
    assert [muon._should_use_adamw(kernel) for kernel in kernels] == [False, True]


def test_command_line_runs_and_goes_on(
    tmp_path: pathlib.Path, trained: list[Setting], capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "results" / "zoo"
    arguments = ["--problems", "digits-mlp", "--output", str(output), "--seconds", "5"]
    command_line.main([*arguments, "--optimizers", "KFAC"])
    command_line.main([*arguments, "--optimizers", "SGD"])
    assert "Of 1 problems" in capsys.readouterr().out  # KFAC's runs are in the file still.
    count = len(trained)
    page = output.with_suffix(".md")
    page.write_text(page.read_text().replace("# Results", "# My own words"))
    command_line.main([*arguments, "--optimizers", "KFAC", "SGD"])
    assert len(trained) == count
    assert page.read_text().startswith("# My own words\n")
    assert page.read_text().count("## digits-mlp") == 1
    assert output.with_suffix(".png").stat().st_size > 1000
    assert {setting.budget for setting in trained} == {Budget(250, 1.25), Budget(1000, 5.0)}


def test_bad_arguments(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = PROBLEM.network(PROBLEM.examples(None))
    with pytest.raises(ValueError, match=r"`updates` must be .* at least 1, got 0"):
        Budget(0)
    with pytest.raises(ValueError, match=r"`seconds` must be a positive number, got -1.*use 30"):
        Budget(1, -1)
    with pytest.raises(ValueError, match=r"`name` must be one of KFAC, SGD.*got 'Lion'"):
        optimizer("Lion", 0.1, model)
    with pytest.raises(ValueError, match=r"`learning_rate` must be None for KFAC.*got 0\.1"):
        optimizer("KFAC", 0.1, model)
    with pytest.raises(ValueError, match=r"`names` must be some of KFAC, SGD.*got Lion"):
        missing([PROBLEM], ["Lion"], BUDGETS, Results(tmp_path / "none.json"), None)
    with pytest.raises(ValueError, match="has 9 examples, a batch of this problem 10; use"):
        Examples(np.zeros((9, 1)), np.zeros(9)).batches(10)
    for arguments, message in (
        (["--problems", "mnist-convnet"], "mnist.npz is needed, and no --data was given. Get it"),
        (["--problems", "gpt-ptb", "--data", str(tmp_path)], "ptb is needed, and --data"),
        (
            ["--problems", "digits-mlp", "--seconds", "0"],
            "argument --seconds: must be a number above 0",
        ),
    ):
        with pytest.raises(SystemExit):
            command_line.main([*arguments, "--output", str(tmp_path / "zoo")])
        assert message in " ".join(capsys.readouterr().err.split())
