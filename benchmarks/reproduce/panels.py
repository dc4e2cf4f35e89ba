"""Pictures of experiments: panels with lines."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

Line = tuple[Sequence[float], Sequence[float]]


@dataclasses.dataclass(frozen=True)
class Panel:
    """Lines over one axis.

    Attributes:
        x: What the axis to the right is.
        y: What the axis upwards is.
        lines: Label → positions.
        x_scale: "linear" or "log".
        y_scale: "linear" or "log".
        marker: Of points; by default the last of a line alone has one. Where all have some, a
            logarithmic axis names them, and what is not finite is a cross at the upper edge: it
            diverged.
        styles: Label → number of the colour and style of the line, where the usual ones do not do.
    """

    x: str
    y: str
    lines: Mapping[str, Line]
    x_scale: str = "linear"
    y_scale: str = "log"
    marker: str = ""
    styles: Mapping[str, tuple[int, str]] = dataclasses.field(default_factory=dict)


def figure_of(panels: Sequence[Panel], columns: int = 3) -> Figure:
    """All panels, row by row; the same label has the same colour, and stands where it is new."""
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.4 * columns, 3.6 * rows), layout="constrained")
    labels = list(dict.fromkeys(label for panel in panels for label in panel.lines))
    shown: set[str] = set()
    places = np.ravel(figure.subplots(rows, columns, squeeze=False))
    for axes, panel in zip(places, panels, strict=False):
        for label, (x, y) in panel.lines.items():
            number, style = panel.styles.get(label, (labels.index(label), "-"))
            marks = {"markevery": None if panel.marker else [-1], "markersize": 4}
            marks |= {"marker": panel.marker or "o", "color": f"C{number % 10}"}
            axes.plot(x, y, style, label=label, **marks)
        axes.set(xlabel=panel.x, ylabel=panel.y, xscale=panel.x_scale, yscale=panel.y_scale)
        if panel.marker:
            _cross_diverged(axes, panel.lines.values())
        if panel.marker and panel.x_scale == "log":
            _name_values(axes, panel.lines.values())
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if not set(panel.lines) <= shown:
            axes.legend(framealpha=0.5, edgecolor="none", fontsize="small")
        shown |= set(panel.lines)
    for axes in places[len(panels) :]:
        axes.set_visible(False)
    return figure


def _cross_diverged(axes: Axes, lines: Iterable[Line]) -> None:
    values = sorted({value for x, y in lines for value in np.asarray(x)[~np.isfinite(y)]})
    if values:
        edge = axes.get_xaxis_transform()
        heights = [0.97] * len(values)
        axes.plot(values, heights, "x", color="0.3", transform=edge, label="diverged")


def _name_values(axes: Axes, lines: Iterable[Line]) -> None:
    """A tick to the right for each value, also of one without a point (it diverged)."""
    values = sorted({value for x, _ in lines for value in x})
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(values, [f"{value:g}" for value in values])


def line_of(run: Mapping[str, Any], x: str, y: str = "loss") -> Line:
    """What was seen of a training: one quantity against another."""
    seen = [look for look in run["looks"] if look.get(y) is not None]
    return [look[x] for look in seen], [look[y] for look in seen]
