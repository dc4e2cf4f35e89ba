"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is aligned to the left, all others to the right.

    Args:
        headings: Of the columns.
        rows: Their cells.
    """
    rule = ["---", *["--:"] * (len(headings) - 1)]
    lines = [list(headings), rule, *map(list, rows)]
    first, second, *others = ["| " + " | ".join(cells) + " |" for cells in lines]
    return "\n".join([first, second.replace(" ", ""), *others])
