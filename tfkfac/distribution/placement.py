"""Who does what: KAISA's grid of workers, and the greedy assignment of blocks (mathematics.md §7).

Pure Python: nothing here knows of tensors, layers or ways to communicate.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

NAMED = ("comm_opt", "hybrid", "mem_opt")
"""The values of ``KFAC(placement=...)`` beside fractions."""


@dataclasses.dataclass(frozen=True)
class Grid:
    """Workers 0 … W−1, row by row, in `rows` rows of ``W / rows``.

    A column is a group of *gradient workers*: all of them hold the inverses of the column's blocks
    and precondition. A row is a group of *receivers*: each gets a preconditioned gradient from the
    one in the row that has made it. One row is MEM-OPT, one column COMM-OPT.

    Attributes:
        workers: W.
        rows: m = max(1, W·f), a divisor of W.
    """

    workers: int
    rows: int

    @property
    def columns(self) -> int:
        """W / m."""
        return self.workers // self.rows

    def column_of(self, worker: int) -> int:
        """The column a worker is in."""
        return worker % self.columns

    def column(self, index: int) -> tuple[int, ...]:
        """The gradient workers of a column."""
        return tuple(range(index, self.workers, self.columns))

    def row(self, index: int) -> tuple[int, ...]:
        """The receivers of a row."""
        return tuple(range(index * self.columns, (index + 1) * self.columns))

    @property
    def all_columns(self) -> list[tuple[int, ...]]:
        """All groups of gradient workers."""
        return [self.column(index) for index in range(self.columns)]

    @property
    def all_rows(self) -> list[tuple[int, ...]]:
        """All groups of receivers."""
        return [self.row(index) for index in range(self.rows)]

    @property
    def fraction(self) -> float:
        """f, the share of the workers that precondition a block."""
        return self.rows / self.workers


@dataclasses.dataclass(frozen=True)
class Placement:
    """The grid, and the one worker that keeps a block's factors and makes its inverse.

    Attributes:
        grid: The workers.
        owners: The worker of each block, in the order of the blocks.
    """

    grid: Grid
    owners: tuple[int, ...]

    def gradient_workers(self, position: int) -> tuple[int, ...]:
        """Who preconditions the block at a position."""
        return self.grid.column(self.grid.column_of(self.owners[position]))

    def owned_by(self, worker: int) -> list[int]:
        """The positions of the blocks whose factors a worker keeps."""
        return [position for position, owner in enumerate(self.owners) if owner == worker]

    def preconditioned_by(self, worker: int) -> list[int]:
        """The positions of the blocks whose inverses a worker holds."""
        column = self.grid.column_of(worker)
        return [p for p, owner in enumerate(self.owners) if self.grid.column_of(owner) == column]


def grid_of(workers: int, placement: str | float) -> Grid:
    """The grid for a number of workers.

    Args:
        workers: W.
        placement: "mem_opt" (f = 1/W), "comm_opt" (f = 1), "hybrid" (m is the divisor of W nearest
            √W), or f itself in (0, 1].

    Raises:
        ValueError: W·f is no divisor of W; the message names the nearest fractions that are fine.
    """
    require_placement(placement)
    if isinstance(placement, str):
        root = math.sqrt(workers)
        rows = {
            "mem_opt": 1,
            "comm_opt": workers,
            "hybrid": min(divisors(workers), key=lambda divisor: abs(divisor - root)),
        }[placement]
        return Grid(workers, rows)
    wanted = max(1.0, workers * placement)
    rows = round(wanted)
    if abs(wanted - rows) > 1e-6 * workers or workers % rows:
        below = max(divisor for divisor in divisors(workers) if divisor <= wanted)
        above = min(divisor for divisor in divisors(workers) if divisor >= wanted)
        raise ValueError(
            f"Argument `placement` must be a fraction of the {workers} workers whose number "
            f"divides theirs; got {placement!r}, which is {wanted:g} of them. The nearest "
            f"fractions are {below}/{workers} = {below / workers:g} and {above}/{workers} = "
            f"{above / workers:g}."
        )
    return Grid(workers, rows)


def require_placement(placement: str | float) -> str | float:
    """Checks what is asked for, before the number of workers is known.

    Raises:
        ValueError: It is neither a name nor a fraction.
    """
    is_number = isinstance(placement, int | float) and not isinstance(placement, bool)
    if placement in NAMED or (is_number and 0.0 < float(placement) <= 1.0):
        return placement
    raise ValueError(
        "Argument `placement` must be 'comm_opt', 'hybrid', 'mem_opt' or a fraction of the workers "
        f"in (0, 1]; got {placement!r}."
    )


def divisors(number: int) -> list[int]:
    """All of them, ascending."""
    return [candidate for candidate in range(1, number + 1) if number % candidate == 0]


def place(grid: Grid, memory: Sequence[float], time: Sequence[float]) -> Placement:
    """Assigns blocks, the most expensive first, to the worker with the least so far.

    First to the column with the least work, then to the worker in it: so a column's share of the
    preconditioning is even as well.

    Args:
        grid: The workers.
        memory: What the factors and inverses of each block take (Σd²), which counts where every
            block has one worker (MEM-OPT).
        time: What each block's inverses take (Σd³), which counts everywhere else.
    """
    costs = memory if grid.rows == 1 else time
    loads = [0.0] * grid.workers
    owners = [0] * len(costs)
    for position in sorted(range(len(costs)), key=lambda each: (-costs[each], each)):
        column = min(range(grid.columns), key=lambda c: (sum(loads[w] for w in grid.column(c)), c))
        owner = min(grid.column(column), key=lambda worker: (loads[worker], worker))
        loads[owner] += costs[position]
        owners[position] = owner
    return Placement(grid, tuple(owners))
