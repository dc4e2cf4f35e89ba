"""Targets, and updates and seconds to them, of curves made by hand."""

from __future__ import annotations

import math
import pathlib
from typing import Any

import numpy as np
import pytest

from benchmarks.zoo import report
from benchmarks.zoo.budget import Budget
from benchmarks.zoo.comparison import Comparison, Standing, compare, first_at
from benchmarks.zoo.curves import smoothed, thinned

BUDGET = Budget(4, 8.0)


def run(
    name: str,
    losses: list[float],
    *,
    rate: float | None = None,
    seed: int = 0,
    pace: float = 1.0,
    budget: Budget = BUDGET,
    diverged: bool = False,
) -> dict[str, Any]:
    """A run with a loss at every update, each of which takes `pace` seconds."""
    return {
        "problem": "hills",
        "optimizer": name,
        "learning_rate": rate,
        "seed": seed,
        "budget": {"updates": budget.updates, "seconds": budget.seconds, "until": None}
        | {"at_least": 0},
        "diverged": diverged,
        "end": None if diverged else losses[-1],
        "evaluated": None if diverged else losses[-1] / 2,
        "first_step": 0.5,
        "curve": {
            "updates": list(range(1, len(losses) + 1)),
            "losses": losses,
            "seconds": [pace * i for i in range(len(losses))],
        },
    }


KFAC = [run("KFAC", [9, 4, 2, 1], pace=2.0, seed=seed) for seed in range(3)]
SGD = [
    run("SGD", [9, 7, 5, 3], rate=0.1, seed=0),
    run("SGD", [9, 6, 3, 2.5], rate=0.1, seed=1),
    run("SGD", [9, 8, 7, 6], rate=0.1, seed=2),
]
OTHER_RATES = [
    run("SGD", [9, 8, 7, 6.5], rate=0.03),
    run("SGD", [9.0], rate=0.3, diverged=True),
    run("SGD", [1, 0.1], rate=1.0, budget=BUDGET.share(0.25)),
]


def test_smoothing_is_the_mean_of_the_last_updates() -> None:
    assert smoothed([4, 2, 6, 1], 2) == pytest.approx([4, 3, 4, 3.5])
    assert smoothed([4, 2], 25) == pytest.approx([4, 3])
    with pytest.raises(ValueError, match="`window` must be at least 1 update, got 0"):
        smoothed([1.0], 0)


def test_thinned_curves_keep_the_beginning_and_the_end() -> None:
    assert list(thinned(0)) == []
    assert list(thinned(200)) == list(range(200))
    kept = thinned(5000)
    assert list(kept[:100]) == list(range(100))
    assert kept[-1] == 4999 and len(kept) <= 200
    assert (np.diff(kept) > 0).all() and (np.diff(kept) <= 0.05 * kept[1:] + 1).all()


def test_first_time_at_the_target() -> None:
    curve = {"updates": [1, 2, 3, 4], "losses": [9.0, 4.0, 5.0, 1.0], "seconds": [0.0, 2, 4, 6]}
    assert first_at(curve, 4.0) == (2, 2)
    assert first_at(curve, 3.9) == (4, 6)
    assert first_at(curve, 9.5) == (1, 0)
    assert first_at(curve, 0.9) == (math.inf, math.inf)
    assert first_at({"updates": [], "losses": [], "seconds": []}, 1.0) == (math.inf, math.inf)


def test_between_two_points_of_a_thinned_curve_the_loss_falls_evenly() -> None:
    curve = {"updates": [1, 11], "losses": [10.0, 0.0], "seconds": [0.0, 20.0]}
    assert first_at(curve, 5.0) == (6, 10)
    assert first_at(curve, 4.9) == (7, 12)


def test_the_target_is_what_both_reach() -> None:
    """SGD's medians: 3 is the lowest loss, which its third seed never reaches."""
    found = compare([*KFAC, *OTHER_RATES, *SGD], "hills", BUDGET)
    assert found.standings["SGD"].learning_rate == 0.1
    assert found.target == 3
    assert found.standings["KFAC"].to(3) == ([3] * 3, [4.0] * 3)
    assert found.standings["SGD"].to(3) == ([4, 3, math.inf], [3.0, 2.0, math.inf])
    assert (found.updates().value, found.updates().wins) == (3 / 4, True)
    assert (found.seconds().value, found.seconds().wins) == (4 / 3, False)
    assert found.ends().value == pytest.approx(1 / 3)


def test_rounding_errors_are_no_target() -> None:
    """Below one in a million all have arrived."""
    kfac = [run("KFAC", [1.0, 1e-7, 1e-8], seed=seed) for seed in range(3)]
    sgd = [run("SGD", [1.0, 1e-5, 1e-9], rate=0.1, seed=seed) for seed in range(3)]
    assert compare([*kfac, *sgd], "hills", BUDGET).target == 1e-6


def test_kfac_may_be_the_one_that_sets_the_target() -> None:
    adam = [run("Adam", [9, 2, 0.5, 0.1], rate=1e-3, seed=seed) for seed in range(3)]
    found = compare([*KFAC, *SGD, *adam], "hills", BUDGET)
    assert found.target == 1
    assert (found.updates().kfac, found.updates().other, found.updates().name) == (4, 3, "Adam")
    assert not found.updates().wins


def test_the_best_in_each_measure_is_what_kfac_has_to_beat() -> None:
    slow = [run("Adam", [9, 3, 3, 3], rate=1e-3, seed=seed, pace=9.0) for seed in range(3)]
    found = compare([*KFAC, *SGD, *slow], "hills", BUDGET)
    assert (found.updates().name, found.seconds().name) == ("Adam", "SGD")


def test_rates_at_the_edge_are_marked() -> None:
    assert not compare([*KFAC, *OTHER_RATES, *SGD], "hills", BUDGET).standings["SGD"].at_the_edge
    assert compare([*KFAC, *SGD, OTHER_RATES[0]], "hills", BUDGET).standings["SGD"].at_the_edge


def test_tables_tell_diverged_and_never_reached() -> None:
    diverged = run("Adam", [9.0, 8.0], rate=1e-3, diverged=True)
    text = report.tables([compare([*KFAC, *SGD, diverged], "hills", BUDGET)])
    assert "| hills | 3 | 3 | 4 (SGD) | **0.75** | 4.0 | 3.0 (SGD) | 1.33 | 1 | 3 (SGD) |" in text
    assert "fewer updates in 1 and fewer seconds in 0; in 1 it ends lower" in text
    assert "| 4 (3 … –) | 3.0 (2.0 … –) | 3 (2.5 … 6) | 1.5 (1.25 … 3) |" in text
    assert "| Adam | 0.001 (edge) | 2 | 0.5 | – | – | diverged | diverged |" in text


def test_without_kfac_there_is_no_target() -> None:
    found = compare(SGD, "hills", BUDGET)
    assert found.target is None
    assert "Target" not in report.tables([found])
    assert compare(SGD, "valleys", BUDGET) == Comparison("valleys", {})


def test_page_keeps_its_own_words(tmp_path: pathlib.Path) -> None:
    page = tmp_path / "page.md"
    report.write_page(page, "first")
    page.write_text("Before.\n" + page.read_text() + "After.\n")
    report.write_page(page, "second")
    text = page.read_text()
    assert text.startswith("Before.\n") and text.endswith("After.\n")
    assert "second" in text and "first" not in text
    for marks in ("", report.BEGIN, report.END, report.END + report.BEGIN):
        page.write_text(marks)
        with pytest.raises(ValueError, match=r"page\.md has no place for the tables; put"):
            report.write_page(page, "third")


def test_lowest_of_a_run_without_any_update_is_infinite() -> None:
    assert Standing("SGD", [run("SGD", [9.0]) | {"curve": {"losses": []}}]).lowest == math.inf
