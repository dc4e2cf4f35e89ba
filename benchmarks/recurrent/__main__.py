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

from benchmarks.command_line import parser_of, positive_integer, start
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
        quick="3 symbols to copy, 10 updates, unless told otherwise; one seed",
    )
    add = parser.add_argument
    add("--problems", nargs="+", choices=["ptb", "copy"], metavar="NAME", help="ptb, copy")
    add("--lengths", nargs="+", type=positive_integer, metavar="N", help="to copy (default: 10 30)")
    add("--ptb-updates", type=positive_integer, default=300, metavar="N", help="(default: 300)")
    add("--copy-updates", type=positive_integer, metavar="N", help="(default: 500)")
    add("--pace", action="store_true", help="measure the seconds by themselves")
    chosen = parser.parse_args(arguments)
    names = chosen.problems or (["copy"] if chosen.quick else ["ptb", "copy"])
    lengths = chosen.lengths or ([3] if chosen.quick else [10, 30])
    copy_updates = chosen.copy_updates or (10 if chosen.quick else 500)
    seeds = 1 if chosen.quick else chosen.seeds
    problems = []
    try:
        results = Results(chosen.output.with_suffix(".json"))
        report.require_place(chosen.output.with_suffix(".md"))
        if "ptb" in names:
            problems.append(penn_treebank(chosen.data, chosen.ptb_updates))
    except ValueError as error:
        parser.error(str(error))
    if "copy" in names:
        problems += [copying(length, copy_updates) for length in lengths]
    found = all_runs(problems, results, seeds, chosen.pace)
    text = f"{tables(found)}\n\n![Loss against updates and seconds]({chosen.output.name}.png)"
    print(text)
    report.write_page(chosen.output.with_suffix(".md"), text)
    plot(found, chosen.output.with_suffix(".png"))
    print(f"\nWritten: {chosen.output}.json, {chosen.output}.md, {chosen.output}.png")


if __name__ == "__main__":
    start(main)
