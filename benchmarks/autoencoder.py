"""The deep MNIST autoencoder at batch 1000: how soon KFAC is where the best first-order run ends.

784-1000-500-250-30 and back, tanh, a linear code, the cross-entropy summed over the pixels. SGD
with Nesterov's momentum, Adam, AdamW and Muon are sifted, seven learning rates for 500 updates, and
the best two of each make 3000. The best of these runs sets the target: its smoothed loss at the
end. KFAC, without arguments, trains until it is there. Seconds are those in training steps; the
first step, which traces, counts as long as the second. Losses are means over the last 25 updates.
Runs are kept in OUTPUT.json as they end: started again, the program goes on where it was. The table
goes into OUTPUT.md, between two marks, the curves into OUTPUT.png.

    python -m benchmarks.autoencoder --data PATH_TO/mnist.npz --output docs/results/autoencoder

Needs: mnist.npz; about two hours.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Sequence

import numpy as np

from benchmarks.command_line import parser_of, start
from benchmarks.zoo import report
from benchmarks.zoo.budget import Budget
from benchmarks.zoo.comparison import Comparison, Standing
from benchmarks.zoo.optimizers import CENTRES, rates
from benchmarks.zoo.plot import plot
from benchmarks.zoo.problems import PROBLEMS
from benchmarks.zoo.results import Results, Run
from benchmarks.zoo.runner import TRIES, Runner
from benchmarks.zoo.training import Setting
from benchmarks.zoo.tuning import Get, best_rate

PROBLEM = dataclasses.replace(PROBLEMS["mnist-autoencoder"], name="autoencoder", smoothing=25)
KEPT = 2
"""Learning rates of each optimizer that make the whole run."""
SHOWN = (100, 200, 300)
"""Updates at which KFAC's loss is told; it makes as many even if it is at the target before."""


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Updates of the runs.

    Attributes:
        sifted: Of every learning rate.
        whole: Of the best learning rates.
        kfac: Of KFAC, at most.
    """

    sifted: int = 500
    whole: int = 3000
    kfac: int = 1500


def first_order(
    names: Sequence[str], lengths: Lengths, get: Get, seeds: Sequence[int]
) -> dict[str, Standing]:
    """Optimizer → the runs with its best rate.

    Args:
        names: Of the optimizers.
        lengths: Of the runs.
        get: Trains.
        seeds: The first of them tunes.
    """
    whole, short = Budget(lengths.whole), Budget(lengths.sifted)
    found = {}
    for name in names:
        setting = Setting(PROBLEM.name, name, None, seeds[0], whole)
        rate = best_rate(setting, rates(PROBLEM, name), short, KEPT, get)
        best = [dataclasses.replace(setting, learning_rate=rate, seed=seed) for seed in seeds]
        found[name] = Standing(name, [get(each) for each in best])
    return found


def all_runs(
    names: Sequence[str], lengths: Lengths, get: Get, seeds: Sequence[int] = (0,)
) -> dict[str, Standing]:
    """The best runs of every first-order optimizer, and KFAC's, until the best is reached.

    Args:
        names: Of the first-order optimizers.
        lengths: Of the runs.
        get: Trains.
        seeds: Of each optimizer.

    Raises:
        ValueError: All first-order runs diverged: there is nothing to reach.
    """
    found = first_order(names, lengths, get, seeds)
    budget = Budget(lengths.kfac, until=target_of(found), at_least=min(max(SHOWN), lengths.kfac))
    kfac = [get(Setting(PROBLEM.name, "KFAC", None, seed, budget)) for seed in seeds]
    return {"KFAC": Standing("KFAC", kfac), **found}


def target_of(standings: dict[str, Standing]) -> float:
    """The lowest loss at which first-order runs end, the median of the seeds.

    Raises:
        ValueError: All diverged.
    """
    target = min(median_end(each) for name, each in standings.items() if name != "KFAC")
    if math.isinf(target):
        raise ValueError("All first-order runs diverged; use longer ones, or other optimizers.")
    return target


def median_end(standing: Standing) -> float:
    """The loss at the end, the median of the seeds."""
    return float(np.median(standing.ends))


def table(standings: dict[str, Standing]) -> str:
    """A line an optimizer, KFAC's share of updates and seconds, and its loss on the way."""
    target = target_of(standings)
    lines = [
        "| optimizer | learning rate | updates | loss at the end | loss evaluated | "
        "updates to the target | seconds to the target | seconds of the first step |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [_line(each, target) for each in standings.values()]
    others = [name for name in standings if name != "KFAC"]
    best = min(others, key=lambda name: median_end(standings[name]))
    kfac, other = (np.median(standings[name].to(target), axis=1) for name in ("KFAC", best))
    return "\n".join(
        [
            f"Target: a loss of {target:.4g}, at which the best first-order run ends ({best}).",
            "",
            *lines,
            "",
            _shares(best, kfac, other),
            "",
            _on_the_way(standings["KFAC"].runs[0]),
        ]
    )


def _line(standing: Standing, target: float) -> str:
    runs = standing.runs
    updates, seconds = standing.to(target)
    cells = [
        standing.name,
        "–" if standing.learning_rate is None else f"{standing.learning_rate:g}",
        f"{np.median([max(run['curve']['updates'], default=0) for run in runs]):.0f}",
        report.spread(standing.ends, ".4g", "diverged"),
        report.spread(standing.evaluated, ".4g", "–"),
        report.spread(updates, ".0f", "–"),
        report.spread(seconds, ".1f", "–"),
        f"{np.median([run['first_step'] for run in runs]):.1f}",
    ]
    return "| " + " | ".join(cells) + " |"


def _shares(best: str, kfac: Sequence[float], other: Sequence[float]) -> str:
    if math.isinf(kfac[0]):
        return "KFAC does not reach it."
    updates, seconds = (b / max(a, 1e-9) for a, b in zip(kfac, other, strict=True))
    return f"{best} takes {updates:.2f} times KFAC's updates, and {seconds:.2f} times its seconds."


def _on_the_way(run: Run) -> str:
    """KFAC's smoothed loss after a few updates."""
    curve = run["curve"]
    made = max(curve["updates"], default=0)
    losses = [
        f"{np.interp(shown, curve['updates'], curve['losses']):.4g} after {shown}"
        for shown in SHOWN
        if shown <= made
    ]
    return f"KFAC's loss: {', '.join(losses)} updates." if losses else ""


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line and runs.

    Args:
        arguments: Of the command line.
    """
    parser = parser_of(
        "autoencoder",
        __doc__,
        data="mnist.npz, or the folder it is in",
        seeds=1,
        quick="SGD alone, 5 updates at each rate and 15 at the best two",
    )
    add = parser.add_argument
    add("--optimizers", nargs="+", default=list(CENTRES), choices=CENTRES, help="first-order ones")
    chosen = parser.parse_args(arguments)
    data: pathlib.Path | None = chosen.data
    named = data is not None and data.suffix == ".npz"
    folder = data.parent if data is not None and named else data
    if data is not None and named and data.name != PROBLEM.file:
        parser.error(f"--data {chosen.data}: the file must be called {PROBLEM.file}; rename it.")
    lengths = Lengths()
    if chosen.quick:
        chosen.optimizers, lengths = ["SGD"], Lengths(5, 15, 15)
    try:
        results = Results(chosen.output.with_suffix(".json"))
        report.require_place(chosen.output.with_suffix(".md"))
        examples = PROBLEM.examples(folder)
    except ValueError as error:
        parser.error(str(error))
    each = 7 * lengths.sifted + (KEPT + chosen.seeds - 1) * lengths.whole
    planned = len(chosen.optimizers) * each + chosen.seeds * lengths.kfac
    with Runner(results, planned, tries=1 if chosen.quick else TRIES) as runner:
        get = runner.get(PROBLEM, examples)
        standings = all_runs(chosen.optimizers, lengths, get, range(chosen.seeds))
    text = table(standings)
    print(text)
    report.write_page(chosen.output.with_suffix(".md"), text)
    comparison = Comparison(PROBLEM.name, standings)
    plot([comparison], chosen.output.with_suffix(".png"), target_of(standings))
    print(f"\nWritten: {chosen.output}.json, {chosen.output}.md, {chosen.output}.png")


if __name__ == "__main__":
    start(main)
