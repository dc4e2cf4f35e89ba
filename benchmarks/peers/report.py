"""The tables of the peers, on a terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import rich.table
from rich.console import Console

from benchmarks.peers import measurements
from benchmarks.peers.contenders import CONTENDERS
from benchmarks.peers.measurements import Spread
from benchmarks.peers.problems import PROBLEMS
from benchmarks.zoo.report import spread
from benchmarks.zoo.results import Run

HEADINGS = (
    "optimizer",
    "step, s (min … max)",
    "÷ SGD of its own",
    "ours ÷ it (min … max)",
    "peak MB (training's)",
    "first step, s",
)


def grouped(runs: Sequence[Run], problem: str) -> dict[str, list[Run]]:
    """Contender → its runs on a problem, one a seed, in the usual order.

    Where there are runs of several plans, those of the longest count.
    """
    here = [run for run in runs if run["problem"] == problem]
    found = {}
    for name in CONTENDERS:
        own = [run for run in here if run["contender"] == name]
        if own:
            longest = max((run["plan"] for run in own), key=lambda plan: plan["rounds"])
            found[name] = [run for run in own if run["plan"] == longest]
    return found


def headings(runs: dict[str, list[Run]]) -> list[str]:
    """Of the columns; the last two tell where the curves are read."""
    every = [run for own in runs.values() for run in own]
    updates, seconds = (max(run["ends"][key] for run in every) for key in ("updates", "seconds"))
    return [*HEADINGS, f"loss after {updates} updates", f"loss after {seconds:.0f} s"]


def cells(name: str, runs: Sequence[Run]) -> list[str]:
    """A line of the table, of one contender on one problem."""
    error = next((run["error"] for run in runs if run["error"]), None)
    if error is not None and not runs[0]["seconds"]:
        return [name, f"cannot: {error}"]
    steps = measurements.seconds_of_step(runs)
    sgd, ours = measurements.to_sgd(runs), measurements.ours_to_it(runs)
    return [
        name if error is None else f"{name} (stopped: {error})",
        _median(steps, ".4f"),
        "–" if sgd is None else f"{sgd.median:.2f}",
        _median(ours, ".2f") + (f" ({CONTENDERS[name].against})" if ours else ""),
        _memory(runs),
        _first([run["first_step"] for run in runs], [run["compilation"] for run in runs]),
        _losses([measurements.after_updates(run) for run in runs], runs),
        _losses([measurements.after_seconds(run) for run in runs], runs),
    ]


def _memory(runs: Sequence[Run]) -> str:
    """Of the process, and how much of it came after framework and data; old files lack that."""
    whole = spread([run["megabytes"] for run in runs], ".0f", "–")
    taken = [run["megabytes"] - run.get("megabytes_before", 0.0) for run in runs]
    return f"{whole} ({np.median(taken):.0f})" if "megabytes_before" in runs[0] else whole


def _first(first: Sequence[float], later: Sequence[float]) -> str:
    """Seconds of the first step, and of compilation in later ones where there is some."""
    more = float(np.median(later))
    return spread(first, ".1f", "–") + (f" + {more:.1f} later" if more > 1.0 else "")


def _median(found: Spread | None, form: str) -> str:
    return "–" if found is None else spread(found.values, form, "–")


def _losses(found: Sequence[float | None], runs: Sequence[Run]) -> str:
    known = [loss for loss in found if loss is not None]
    if known:
        return spread(known, ".4g", "–")
    if any(run["diverged"] for run in runs):
        return "diverged"
    return f"– ({max(run['updates'] for run in runs)} updates made)"


def race(runs: dict[str, list[Run]]) -> list[str]:
    """A sentence for each of ours that gets to where an automatic peer ends."""
    sentences = []
    for name, own in runs.items():
        contender = CONTENDERS[name]
        if not contender.automatic or contender.peer == "tfkfac":
            continue
        for ours in (contender.against or "", "tfkfac default"):
            ratio = measurements.overtaken(own, runs.get(ours, []))
            if ratio is not None and np.isfinite(ratio.median):
                updates = max(run["updates"] for run in own)
                loss = _losses([run["curve"]["losses"][-1] for run in own], own)
                sentences.append(
                    f"Where {name} is after {updates} updates ({loss}), {ours} is in "
                    f"{_median(ratio, '.2f')} times the seconds."
                )
    return sentences


def versions(runs: dict[str, list[Run]]) -> str:
    """Of everything that took part."""
    found: dict[str, str] = {}
    for own in runs.values():
        for run in own:
            found |= run["versions"]
    return ", ".join(f"{name} {version}" for name, version in found.items())


def markdown(runs: Sequence[Run]) -> str:
    """A section a problem."""
    parts = []
    for problem in PROBLEMS.values():
        here = grouped(runs, problem.name)
        if not here:
            continue
        titles = headings(here)
        lines = [f"| {' | '.join(titles)} |", "|---" + "|--:" * (len(titles) - 1) + "|"]
        for name, own in here.items():
            row = cells(name, own)
            row += [""] * (len(titles) - len(row))
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |")
        table = "\n".join(lines)
        size = problem.training.batch_size
        title = f"## {problem.name}\n\nBatch {size}. {versions(here)}."
        parts += [title, table, *race(here)]
    return "\n\n".join(parts)


def show(runs: Sequence[Run], console: Console | None = None) -> None:
    """Prints a table a problem.

    Args:
        runs: All in the file.
        console: Where to.
    """
    console = console or Console(width=170)
    for problem in PROBLEMS.values():
        here = grouped(runs, problem.name)
        if not here:
            continue
        title = f"{problem.name}, batch {problem.training.batch_size}; {versions(here)}"
        table = rich.table.Table(title=title)
        for number, heading in enumerate(headings(here)):
            table.add_column(heading, justify="right" if number else "left")
        for name, own in here.items():
            row = cells(name, own)
            table.add_row(*row)
        console.print(table, *race(here), sep="\n")
