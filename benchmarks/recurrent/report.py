"""Tables and curves of the recurrent networks."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from benchmarks import markdown
from benchmarks.recurrent.problems import FIRST_ORDER
from benchmarks.recurrent.trainings import Learnt
from benchmarks.zoo.report import spread


def table(learnt: Sequence[Learnt]) -> str:
    """A line an optimizer: loss at the end, updates and seconds to the best first-order loss.

    Args:
        learnt: Of all optimizers on one problem.
    """
    ends = {each.name: [float(curve[-1]) for curve in each.curves] for each in learnt}
    target = min(float(np.median(ends[name])) for name in FIRST_ORDER)
    rows = []
    for each in learnt:
        updates = [_first_below(curve, target) for curve in each.curves]
        seconds = [np.inf if np.isinf(n) else each.seconds[int(n) - 1] for n in updates]
        unseen = [np.inf if run["unseen"] is None else run["unseen"] for run in each.runs]
        rows.append(
            [
                each.name,
                f"{each.tuned:g}",
                spread(ends[each.name], ".3f", "diverged"),
                spread(unseen, ".3f", "diverged"),
                spread(updates, ".0f", "–"),
                spread(seconds, ".1f", "–"),
            ]
        )
    headings = [
        "optimizer",
        "tuned",
        "loss at the end",
        "loss on unseen data",
        "updates to the target",
        "seconds",
    ]
    title = f"Target: a loss of {target:.3f}, at which the better of Adam and SGD ends (median)."
    return f"{title}\n\n{markdown.table(headings, rows)}"


def _first_below(curve: np.ndarray, target: float) -> float:
    """Updates until the loss is at the target for the first time."""
    below = np.flatnonzero(curve <= target)
    return float(below[0] + 1) if len(below) else np.inf


def tables(found: Mapping[str, Sequence[Learnt]]) -> str:
    """A section a problem.

    Args:
        found: Problem → what each optimizer made of it.
    """
    return "\n\n".join(f"## {problem}\n\n{table(learnt)}" for problem, learnt in found.items())


def plot(found: Mapping[str, Sequence[Learnt]], path: pathlib.Path) -> None:
    """A row a problem: the median loss against updates and seconds, and the seeds' spread.

    Args:
        found: Problem → what each optimizer made of it.
        path: Of the picture.
    """
    figure = Figure(figsize=(10, 3.4 * len(found)), layout="constrained")
    panels = figure.subplots(len(found), 2, squeeze=False)
    for (problem, learnt), (left, right) in zip(found.items(), panels, strict=True):
        for each in learnt:
            curves = each.curves
            updates = np.arange(1, curves.shape[1] + 1)
            for axes, x in ((left, updates), (right, each.seconds)):
                (line,) = axes.plot(x, np.median(curves, axis=0), label=each.name, linewidth=1.6)
                axes.fill_between(
                    x, curves.min(axis=0), curves.max(axis=0), color=line.get_color(), alpha=0.15
                )
                axes.grid(alpha=0.3)
                axes.spines[["top", "right"]].set_visible(False)
        left.set(ylabel=f"{problem}: training loss", xlabel="updates")
        right.set_xlabel("seconds")
    panels[0, -1].legend(frameon=False)
    figure.savefig(path, dpi=120)
