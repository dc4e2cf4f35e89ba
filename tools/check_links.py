"""Checks that every relative link of Markdown pages leads to a file, and its anchor to a heading.

Run it with

    python tools/check_links.py README.md docs/*.md

from the top of the repository.
"""

import re
import sys
from pathlib import Path

LINK = re.compile(r"\]\((?!https?:|mailto:)(?P<path>[^)#\s]*)(?:#(?P<anchor>[^)\s]+))?\)")
HEADING = re.compile(r"^#+ (?P<title>.+)$", re.MULTILINE)
CODE = re.compile(r"^[ \t]*```.*?^[ \t]*```[ \t]*$|`[^`\n]*`", re.DOTALL | re.MULTILINE)


def main() -> int:
    """Prints every broken link of the pages named on the command line; returns the exit code."""
    broken = [problem for page in map(Path, sys.argv[1:]) for problem in broken_links(page)]
    print("\n".join(broken) or "all links lead somewhere")
    return 1 if broken else 0


def broken_links(page: Path) -> list[str]:
    """Returns a line for each link of the page that leads nowhere."""
    problems = []
    for link in LINK.finditer(CODE.sub("", page.read_text(encoding="utf-8"))):
        target = page.parent / link["path"] if link["path"] else page
        if not target.exists():
            problems.append(f"{page}: no file {link['path']}")
        elif link["anchor"] and link["anchor"] not in anchors(target):
            problems.append(f"{page}: no heading #{link['anchor']} in {target}")
    return problems


def anchors(page: Path) -> set[str]:
    """Returns the anchors that GitHub gives the headings of a page."""
    titles = HEADING.findall(page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


if __name__ == "__main__":
    sys.exit(main())
