"""Loss against updates and seconds of recurrent networks: KFAC's three forms, Adam and SGD.

The networks and data are those of `examples/ptb_lstm.py` and `examples/copy_task.py`. One number of
each optimizer is tuned with one seed, the learning rate of Adam and SGD, `kl_clip` of KFAC (its
steps are at this bound almost always); the results use several seeds. Seconds are those of the
first seed; with `--pace` those of one more run of each optimizer, for which nothing else should be
running. Runs are kept in OUTPUT.json as they end: started again, the program goes on where it was.
The tables go into OUTPUT.md, between two marks, the curves into OUTPUT.png.

    python -m benchmarks.recurrent --data PATH_TO/ptb --pace --output docs/results/recurrent

Needs: ptb/, text files of the Penn Treebank; about three hours.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.command_line import parser_of
from benchmarks.recurrent.problems import copying, penn_treebank
from benchmarks.recurrent.report import plot, tables
from benchmarks.recurrent.trainings import all_runs
from benchmarks.zoo import report
from benchmarks.zoo.results import Results


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line and runs.

    Args:
        arguments: Of the command line.
    """
    parser = parser_of(
        "recurrent",
        __doc__,
        data="folder of text files for the language model",
        seeds=5,
        quick="3 symbols to copy, 10 updates, one seed",
    )
    parser.add_argument("--problems", nargs="+", default=["ptb", "copy"], choices=["ptb", "copy"])
    parser.add_argument("--lengths", nargs="+", type=int, default=[10, 30], help="to copy")
    parser.add_argument("--ptb-updates", type=int, default=300)
    parser.add_argument("--copy-updates", type=int, default=500)
    parser.add_argument("--pace", action="store_true", help="measure the seconds by themselves")
    chosen = parser.parse_args(arguments)
    if chosen.quick:
        chosen.problems, chosen.lengths, chosen.copy_updates, chosen.seeds = ["copy"], [3], 10, 1
    problems = []
    try:
        results = Results(chosen.output.with_suffix(".json"))
        report.require_place(chosen.output.with_suffix(".md"))
        if "ptb" in chosen.problems:
            problems.append(penn_treebank(chosen.data, chosen.ptb_updates))
    except ValueError as error:
        parser.error(str(error))
    if "copy" in chosen.problems:
        problems += [copying(length, chosen.copy_updates) for length in chosen.lengths]
    found = all_runs(problems, results, chosen.seeds, chosen.pace)
    text = f"{tables(found)}\n\n![Loss against updates and seconds]({chosen.output.name}.png)"
    print(text)
    report.write_page(chosen.output.with_suffix(".md"), text)
    plot(found, chosen.output.with_suffix(".png"))
    print(f"\nWritten: {chosen.output}.json, {chosen.output}.md, {chosen.output}.png")


if __name__ == "__main__":
    main()
