"""Runs the ```python blocks of Markdown pages, as a reader who pastes them one by one would.

    python tools/run_doc_blocks.py README.md docs/*.md

Every page runs in a process and an empty folder of its own, and its blocks share one namespace. A
block below the comment `<!-- not run: reason -->` is listed and skipped. A failing block ends its
page, with a traceback that points into the page. A page that prints a loss of nan or inf has
failed, too. The exit code is 1 if any page failed.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(
    r"^(?P<indent>[ \t]*)```python[ \t]*\n(?P<code>.*?)^(?P=indent)```[ \t]*$",
    re.DOTALL | re.MULTILINE,
)
DIVERGED = re.compile(r"loss: *-?(nan|inf)", re.IGNORECASE)
NOT_RUN = re.compile(r"<!-- not run: (?P<reason>.+?) -->\s*\Z")


@dataclass(frozen=True)
class Block:
    """A block of code, the line of the page on which it begins, and why it is not run, if so."""

    code: str
    line: int
    not_run: str | None


def main() -> int:
    """Runs every page named on the command line and returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pages", nargs="+", type=Path)
    parser.add_argument("--in-this-process", action="store_true", help="run one page right here")
    arguments = parser.parse_args()
    if arguments.in_this_process:
        (page,) = arguments.pages
        run_page(page)
        return 0
    failed = [page for page in arguments.pages if not succeeds(page)]
    print("failed: " + ", ".join(map(str, failed)) if failed else "all pages ran", flush=True)
    return 1 if failed else 0


def succeeds(page: Path) -> bool:
    """Runs a page in a fresh process and an empty folder; tells whether it went well."""
    diverged = False
    print(f"== {page}", flush=True)
    command = [sys.executable, __file__, "--in-this-process", str(page.resolve())]
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "MPLBACKEND": "Agg"}
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, encoding="utf-8"
        ) as process,
    ):
        for line in process.stdout or ():
            print(line, end="", flush=True)
            diverged = diverged or bool(DIVERGED.search(line))
    if diverged:
        print(f"-- {page.name}: a training diverged", flush=True)
    return process.returncode == 0 and not diverged


def run_page(page: Path) -> None:
    """Runs the blocks of a page in one namespace."""
    namespace = {"__name__": "__main__"}
    for block in blocks(page.read_text(encoding="utf-8")):
        place = f"{page.name}:{block.line}"
        if block.not_run:
            print(f"-- {place} not run: {block.not_run}", flush=True)
            continue
        print(f"-- {place}", flush=True)
        started_at = time.perf_counter()
        # Empty lines before the code make tracebacks name, and quote, the page's own lines.
        padded = "\n" * (block.line - 1) + block.code
        exec(compile(padded, str(page), "exec"), namespace)
        print(f"-- {place} ran in {time.perf_counter() - started_at:.1f} s", flush=True)


def blocks(text: str) -> Iterator[Block]:
    """Yields the Python blocks of a page's text in their order."""
    for match in BLOCK.finditer(text):
        skipped = NOT_RUN.search(text[: match.start()])
        yield Block(
            code=textwrap.dedent(match["code"]),
            line=text.count("\n", 0, match.start("code")) + 1,
            not_run=skipped["reason"] if skipped else None,
        )


if __name__ == "__main__":
    sys.exit(main())
