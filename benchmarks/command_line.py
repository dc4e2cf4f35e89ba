"""What all benchmarks have on their command line: --data, --seeds, --quick and --output."""

from __future__ import annotations

import argparse
import contextlib
import math
import pathlib
import signal
import sys
from collections.abc import Callable
from typing import NoReturn, TypeVar


def parser_of(
    name: str,
    documentation: str | None,
    *,
    quick: str,
    data: str | None = None,
    seeds: int | str | None = None,
    output: str | None = None,
) -> argparse.ArgumentParser:
    """A parser with the arguments that all benchmarks have.

    Args:
        name: Of the module in this package.
        documentation: Of the module; its first line is shown.
        quick: What ``--quick`` does.
        data: What ``--data`` names; None where no data is read.
        seeds: How many there are by default, or in words where that differs, for which the parser
            has None; None where nothing is drawn, or all draw alike.
        output: Where results go by default, without a suffix; None is the name.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}", description=(documentation or "").split("\n")[0]
    )
    unused = "as for all benchmarks; nothing here depends on it"
    parser.add_argument("--data", type=pathlib.Path, help=data or unused)
    counted = unused if seeds is None else f"how many (default: {seeds})"
    default = seeds if isinstance(seeds, int) else None
    parser.add_argument(
        "--seeds", type=positive_integer, default=default, metavar="N", help=counted
    )
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument(
        "--output",
        type=_output,
        default=pathlib.Path(output or name),
        help="files to write, without a suffix",
    )
    return parser


def _output(text: str) -> pathlib.Path:
    """A path without a suffix, whose folder is there, or is made."""
    path = pathlib.Path(text)
    if not path.name or path.suffix:
        raise argparse.ArgumentTypeError(
            f"must be a name without a dot, to which .json, .md and .png are put, got {text}"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(
            f"must be in a folder that can be made, got {text} ({error.strerror})"
        ) from error
    return path


def positive_integer(text: str) -> int:
    """At least 1, from the command line.

    Raises:
        argparse.ArgumentTypeError: It is something else.
    """
    return _checked(text, int, lambda number: number >= 1, "an integer of at least 1")


def positive_number(text: str) -> float:
    """Finite and more than 0, from the command line.

    Raises:
        argparse.ArgumentTypeError: It is something else.
    """
    return _checked(text, float, lambda number: 0.0 < number < math.inf, "a number above 0")


Number = TypeVar("Number", int, float)


def _checked(
    text: str, kind: Callable[[str], Number], allowed: Callable[[Number], bool], what: str
) -> Number:
    with contextlib.suppress(ValueError):
        number = kind(text)
        if allowed(number):
            return number
    raise argparse.ArgumentTypeError(f"must be {what}, got {text}")


def start(main: Callable[[], None]) -> NoReturn:
    """Runs a benchmark as a program; Ctrl-C ends it with a line that says how to go on.

    Args:
        main: Parses the command line and runs.
    """
    try:
        main()
    except KeyboardInterrupt:
        print(
            "\nInterrupted. What was finished is kept in the JSON file: the same command goes on.",
            file=sys.stderr,
        )
        sys.exit(128 + signal.SIGINT)
    sys.exit(0)
