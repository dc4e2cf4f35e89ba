"""The tables of the zoo, in Markdown, and the page that they are put into."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np

from benchmarks.zoo.comparison import Comparison, Ratio, Standing

BEGIN, END = "<!-- begin table -->", "<!-- end table -->"

NEW_PAGE = f"""# Results

{BEGIN}
{END}
"""


def overview(comparisons: Sequence[Comparison]) -> str:
    """A line a problem: KFAC against the best first-order optimizer; and how often KFAC wins."""
    compared = [each for each in comparisons if each.target is not None]
    lines = [
        "| problem | target | updates: KFAC | best other | ratio | seconds: KFAC | best other | "
        "ratio | loss at the end: KFAC | best other | ratio |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for each in compared:
        cells = [
            *_cells(each.updates(), ".0f"),
            *_cells(each.seconds(), ".1f"),
            *_cells(each.ends(), ".4g"),
        ]
        lines.append(f"| {each.problem} | {each.target:.4g} | {' | '.join(cells)} |")
    updates = sum(each.updates().wins for each in compared)
    seconds = sum(each.seconds().wins for each in compared)
    ends = sum(each.ends().wins for each in compared)
    return "\n".join(lines) + (
        f"\n\nOf {len(compared)} problems, KFAC needs fewer updates in {updates} and fewer seconds "
        f"in {seconds}; in {ends} it ends lower."
    )


def _cells(ratio: Ratio, form: str) -> list[str]:
    value = "–" if np.isnan(ratio.value) else f"{ratio.value:.2f}"
    value = f"**{value}**" if ratio.wins else value
    return [_number(ratio.kfac, form), f"{_number(ratio.other, form)} ({ratio.name})", value]


def details(comparison: Comparison) -> str:
    """A line an optimizer."""
    target = comparison.target
    lines = [
        "| optimizer | learning rate | updates made | first step, s | updates to the target | "
        "seconds to the target | loss at the end | loss evaluated |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [_line(standing, target) for standing in comparison.standings.values()]
    if target is None:
        return "\n".join(lines)
    return f"Target: a loss of {target:.4g}.\n\n" + "\n".join(lines)


def _line(standing: Standing, target: float | None) -> str:
    runs = standing.runs
    rate = "–" if standing.learning_rate is None else f"{standing.learning_rate:g}"
    updates, seconds = ([], []) if target is None else standing.to(target)
    cells = [
        standing.name,
        rate + (" (edge)" if standing.at_the_edge else ""),
        f"{np.median([max(run['curve']['updates'], default=0) for run in runs]):.0f}",
        f"{np.median([run['first_step'] for run in runs]):.1f}",
        spread(updates, ".0f", "–"),
        spread(seconds, ".1f", "–"),
        spread(standing.ends, ".4g", "diverged"),
        spread(standing.evaluated, ".4g", "diverged"),
    ]
    return "| " + " | ".join(cells) + " |"


def spread(values: Sequence[float], form: str, infinite: str) -> str:
    """Median (least … greatest); one text if all are the same.

    Args:
        values: Of the seeds.
        form: Of a number.
        infinite: What stands for one that is infinite.
    """
    if not values:
        return "–"
    middle, low, high = (
        _number(float(of(values)), form, infinite) for of in (np.median, np.min, np.max)
    )
    return middle if low == high else f"{middle} ({low} … {high})"


def _number(value: float, form: str, infinite: str = "–") -> str:
    return format(value, form) if np.isfinite(value) else infinite


def tables(comparisons: Sequence[Comparison]) -> str:
    """Everything: the overview, and a table a problem."""
    parts = [f"## {each.problem}\n\n{details(each)}" for each in comparisons if each.standings]
    if any(each.target is not None for each in comparisons):
        parts.insert(0, overview(comparisons))
    return "\n\n".join(parts)


def require_place(path: pathlib.Path) -> str:
    """The page with a place for tables, a new one if there is none yet.

    Args:
        path: The page.

    Raises:
        ValueError: It has no place for them.
    """
    page = path.read_text() if path.exists() else NEW_PAGE
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise ValueError(
            f"{path} has no place for the tables; put the lines {BEGIN} and {END} where they "
            "belong, once, or name another file by --output."
        )
    return page


def write_page(path: pathlib.Path, text: str) -> None:
    """Puts the tables between the marks of a page, which is made if it is not there.

    Args:
        path: The page.
        text: The tables.

    Raises:
        ValueError: The page has no place for them.
    """
    page = require_place(path)
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")
