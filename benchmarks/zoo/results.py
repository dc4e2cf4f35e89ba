"""The runs in a JSON file: those that are there are not made again."""

from __future__ import annotations

import json
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from benchmarks import machine

Run = dict[str, Any]


class Described(Protocol):
    """What a run depends on."""

    def in_file(self) -> dict[str, Any]:
        """As in the file."""
        ...


AnySetting = TypeVar("AnySetting", bound=Described | Mapping[str, Any])


class Results:
    """The runs that there are, kept in a file as they end.

    A run is one line of the file, and says on which machine, with which versions and at which
    commit it was made. The file is written anew after every run and put in its place at once, so
    that a program that is stopped leaves a whole file; of a file that is cut nevertheless, the
    whole lines are used. Older files say in their head what their last session ran on.

    Args:
        path: The file; what is in it already is kept.

    Raises:
        ValueError: It holds something else.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        text = path.read_text() if path.exists() else '{"runs": []}'
        self._machine, self.runs = _parts_of(text)

    def find(self, setting: Described | Mapping[str, Any]) -> Run | None:
        """The run with this setting, or None."""
        wanted = setting if isinstance(setting, Mapping) else setting.in_file()
        return next((run for run in self.runs if wanted.items() <= run.items()), None)

    def require(self, setting: Described | Mapping[str, Any]) -> Run:
        """The run with this setting.

        Raises:
            KeyError: It is not there.
        """
        found = self.find(setting)
        if found is None:
            raise KeyError(setting)
        return found

    def get(self, setting: AnySetting, make: Callable[[AnySetting], Run]) -> Run:
        """The run with this setting, made now if it is not there.

        Args:
            setting: Of the run.
            make: Trains.
        """
        found = self.find(setting)
        if found is None:
            found = make(setting) | {"machine": machine.description()}
            self.runs.append(found)
            self._write()
        return found

    def _write(self) -> None:
        lines = ",\n".join(json.dumps(run, allow_nan=False) for run in self.runs)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self._path.with_name(self._path.name + ".tmp")
        head = f'"machine": {json.dumps(self._machine)},\n' if self._machine else ""
        unfinished.write_text(f'{{{head}"runs": [\n{lines}\n]}}\n')
        os.replace(unfinished, self._path)


BEGINS = re.compile(r'{(?:"machine": (?P<machine>{.*}),\n)?"runs": \[\n')
"""How a file begins; an older one tells of a machine for all runs that do not."""


def _parts_of(text: str) -> tuple[Run | None, list[Run]]:
    """The machine that a file tells of in its head, and its runs."""
    try:
        document = json.loads(text)
    except json.JSONDecodeError:
        begins = BEGINS.match(text)
        document = None
        if begins is not None:  # It was cut.
            whole = [
                _parsed(line.rstrip().rstrip(",")) for line in text[begins.end() :].splitlines()
            ]
            runs = [run for run in whole if run is not None]
            document = {"machine": _parsed(begins["machine"] or ""), "runs": runs}
    if not isinstance(document, dict) or "runs" not in document:
        raise ValueError(
            "The file of the results holds something else than runs; name another one by --output, "
            "or remove it."
        )
    return document.get("machine"), document["runs"]


def _parsed(line: str) -> Run | None:
    try:
        found = json.loads(line)
    except json.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None
