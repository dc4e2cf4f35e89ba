"""Draws docs/placement.png: the grid of workers, and the stages of a step.

python tools/draw_placement.py docs/placement.png
"""

from __future__ import annotations

import sys

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from tfkfac.distribution.placement import Grid

WORKERS, ROWS, OWNER = 8, 2, 1
GREEN, BLUE, ORANGE, GREY = "tab:green", "tab:blue", "tab:orange", "0.45"

STAGES = (
    ("passes", "own share of the batch", GREY, "every worker"),
    ("sums of gradients", "all ↔ all", BLUE, "every step"),
    ("sums of A and G", "all → owner", BLUE, "every factor_update_every"),
    ("inverses", "by the owner", GREEN, "every inverse_update_every"),
    ("inverses on their way", "owner → its column", GREEN, "every inverse_update_every"),
    ("preconditioning", "by the gradient workers", ORANGE, "every step"),
    ("directions on their way", "gradient workers → their rows", ORANGE, "every step"),
    ("step", "α, μ, ν the same everywhere", GREY, "every worker"),
)


def main(path: str) -> None:
    """Draws both parts side by side."""
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.15])
    draw_grid(left, Grid(WORKERS, ROWS))
    draw_stages(right)
    figure.savefig(path, dpi=110)


def draw_grid(axes: Axes, grid: Grid) -> None:
    """The workers, and what they send of one layer."""
    column = grid.column(grid.column_of(OWNER))
    places = {w: (w % grid.columns, -(w // grid.columns)) for w in range(grid.workers)}
    for worker, (x, y) in places.items():
        color = GREEN if worker == OWNER else ORANGE if worker in column else "0.85"
        box = FancyBboxPatch((1.6 * x - 0.3, 1.6 * y - 0.25), 0.6, 0.5, "round,pad=0.08", fc=color)
        axes.add_patch(box)
        axes.text(1.6 * x, 1.6 * y, str(worker), ha="center", va="center", fontsize=13)

    def arrow(start: int, end: int, color: str, bend: float) -> None:
        ends = [(1.6 * x, 1.6 * y) for x, y in (places[start], places[end])]
        axes.add_patch(
            FancyArrowPatch(
                *ends,
                arrowstyle="-|>",
                mutation_scale=16,
                color=color,
                linewidth=1.8,
                shrinkA=26,
                shrinkB=26,
                connectionstyle=f"arc3,rad={bend}",
            )
        )

    for worker in column:
        if worker != OWNER:
            arrow(OWNER, worker, GREEN, 0.0)
    for worker in column:
        row = next(row for row in grid.all_rows if worker in row)
        for other in row:
            if other != worker:
                arrow(worker, other, ORANGE, 0.45 if other > worker else -0.45)
    axes.set_title(f"{grid.workers} workers in {grid.rows} rows; a layer that worker {OWNER} owns")
    axes.text(2.4, -2.5, "green: owner, and the inverse to its column", ha="center", color=GREEN)
    axes.text(2.4, -2.8, "orange: directions to the rows, in every step", ha="center", color=ORANGE)
    axes.set(xlim=(-0.8, 5.6), ylim=(-3.0, 1.1))
    axes.axis("off")


def draw_stages(axes: Axes) -> None:
    """What happens in a step, from top to bottom."""
    for position, (name, how, color, when) in enumerate(STAGES):
        y = -position
        box = FancyBboxPatch((0, y - 0.3), 2.6, 0.6, "round,pad=0.05", fc=color, alpha=0.35)
        axes.add_patch(box)
        axes.text(1.3, y, name, ha="center", va="center", fontsize=11)
        axes.text(2.85, y, how, va="center", fontsize=10)
        axes.text(6.1, y, when, va="center", fontsize=9, color="0.3")
    axes.set_title("The stages of a step")
    axes.set(xlim=(-0.2, 9.2), ylim=(-len(STAGES) + 0.3, 0.7))
    axes.axis("off")


if __name__ == "__main__":
    main(*sys.argv[1:])
