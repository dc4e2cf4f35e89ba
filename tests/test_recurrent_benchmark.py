"""The benchmark of recurrent networks: what is trained, and what its table says."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest

from benchmarks.recurrent import __main__ as command_line
from benchmarks.recurrent import report, trainings
from benchmarks.recurrent.problems import copying
from benchmarks.recurrent.training import outcome, train
from benchmarks.recurrent.trainings import Learnt, Trainings, all_runs
from benchmarks.zoo.budget import Budget
from benchmarks.zoo.curves import LossCurve
from benchmarks.zoo.results import Results

PROBLEM = copying(length=3, updates=60)
NAMES = list(PROBLEM.optimizers)


def test_a_training_notes_the_loss_of_every_batch() -> None:
    """Of 51 updates the last is in a second epoch: the first loss is a guess's, others are less."""
    made = train(copying(length=3, updates=51), "Adam", 0.01, seed=0)
    assert len(made["losses"]) == len(made["seconds"]) == 51
    assert made["losses"][0] == pytest.approx(np.log(8), rel=0.1)
    assert all(0.1 < loss < 1.0 for loss in made["losses"][45:])
    assert all(a < b for a, b in zip(made["seconds"], made["seconds"][1:], strict=False))
    assert 0.1 < made["unseen"] < 1.0


def test_the_first_step_counts_with_its_tracing() -> None:
    """The zoo's clock, on which it is as long as the second, is set forward."""
    curve = LossCurve(Budget(4), smoothing=1)
    curve.losses, curve.seconds, curve.first_step = [3.0, 2.0, 1.0], [0.5, 1.0, 1.5], 4.0
    made = outcome(curve, updates=4)
    assert made == {"losses": [3.0, 2.0, 1.0, None], "seconds": [4.0, 4.5, 5.0, 5.0]}
    assert outcome(LossCurve(Budget(2), 1), 2) == {"losses": [None] * 2, "seconds": [0.0] * 2}


def falling(calls: list[tuple[str, float, int]]) -> Any:
    """Trainings that were not made: Adam's best number is 0.01, KFAC's 3e-3, SGD always fails."""

    def made(problem: Any, name: str, tuned: float, seed: int) -> dict[str, Any]:
        calls.append((name, tuned, seed))
        best = 0.01 if name == "Adam" else 3e-3
        rate = 0.01 if name == "Adam" else 0.02
        losses = [2.0 - rate * i + abs(tuned - best) for i in range(problem.updates)]
        if name == "SGD":
            losses = [2.0, None, 0.0, *losses[3:]]
        seconds = [0.5 * (i + 1) for i in range(problem.updates)]
        return {"unseen": losses[-1], "losses": losses, "seconds": seconds}

    return made


def test_the_best_number_has_all_seeds_and_everything_is_kept(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in the file is not made again, the clock's own run included."""
    calls: list[tuple[str, float, int]] = []
    monkeypatch.setattr(trainings, "train", falling(calls))
    path = tmp_path / "recurrent.json"
    found = all_runs([PROBLEM], Results(path), seeds=3, measure=True)
    numbers = sum(map(len, PROBLEM.tried.values()))
    assert len(calls) == numbers + (2 + 1) * len(NAMES)
    assert [call for call in calls if call[0] == "Adam"][-3:] == [
        ("Adam", 0.01, 1),
        ("Adam", 0.01, 2),
        ("Adam", 0.01, 0),
    ]
    assert [each.tuned for each in found[PROBLEM.name] if each.name == "KFAC"] == [3e-3]
    del calls[:]
    again = all_runs([PROBLEM], Results(path), seeds=3, measure=True)
    assert not calls
    assert report.tables(again) == report.tables(found)
    longer = copying(length=3, updates=61)
    Trainings(Results(path)).run(longer, "Adam", 0.01, 0)
    assert calls == [("Adam", 0.01, 0)]


def test_table_says_how_soon_the_first_order_loss_is_reached(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adam ends at 2 − 0.01·47; KFAC's mean of 25 updates is there after 24 + 12 + 1 of them."""
    monkeypatch.setattr(trainings, "train", falling([]))
    found = all_runs([PROBLEM], Results(tmp_path / "recurrent.json"), seeds=2, measure=False)
    text = report.tables(found)
    assert text.startswith("## copy 3\n\nTarget: a loss of 1.530, at which")
    assert "| KFAC | 0.003 | 1.060 | 0.820 | 37 | 18.5 |" in text
    assert "| Adam | 0.01 | 1.530 | 1.410 | 60 | 30.0 |" in text
    assert "| SGD | 0.1 | diverged | 0.917 | – | – |" in text
    report.plot(found, tmp_path / "recurrent.png")
    assert (tmp_path / "recurrent.png").stat().st_size > 1000


def test_a_loss_that_is_not_finite_ends_the_curve() -> None:
    """Losses after it do not count; those before it do."""
    curve = trainings.smoothed({"losses": [4.0, 2.0, None, 1.0]})
    assert curve.tolist() == [4.0, 3.0, np.inf, np.inf]
    learnt = Learnt("SGD", [{"losses": [1.0, None], "tuned": 0.1}], [1.0, 2.0])
    assert learnt.curves.tolist() == [[1.0, np.inf]] and learnt.tuned == 0.1


def test_command_line_goes_on_where_it_was(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[str, float, int]] = []
    monkeypatch.setattr(trainings, "train", falling(calls))
    output = tmp_path / "recurrent"
    for made in (True, False):
        del calls[:]
        command_line.main(["--quick", "--output", str(output)])
        assert bool(calls) == made
        assert "| KFAC lggm_limit | 0.003 |" in capsys.readouterr().out
    assert "## copy 3" in output.with_suffix(".md").read_text()
    assert (
        "![Loss against updates and seconds](recurrent.png)"
        in output.with_suffix(".md").read_text()
    )


def test_quick_is_a_default(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked for is done, in short or not."""
    monkeypatch.setattr(trainings, "train", falling([]))
    output = tmp_path / "recurrent"
    command_line.main(["--quick", "--lengths", "2", "4", "--output", str(output)])
    text = output.with_suffix(".md").read_text()
    assert "## copy 2" in text and "## copy 4" in text and "## copy 3" not in text


def test_folder_of_texts_is_asked_for(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command_line.main(["--data", str(tmp_path), "--output", str(tmp_path / "recurrent")])
    assert "a folder with two text files (*.txt) is needed" in capsys.readouterr().err
