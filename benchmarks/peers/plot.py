"""The curves of the peers, and what their steps take: a row a problem."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np

from benchmarks.peers.contenders import CONTENDERS
from benchmarks.peers.measurements import seconds_of_step
from benchmarks.peers.problems import PROBLEMS
from benchmarks.peers.report import grouped
from benchmarks.zoo.results import Run

matplotlib.use("Agg")  # Writes files, opens no window.

COLORS = {"tfkfac": "C0", "keras": "C7", "kfac-jax": "C1", "kfac-pytorch": "C2"}
"""Peer → color; the lines of one peer differ in their dashes."""

DASHES = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)))


def plot(runs: Sequence[Run], path: pathlib.Path) -> None:
    """Writes a PNG: loss against updates, loss against seconds, seconds of a step.

    Args:
        runs: All in the file.
        path: Of the picture.
    """
    from matplotlib import pyplot

    rows = {name: grouped(runs, name) for name in PROBLEMS}
    rows = {name: here for name, here in rows.items() if here}
    if not rows:
        return
    figure, panels = pyplot.subplots(
        len(rows), 3, figsize=(16, 4.2 * len(rows)), squeeze=False, layout="constrained"
    )
    for (name, here), row in zip(rows.items(), panels, strict=True):
        styles = _styles(here)
        for axes, key in zip(row[:2], ("updates", "seconds"), strict=True):
            _curves(axes, here, key, styles)
        row[0].set_ylabel(f"{name}: training loss")
        row[0].legend(fontsize=6, framealpha=0.9, edgecolor="none")
        _bars(row[2], here)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _styles(here: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
    """Contender → color and dashes."""
    found: dict[str, tuple[str, Any]] = {}
    for name in here:
        color = COLORS[CONTENDERS[name].peer]
        before = sum(color == other for other, _ in found.values())
        found[name] = (color, DASHES[before % len(DASHES)])
    return found


def _curves(
    axes: Any,
    here: Mapping[str, Sequence[Run]],
    key: str,
    styles: Mapping[str, tuple[str, Any]],
) -> None:
    """The first seed of every contender, as far as all others go."""
    for name, own in here.items():
        curve = own[0]["curve"]
        if len(curve[key]) > 1:
            color, dashes = styles[name]
            axes.plot(
                curve[key],
                curve["losses"],
                label=name,
                color=color,
                linestyle=dashes,
                linewidth=1.4,
            )
    axes.set_xlim(0, max(run["ends"][key] for own in here.values() for run in own) or None)
    axes.set_yscale("log")
    axes.set_xlabel(key)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _bars(axes: Any, here: Mapping[str, Sequence[Run]]) -> None:
    """The median of the rounds, from the least to the greatest."""
    found = {name: seconds_of_step(own) for name, own in here.items()}
    known = {name: steps for name, steps in found.items() if steps is not None}
    positions = np.arange(len(known))
    medians = np.array([steps.median for steps in known.values()])
    ends = np.array([[min(steps.values), max(steps.values)] for steps in known.values()]).T
    colors = [COLORS[CONTENDERS[name].peer] for name in known]
    errors = np.abs(ends - medians) if len(known) else None
    axes.barh(positions, medians, xerr=errors, color=colors, capsize=3)
    axes.set_yticks(positions, list(known), fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("seconds a step")
    if len(known) and medians.max() > 20 * medians.min():
        axes.set_xscale("log")
    axes.spines[["top", "right"]].set_visible(False)
