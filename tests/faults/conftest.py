"""``--reliability``: the table of faults, into the documentation."""

from __future__ import annotations

import pathlib

import pytest
from faults.fault_cases import FAULTS, MODES

BEGIN, END = "<!-- begin table -->", "<!-- end table -->"


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option."""
    told = "write what happened to every fault into this page, between two marks"
    parser.addoption("--reliability", type=pathlib.Path, metavar="PAGE", help=told)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Writes the page."""
    page = terminalreporter.config.getoption("--reliability", None)
    if page is None:
        return
    reports = [
        report for each in ("passed", "failed") for report in terminalreporter.getreports(each)
    ]
    found = [
        value
        for report in reports
        if report.when == "call"
        for key, value in report.user_properties
        if key == "fault"
    ]
    text = page.read_text()
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    page.write_text(f"{head}{BEGIN}\n\n{_table(found)}\n\n{END}{tail}")
    terminalreporter.write_line(f"Written: {page}")


def _table(found: list[tuple[str, str, str, str]]) -> str:
    """A row a fault, a column a mode, in the order of the cases, whichever ended first."""
    places = {fault.name: place for place, fault in enumerate(FAULTS)}
    modes = [mode for mode in MODES if any(mode == of for _, of, _, _ in found)]
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for name, mode, must, happened in sorted(found, key=lambda each: places[each[0]]):
        rows.setdefault((name, must), {})[mode] = happened
    return "\n".join(
        [
            f"| fault | what must happen | {' | '.join(modes)} |",
            f"|---|---|{'---|' * len(modes)}",
            *(
                f"| {name} | {must} | {' | '.join(row.get(mode, '–') for mode in modes)} |"
                for (name, must), row in rows.items()
            ),
        ]
    )
