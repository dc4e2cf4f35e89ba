"""Perfect scaling, and the benchmark that looks for its end, on updates made by hand."""

from __future__ import annotations

import math
import pathlib
from typing import Any

import numpy as np
import pytest

from benchmarks import batch_size
from benchmarks.batch_size import STUDIES, arrived, climbed, rate_at, reached
from benchmarks.perfect_scaling import perfect_scaling
from benchmarks.zoo.training import Setting


def test_constant_examples_are_perfect_to_the_end() -> None:
    found = perfect_scaling([64, 128, 256], [1000, 500, 250])
    assert found is not None
    assert (found.first, found.last, found.end, found.open) == (64, 256, 256, True)
    assert found.examples == 64_000 and found.factor == 4


def test_the_end_is_where_a_power_law_leaves_the_tolerance() -> None:
    """Examples 1, 1, 4: at size 2 · 2^s they are 4^s, and 1.2 at s = log 1.2 / log 4."""
    found = perfect_scaling([1, 2, 4], [1.0, 0.5, 1.0])
    assert found is not None and not found.open and found.last == 2
    assert found.end == pytest.approx(2 * 2 ** (math.log(1.2) / math.log(4)))


@pytest.mark.parametrize(("most", "inside"), [(1.49, True), (1.51, False)])
def test_within_twenty_percent_of_a_constant(most: float, inside: bool) -> None:
    """0.8 and 1.2 are both within 20 % of 1: up to a ratio of 1.5."""
    found = perfect_scaling([1, 2], [1.0, most / 2])
    assert found is not None and (found.last == 2) is inside
    assert found.examples == pytest.approx((1 + most) / 2 if inside else 1.0)


def test_small_batches_that_fail_are_left_out() -> None:
    """The widest range counts, wherever it begins; what never arrives is outside."""
    found = perfect_scaling([8, 16, 32, 64, 128], [math.inf, 100, 10, 5, math.inf])
    assert found is not None
    assert (found.first, found.last, found.end, found.open) == (32, 64, 64, False)
    assert perfect_scaling([1, 2], [math.inf, math.inf]) is None


def test_of_ranges_as_wide_as_each_other_larger_batches_count() -> None:
    """By where they end: examples 10, 14.9, 16.9, 50 are alike in 1 and 2, and in 2 and 4."""
    found = perfect_scaling([1, 2, 4, 8], [10, 7.45, 4.225, 6.25])
    assert found is not None and (found.first, found.last) == (2, 4)
    assert 2.1 < found.factor < 2.2


def test_one_size_is_no_range() -> None:
    found = perfect_scaling([1, 2, 4], [10, 9, 9])
    assert found is not None and found.is_one and found.first == 1 and 1 < found.end < 2


def test_the_loss_was_there_in_the_middle_of_its_window() -> None:
    """It is a mean over 16 batches of 64, and over one of 1024."""
    study = STUDIES["digits-mlp"]
    run = {"curve": {"updates": [1, 40], "losses": [2.0, 0.01]}}
    assert arrived(run, study, 64) == 40 - 7.5
    assert arrived(run, study, 1024) == 40


def test_sizes_must_ascend() -> None:
    with pytest.raises(ValueError, match=r"`sizes` must ascend and have one entry.*\[2, 1\]"):
        perfect_scaling([2, 1], [1, 1])


def test_climbing_asks_for_each_number_once() -> None:
    asked: list[int] = []

    def cost(number: int) -> tuple[float, float]:
        asked.append(number)
        return (math.inf, math.inf) if number > 4 else (abs(number - 3), 0.0)

    assert climbed(0, cost) == 3
    assert sorted(asked) == sorted(set(asked)) == [-1, 0, 1, 2, 3, 4]
    assert climbed(5, lambda n: (math.inf, abs(n - 6))) == 6  # Nothing arrives: the lower loss.
    assert [rate_at(step) for step in (-2, -1, 0, 1, 2)] == [0.1, 0.3, 1.0, 3.0, 10.0]


def made(settings: list[Setting]) -> Any:
    """Trainings that take 64,000 examples with a rate of 0.1 (KFAC: 32,000), but 20 updates."""

    def train(problem: Any, examples: Any, setting: Setting) -> dict[str, Any]:
        settings.append(setting)
        size = problem.batch_size
        needed = max(20, round((64_000 if setting.learning_rate else 32_000) / size))
        needed += problem.smoothing // 2  # The loss is seen half a window late.
        if setting.learning_rate is not None:
            needed = round(needed * 2 ** abs(math.log10(setting.learning_rate / 0.1)))
        updates = min(needed, setting.budget.updates)
        end = setting.budget.until * (1 if updates == needed else needed / updates)
        curve = {"updates": [1, updates], "losses": [9.0, end], "seconds": [0.1, 1.0]}
        told = {"end": end, "evaluated": end, "diverged": False, "first_step": 1.0}
        return setting.in_file() | told | {"curve": curve, "others": None}

    return train


def test_the_benchmark_finds_rates_and_ranges_and_goes_on(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sizes 64 to 1797: 20 updates are more than 32,000 / 1797, not than 64,000 / 1797."""
    settings: list[Setting] = []
    monkeypatch.setattr("benchmarks.zoo.runner.train", made(settings))
    output = tmp_path / "batch"
    arguments = ["--problems", "digits-mlp", "--seeds", "2", "--output", str(output)]
    batch_size.main(arguments)
    told = capsys.readouterr().out
    assert "Up to 5 min" in told
    assert "| digits-mlp | KFAC | 64 to ≥ 1,797 | ≥ 28.1 |" in told
    assert "| digits-mlp | SGD | 64 to ≥ 1,797 | ≥ 28.1 |" in told
    assert "| 256 | 126 | 250 | 0.1 | 250 | 0.1 |" in told
    tuned = [s for s in settings if s.optimizer == "SGD" and s.problem.endswith("batch 64")]
    assert {s.learning_rate for s in tuned if s.seed == 0} == {0.03, 0.1, 0.3}
    assert [s.budget.updates for s in tuned[1:3]] == [1008, 1008]  # As many as the best so far.
    count = len(settings)
    batch_size.main(arguments)
    assert len(settings) == count
    assert output.with_suffix(".png").stat().st_size > 1000
    assert output.with_suffix(".md").read_text().count("### digits-mlp") == 1


def test_a_training_that_is_given_up_is_not_there() -> None:
    run = {"curve": {"updates": [1, 8], "losses": [2.0, 0.5]}}
    assert reached(run, 0.5) == reached(run, 0.499999) == 8
    assert math.isinf(reached(run, 0.4))
    assert math.isinf(reached({"curve": {"updates": [], "losses": []}}, 0.4))


def test_missing_data_is_named_before_anything_is_trained(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        batch_size.main(["--output", str(tmp_path / "out")])
    assert "mnist.npz is needed, and no --data was given" in capsys.readouterr().err


def test_windows_have_as_many_examples_at_every_size() -> None:
    study = STUDIES["small-autoencoder"]
    windows = [study.at(size).smoothing * size for size in study.sizes]
    assert windows == [1024, 1024, 1024, 4096, 16_384]
    assert np.all(np.diff(study.sizes) > 0)
