"""KFAC against kfac-jax, kfac-pytorch and Keras' own optimizers, in alternating blocks of steps.

All begin with the same weights and see the same batches; only one computes at a time. K-FACs make
the same updates of factors and inverses, with the same fixed hyper-parameters ("fixed") or with
those they find themselves ("auto"); "tfkfac default" is KFAC without arguments. Peers run in
environments of their own, made when they are first needed. Nothing else should be running.
Measurements are kept in OUTPUT.json as an alternation ends: started again, the program makes those
that are missing. The tables go into OUTPUT.md, between two marks, the pictures into OUTPUT.png.

    python -m benchmarks.peers --data FOLDER --output docs/results/peers

Needs: mnist.npz, cifar10.npz and ptb; network for the environments; about an hour.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence

import rich.progress

from benchmarks.command_line import parser_of, positive_integer, positive_number, start
from benchmarks.peers import report
from benchmarks.peers.alternation import Plan
from benchmarks.peers.contenders import CONTENDERS, PEERS, contenders_of
from benchmarks.peers.measurements import Setting
from benchmarks.peers.plot import plot
from benchmarks.peers.problems import PROBLEMS
from benchmarks.peers.session import Interpreters, companions, measure, missing
from benchmarks.zoo.data import require_file
from benchmarks.zoo.report import require_place, write_page
from benchmarks.zoo.results import Results

QUICK = {"rounds": 2, "steps": 5}
ENVIRONMENTS = pathlib.Path("~/.cache/tfkfac/peers")


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line and runs.

    Args:
        arguments: Of the command line.
    """
    parser = _parser()
    chosen = parser.parse_args(arguments)
    if chosen.quick:
        chosen.problems = ["autoencoder"]
    try:
        lengths = {"rounds": chosen.rounds, "steps": chosen.steps}
        plan = Plan(
            **(QUICK if chosen.quick else lengths), limit=chosen.limit, minutes=chosen.minutes
        )
        settings = [
            Setting(problem, contender, seed, plan)
            for problem in chosen.problems
            for seed in range(chosen.seeds)
            for contender in contenders_of(PROBLEMS[problem], chosen.peers, quick=chosen.quick)
            if contender in chosen.contenders
        ]
        results = Results(chosen.output.with_suffix(".json"))
        require_place(chosen.output.with_suffix(".md"))
        wanted = missing(settings, results)
        for setting in wanted:
            file = PROBLEMS[setting.problem].training.file
            if file is not None:
                require_file(chosen.data, file)
    except ValueError as error:
        parser.error(str(error))
    requirements = {"kfac-pytorch": (chosen.kfac_pytorch, "torch==2.13.0", "numpy")}
    interpreters = Interpreters(chosen.environments.expanduser(), requirements)
    run(wanted, interpreters, results, chosen.data)
    report.show(results.runs)
    write_page(chosen.output.with_suffix(".md"), report.markdown(results.runs))
    plot(results.runs, chosen.output.with_suffix(".png"))
    print(f"\nWritten: {chosen.output}.json, {chosen.output}.md, {chosen.output}.png")


def run(
    wanted: Sequence[Setting],
    interpreters: Interpreters,
    results: Results,
    folder: pathlib.Path | None,
) -> None:
    """An alternation for each problem and seed of which something is missing.

    Args:
        wanted: What is missing.
        interpreters: What runs the workers.
        results: The file.
        folder: Of the data.
    """
    sessions: dict[tuple[str, int], list[Setting]] = {}
    for setting in wanted:
        sessions.setdefault((setting.problem, setting.seed), []).append(setting)
    blocks = {
        key: len(companions([setting.contender for setting in session])) * session[0].plan.rounds
        for key, session in sessions.items()
    }
    columns = (
        "{task.description}",
        rich.progress.BarColumn(),
        rich.progress.TaskProgressColumn(),
        rich.progress.TimeElapsedColumn(),
    )
    with rich.progress.Progress(*columns) as bar:
        task = bar.add_task("starting", total=sum(blocks.values()))
        done = 0
        for key, session in sessions.items():
            problem = PROBLEMS[key[0]]
            label = f"{problem.name}, seed {key[1]}"
            bar.update(task, description=f"{label}: starting")

            def advance(name: str, label: str = label) -> None:
                bar.update(task, description=f"{label}: {name}", advance=1)

            examples = problem.training.examples(folder)
            measure(problem, examples, session, interpreters, results, advance)
            done += blocks[key]
            bar.update(task, completed=done)  # Those that could not begin, too.


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(
        "peers",
        __doc__,
        quick="the autoencoder, few rounds, no automatic ones",
        data="folder with mnist.npz, cifar10.npz and ptb/",
        seeds=1,
    )
    add = parser.add_argument
    add("--problems", nargs="+", default=list(PROBLEMS), choices=PROBLEMS, metavar="NAME")
    add("--peers", nargs="+", default=list(PEERS), choices=PEERS, help="default: all")
    add(
        "--contenders",
        nargs="+",
        default=list(CONTENDERS),
        choices=CONTENDERS,
        metavar="NAME",
        help='only these of the peers\' optimizers, e.g. "kfac-jax auto", beside which those run '
        "that they are compared with",
    )
    add(
        "--rounds",
        type=positive_integer,
        default=10,
        help="blocks of each contender; the last half counts",
    )
    add("--steps", type=positive_integer, default=20, help="steps of a block")
    add(
        "--limit",
        type=positive_number,
        default=120.0,
        help="seconds of one contender's steps, at most",
    )
    add("--minutes", type=positive_number, default=60.0, help="of one alternation, at most")
    add(
        "--environments",
        type=pathlib.Path,
        default=ENVIRONMENTS,
        help=f"folder of the peers' virtual environments (default: {ENVIRONMENTS})",
    )
    add("--kfac-pytorch", default="kfac-pytorch", help="what pip installs of it, e.g. a folder")
    return parser


if __name__ == "__main__":
    start(main)
