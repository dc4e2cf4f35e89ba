"""KFAC without arguments against tuned SGD, Adam, AdamW and Muon, on ten problems with real data.

A first-order optimizer has the best of seven learning rates: all are tried for a quarter of the
time, the best three for the whole. KFAC runs as it is. The results are from three seeds. Seconds
are those in training steps; the first step, which traces, counts as long as the second. Nothing
else should be running. Runs are kept in OUTPUT.json as they end: started again, the program goes on
where it was. The tables go into OUTPUT.md, between two marks, the curves into OUTPUT.png.

    python -m benchmarks.zoo --data FOLDER --output docs/results/defaults

Needs: a folder with mnist.npz, cifar10.npz and ptb/; about three hours. Three of the ten problems
need no data.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.command_line import parser_of, positive_number, start
from benchmarks.zoo import report, tuning
from benchmarks.zoo.comparison import compare
from benchmarks.zoo.optimizers import NAMES
from benchmarks.zoo.plot import plot
from benchmarks.zoo.problems import PROBLEMS
from benchmarks.zoo.results import Results
from benchmarks.zoo.runner import TRIES, budget_of, missing, run_all


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line and runs.

    Args:
        arguments: Of the command line.
    """
    parser = parser_of(
        "zoo",
        __doc__,
        data="folder with mnist.npz, cifar10.npz and ptb/",
        seeds=len(tuning.SEEDS),
        quick="one seed of digits-mlp, half a second a training",
    )
    add = parser.add_argument
    add("--optimizers", nargs="+", default=list(NAMES), choices=NAMES, metavar="NAME")
    add("--problems", nargs="+", default=list(PROBLEMS), choices=PROBLEMS, metavar="NAME")
    add(
        "--seconds",
        type=positive_number,
        default=30.0,
        help="of one training, at most (default: 30)",
    )
    chosen = parser.parse_args(arguments)
    if chosen.quick:
        chosen.problems, chosen.seconds, chosen.seeds = ["digits-mlp"], 0.5, 1
    problems, seeds = [PROBLEMS[name] for name in chosen.problems], range(chosen.seeds)
    try:
        budgets = {problem.name: budget_of(problem, chosen.seconds) for problem in problems}
        results = Results(chosen.output.with_suffix(".json"))
        report.require_place(chosen.output.with_suffix(".md"))
        work = missing(problems, chosen.optimizers, budgets, results, chosen.data, seeds)
    except ValueError as error:
        parser.error(str(error))
    if work:
        tries = 1 if chosen.quick else TRIES
        run_all(work, budgets, results, chosen.data, seeds, tries)
    every = [
        compare(results.runs, problem.name, budget_of(problem, chosen.seconds))
        for problem in PROBLEMS.values()
    ]
    compared = [each for each in every if each.standings]
    tables = report.tables(compared)
    print(tables)
    report.write_page(chosen.output.with_suffix(".md"), tables)
    plot(compared, chosen.output.with_suffix(".png"))
    print(f"\nWritten: {chosen.output}.json, {chosen.output}.md, {chosen.output}.png")


if __name__ == "__main__":
    start(main)
