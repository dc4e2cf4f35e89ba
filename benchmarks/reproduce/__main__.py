"""The experiments of K-FAC's papers, as far as they fit two cores: martens, ulbaek, kaisa, osawa.

Each makes its trainings, keeps them in OUTPUT.json as they end (started again, it goes on where it
was), puts its tables into OUTPUT.md, between two marks, and its curves into OUTPUT.png. NAME in
OUTPUT stands for the experiment.

    python -m benchmarks.reproduce martens kaisa --data FOLDER --output docs/results/NAME

The papers' recurrent networks have a benchmark of their own, ``benchmarks.recurrent``, and so have
rates of convergence against batch sizes, ``benchmarks.batch_size``.

Needs: a folder with mnist.npz and cifar10.npz; keras-tuner for ulbaek, Horovod for osawa; 20 to 40
minutes each.
"""

from __future__ import annotations

import importlib
import pathlib
import textwrap
from collections.abc import Sequence

from benchmarks.command_line import parser_of, start
from benchmarks.reproduce.experiment import Experiment, Laboratory
from benchmarks.reproduce.trials import train
from benchmarks.zoo import data, report
from benchmarks.zoo.results import Results
from benchmarks.zoo.runner import TRIES, Runner

NAMES = ("martens", "ulbaek", "kaisa", "osawa")


def experiment(name: str) -> Experiment:
    """One of them; each is in a file of its name."""
    return importlib.import_module(f"benchmarks.reproduce.{name}").EXPERIMENT


def listed() -> str:
    """All experiments, as ``--help`` shows them."""
    found = {name: experiment(name) for name in NAMES}
    return "; ".join(f"{name}: {each.what}, {each.minutes:.0f} min" for name, each in found.items())


def conduct(
    name: str,
    output: pathlib.Path,
    folder: pathlib.Path | None,
    seeds: int,
    quick: bool,
) -> None:
    """Makes an experiment, and writes what it found.

    Args:
        name: Of the experiment.
        output: Files to write, without a suffix.
        folder: Of the data.
        seeds: Of what is compared in the end.
        quick: Whether to see that it works is enough.

    Raises:
        ValueError: A file is missing, or OUTPUT.json holds something else.
    """
    chosen = experiment(name)
    for file in chosen.files:
        data.require_file(folder, file)
    minutes = chosen.quick_minutes if quick else chosen.minutes
    print(
        f"{name}: {chosen.what}; about {minutes:g} minutes on two quiet cores, less what is in "
        f"{output}.json already.",
        flush=True,
    )
    results = Results(output.with_suffix(".json"))
    report.require_place(output.with_suffix(".md"))
    tries = 1 if quick else TRIES
    with Runner(results, 60 * minutes, tries=tries, trained=train) as runner:
        findings = chosen.conduct(Laboratory(folder, seeds, quick, runner, results))
    text = f"{findings.tables}\n\n![What {name} found]({output.name}.png)"
    print(text)
    report.write_page(output.with_suffix(".md"), text)
    findings.figure.savefig(output.with_suffix(".png"), dpi=110)
    print(f"\nWritten: {output}.json, {output}.md, {output}.png")


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line and runs.

    Args:
        arguments: Of the command line.
    """
    parser = parser_of(
        "reproduce",
        __doc__,
        data="folder with mnist.npz and cifar10.npz",
        seeds=1,
        quick="a minute each, to see that everything works",
        output="NAME",
    )
    parser.epilog = "\n".join(textwrap.wrap(listed(), 98))
    parser.add_argument("experiments", nargs="+", choices=NAMES, metavar="EXPERIMENT")
    chosen = parser.parse_args(arguments)
    pattern = chosen.output.name
    if len(chosen.experiments) > 1 and "NAME" not in pattern:
        parser.error(f"--output {chosen.output}: several experiments need NAME in it.")
    for name in chosen.experiments:
        output = chosen.output.with_name(pattern.replace("NAME", name))
        try:
            conduct(name, output, chosen.data, chosen.seeds, chosen.quick)
        except ValueError as error:
            parser.error(str(error))


if __name__ == "__main__":
    start(main)
