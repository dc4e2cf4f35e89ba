"""The benchmarks of tfkfac: a line each, and what each needs.

``python -m benchmarks --help`` lists them, ``python -m benchmarks.NAME --help`` tells of one.
"""

from __future__ import annotations

import argparse
import ast
import pathlib
import textwrap
from collections.abc import Sequence

FOLDER = pathlib.Path(__file__).parent

COMMON = """Every benchmark takes --data, --seeds, --quick and --output, shows how far it is, prints
a table, and writes JSON and a PNG. Started again, it makes only what its JSON has not yet. Machine,
versions and commit are in the JSON, with every run.
"""


def benchmarks() -> dict[str, tuple[str, str]]:
    """Name → what it measures, and what it needs: the first line of its docstring, and "Needs:".

    Nothing is imported: that would take TensorFlow's seconds.
    """
    found = {}
    for path in sorted([*FOLDER.glob("*.py"), *FOLDER.glob("*/__main__.py")]):
        text = path.read_text()
        if path == pathlib.Path(__file__) or 'if __name__ == "__main__"' not in text:
            continue
        name = path.parent.name if path.name == "__main__.py" else path.stem
        paragraphs = (ast.get_docstring(ast.parse(text)) or "").split("\n\n")
        needs = (each for each in paragraphs if each.startswith("Needs: "))
        found[name] = (paragraphs[0], " ".join(next(needs, "Needs: ?")[7:].split()))
    return found


def listed() -> str:
    """All benchmarks, as ``--help`` shows them."""
    width = max(map(len, benchmarks())) + 2
    lines = []
    for name, (what, needs) in benchmarks().items():
        for first, text in ((name, what), ("", f"Needs {needs}")):
            lines += textwrap.wrap(
                text,
                98,
                initial_indent=first.ljust(width),
                subsequent_indent=" " * width,
                break_on_hyphens=False,
            )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the list."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=COMMON,
        epilog=listed() + "\n\nEach runs by its name: python -m benchmarks.NAME --help",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(arguments)
    parser.print_help()


if __name__ == "__main__":
    main()
