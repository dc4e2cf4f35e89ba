"""The curves of the zoo: a row a problem, loss against updates and seconds."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np

from benchmarks.zoo.comparison import Comparison, Standing
from benchmarks.zoo.optimizers import NAMES

matplotlib.use("Agg")  # Writes files, opens no window.

POINTS = 200
"""Of a line."""


def plot(
    comparisons: Sequence[Comparison], path: pathlib.Path, target: float | None = None
) -> None:
    """Writes a PNG: the median of the seeds, and from the least to the greatest shaded.

    Args:
        comparisons: A row each.
        path: The file.
        target: Instead of the comparison's own.
    """
    from matplotlib import pyplot

    rows = len(comparisons)
    figure, panels = pyplot.subplots(
        rows, 2, figsize=(10, 3.2 * rows), squeeze=False, sharey="row", layout="constrained"
    )
    for comparison, row in zip(comparisons, panels, strict=True):
        for axes, key in zip(row, ("updates", "seconds"), strict=True):
            for standing in comparison.standings.values():
                _draw(axes, standing, key)
            reached = comparison.target if target is None else target
            if reached is not None:
                axes.axhline(reached, color="black", linewidth=0.8, linestyle=":")
            axes.set_yscale("log")
            axes.set_xlabel(key)
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel(f"{comparison.problem}: training loss")
    panels[0, -1].legend(frameon=False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _draw(axes: Any, standing: Standing, key: str) -> None:
    """One optimizer, as far as its shortest run goes."""
    curves = [run["curve"] for run in standing.runs if not run["diverged"]]
    if not curves:
        return
    x = np.linspace(
        max(curve[key][0] for curve in curves), min(curve[key][-1] for curve in curves), POINTS
    )
    losses = np.array([np.interp(x, curve[key], curve["losses"]) for curve in curves])
    color = f"C{NAMES.index(standing.name)}"
    width = 2.2 if standing.name == "KFAC" else 1.4
    style = "--" if standing.name == "AdamW" else "-"  # It often lies over Adam.
    axes.plot(
        x, np.median(losses, axis=0), style, label=standing.name, color=color, linewidth=width
    )
    axes.fill_between(x, losses.min(axis=0), losses.max(axis=0), color=color, alpha=0.15)
