"""The deep MNIST autoencoder at batch 1000: how soon KFAC is where the best first-order run ends.

784-1000-500-250-30 and back, tanh, a linear code, the cross-entropy summed over the pixels. SGD
with Nesterov's momentum, Adam, AdamW and Muon are sifted, seven learning rates for 500 updates, and
the best two of each make 3000. The best of these runs sets the target: its smoothed loss at the
end. KFAC, without arguments, trains until it is there. Seconds are those in training steps; the
first step, which traces, counts as long as the second. Losses are means over the last 25 updates.
Runs are kept in OUTPUT.json as they end: started again, the program goes on where it was. The table
goes into OUTPUT.md, between two marks, the curves into OUTPUT.png.

    python -m benchmarks.autoencoder --data PATH_TO/mnist.npz --output docs/results/autoencoder
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import pathlib
from collections.abc import Sequence

import numpy as np

from benchmarks.zoo import report
from benchmarks.zoo.budget import Budget
from benchmarks.zoo.comparison import Comparison, Standing, first_at
from benchmarks.zoo.optimizers import CENTRES, rates
from benchmarks.zoo.plot import plot
from benchmarks.zoo.problems import PROBLEMS
from benchmarks.zoo.results import Results, Run
from benchmarks.zoo.runner import Runner
from benchmarks.zoo.training import Setting
from benchmarks.zoo.tuning import Get, best_rate, loss_at_end

PROBLEM = dataclasses.replace(PROBLEMS["mnist-autoencoder"], name="autoencoder", smoothing=25)
SEED = 0
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


def first_order(names: Sequence[str], lengths: Lengths, get: Get) -> dict[str, Run]:
    """Optimizer → its best run.

    Args:
        names: Of the optimizers.
        lengths: Of the runs.
        get: Trains.
    """
    whole, short = Budget(lengths.whole), Budget(lengths.sifted)
    found = {}
    for name in names:
        setting = Setting(PROBLEM.name, name, None, SEED, whole)
        rate = best_rate(setting, rates(PROBLEM, name), short, KEPT, get)
        found[name] = get(dataclasses.replace(setting, learning_rate=rate))
    return found


def all_runs(names: Sequence[str], lengths: Lengths, get: Get) -> dict[str, Run]:
    """The best run of every first-order optimizer, and KFAC's, until the best of them is reached.

    Args:
        names: Of the first-order optimizers.
        lengths: Of the runs.
        get: Trains.

    Raises:
        ValueError: All first-order runs diverged: there is nothing to reach.
    """
    runs = first_order(names, lengths, get)
    target = target_of(runs)
    budget = Budget(lengths.kfac, until=target, at_least=min(max(SHOWN), lengths.kfac))
    return {"KFAC": get(Setting(PROBLEM.name, "KFAC", None, SEED, budget)), **runs}


def target_of(runs: dict[str, Run]) -> float:
    """The lowest loss at which a first-order run ends.

    Raises:
        ValueError: All diverged.
    """
    target = min(loss_at_end(run) for name, run in runs.items() if name != "KFAC")
    if math.isinf(target):
        raise ValueError("All first-order runs diverged; use longer ones, or other optimizers.")
    return target


def table(runs: dict[str, Run]) -> str:
    """A line an optimizer, KFAC's share of updates and seconds, and its loss on the way."""
    target = target_of(runs)
    lines = [
        "| optimizer | learning rate | updates | loss at the end | loss evaluated | "
        "updates to the target | seconds to the target | seconds of the first step |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [_line(name, run, target) for name, run in runs.items()]
    best = min((name for name in runs if name != "KFAC"), key=lambda name: loss_at_end(runs[name]))
    kfac, other = (first_at(runs[name]["curve"], target) for name in ("KFAC", best))
    return "\n".join(
        [
            f"Target: a loss of {target:.4g}, at which the best first-order run ends ({best}).",
            "",
            *lines,
            "",
            _shares(best, kfac, other),
            "",
            _on_the_way(runs["KFAC"]),
        ]
    )


def _line(name: str, run: Run, target: float) -> str:
    rate = "–" if run["learning_rate"] is None else f"{run['learning_rate']:g}"
    updates, seconds = first_at(run["curve"], target)
    end = "diverged" if run["end"] is None else f"{run['end']:.4g}"
    evaluated = "–" if run["evaluated"] is None else f"{run['evaluated']:.4g}"
    reached = ["–", "–"] if math.isinf(updates) else [f"{updates:.0f}", f"{seconds:.1f}"]
    made = max(run["curve"]["updates"], default=0)
    cells = [name, rate, str(made), end, evaluated, *reached, f"{run['first_step']:.1f}"]
    return "| " + " | ".join(cells) + " |"


def _shares(best: str, kfac: tuple[float, float], other: tuple[float, float]) -> str:
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
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.autoencoder", description=(__doc__ or "").split("\n")[0]
    )
    add = parser.add_argument
    add("--data", type=pathlib.Path, required=True, help="mnist.npz, or the folder it is in")
    add("--output", type=pathlib.Path, default=pathlib.Path("autoencoder"), help="without a suffix")
    add("--optimizers", nargs="+", default=list(CENTRES), choices=CENTRES, help="first-order ones")
    chosen = parser.parse_args(arguments)
    folder = chosen.data.parent if chosen.data.suffix == ".npz" else chosen.data
    if chosen.data.suffix == ".npz" and chosen.data.name != PROBLEM.file:
        parser.error(f"--data {chosen.data}: the file must be called {PROBLEM.file}; rename it.")
    lengths = Lengths()
    try:
        results = Results(chosen.output.with_suffix(".json"))
        examples = PROBLEM.examples(folder)
    except ValueError as error:
        parser.error(str(error))
    planned = len(chosen.optimizers) * (7 * lengths.sifted + KEPT * lengths.whole) + lengths.kfac
    with Runner(results, planned) as runner:
        runs = all_runs(chosen.optimizers, lengths, runner.get(PROBLEM, examples))
    text = table(runs)
    print(text)
    report.write_page(chosen.output.with_suffix(".md"), text)
    standings = {name: Standing(name, [run]) for name, run in runs.items()}
    plot([Comparison(PROBLEM.name, standings)], chosen.output.with_suffix(".png"), target_of(runs))
    print(f"\nWritten: {chosen.output}.json, {chosen.output}.md, {chosen.output}.png")


if __name__ == "__main__":
    main()
