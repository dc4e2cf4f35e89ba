"""KAISA's grid and the greedy assignment."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tfkfac.distribution.placement import Grid, divisors, grid_of, place, require_placement


def test_golden_grid() -> None:
    """maths.md §7: W = 8, m = 2."""
    grid = Grid(8, 2)
    assert [grid.column(index) for index in range(4)] == [(0, 4), (1, 5), (2, 6), (3, 7)]
    assert [grid.row(index) for index in range(2)] == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert [grid.column_of(worker) for worker in range(8)] == [0, 1, 2, 3, 0, 1, 2, 3]


@pytest.mark.parametrize(
    ("workers", "placement", "rows"),
    [
        (8, "mem_opt", 1),
        (8, "comm_opt", 8),
        (8, "hybrid", 2),
        (16, "hybrid", 4),
        (7, "hybrid", 1),
        (1, "hybrid", 1),
        (8, 0.5, 4),
        (8, 0.01, 1),
        (6, 1 / 3, 2),
        (3, 1, 3),
    ],
)
def test_names_and_fractions(workers: int, placement: Any, rows: int) -> None:
    grid = grid_of(workers, placement)
    assert grid == Grid(workers, rows)
    assert grid.fraction == rows / workers


def test_every_worker_is_in_one_column_and_one_row() -> None:
    for workers in range(1, 33):
        for rows in divisors(workers):
            grid = Grid(workers, rows)
            columns = [grid.column(index) for index in range(grid.columns)]
            rows_of_grid = [grid.row(index) for index in range(grid.rows)]
            for groups in (columns, rows_of_grid):
                assert sorted(w for group in groups for w in group) == list(range(workers))
            for column in columns:
                assert all(len(set(column) & set(row)) == 1 for row in rows_of_grid)


def test_a_fraction_that_does_not_divide_names_its_neighbours() -> None:
    with pytest.raises(ValueError, match=r"got 0\.4.*3\.2.*2/8 = 0\.25 and 4/8 = 0\.5"):
        grid_of(8, 0.4)


@pytest.mark.parametrize("placement", ["fast", 0.0, -0.5, 1.5, True, None, float("nan")])
def test_bad_placements(placement: Any) -> None:
    with pytest.raises(ValueError, match=r"`placement` must be 'comm_opt', 'hybrid'"):
        require_placement(placement)


@pytest.mark.parametrize("placement", ["mem_opt", "hybrid", "comm_opt"])
def test_no_worker_has_more_than_its_share_and_one_block(placement: str) -> None:
    """The bound of longest-processing-time: all but the last block fitted under the mean."""
    rng = np.random.default_rng(0)
    for workers in (1, 2, 3, 4, 8):
        sizes = rng.integers(1, 300, size=23).astype(float)
        memory, time = sizes**2, sizes**3
        placed = place(grid_of(workers, placement), memory, time)
        costs = memory if placement == "mem_opt" or placed.grid.rows == 1 else time
        loads = [sum(costs[p] for p in placed.owned_by(worker)) for worker in range(workers)]
        if placement != "hybrid":
            assert max(loads) <= costs.sum() / workers + costs.max()
        assert sorted(p for w in range(workers) for p in placed.owned_by(w)) == list(range(23))


def test_largest_blocks_are_spread_first() -> None:
    placed = place(Grid(2, 1), [9.0, 8.0, 1.0, 2.0], [0.0] * 4)
    assert placed.owners == (0, 1, 0, 1)
    assert placed.owned_by(0) == [0, 2]
    assert placed.preconditioned_by(1) == [1, 3]


def test_who_preconditions_is_the_column_of_the_owner() -> None:
    placed = place(grid_of(4, "hybrid"), [1.0] * 4, [4.0, 3.0, 2.0, 1.0])
    assert placed.grid.rows == 2
    for position, owner in enumerate(placed.owners):
        assert owner in placed.gradient_workers(position)
        assert placed.gradient_workers(position) in {(0, 2), (1, 3)}
    for worker in range(4):
        expected = [p for p in range(4) if worker in placed.gradient_workers(p)]
        assert placed.preconditioned_by(worker) == expected


def test_equal_blocks_are_shared_out_equally() -> None:
    for placement in ("mem_opt", "hybrid", "comm_opt"):
        placed = place(grid_of(4, placement), [1.0] * 8, [1.0] * 8)
        assert [len(placed.owned_by(worker)) for worker in range(4)] == [2, 2, 2, 2]
