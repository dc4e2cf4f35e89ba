"""The runs in a JSON file: those that are there are not made again."""

from __future__ import annotations

import json
import os
import pathlib
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

    A run is one line of the file. It is written anew after every run and put in its place at once,
    so that a program that is stopped leaves a whole file; of a file that is cut nevertheless, the
    whole lines are used.

    Args:
        path: The file; what is in it already is kept.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self.runs: list[Run] = _runs_of(path.read_text()) if path.exists() else []

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
            found = make(setting)
            self.runs.append(found)
            self._write()
        return found

    def _write(self) -> None:
        lines = ",\n".join(json.dumps(run, allow_nan=False) for run in self.runs)
        described = json.dumps(machine.description())
        self._path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self._path.with_name(self._path.name + ".tmp")
        unfinished.write_text(f'{{"machine": {described},\n"runs": [\n{lines}\n]}}\n')
        os.replace(unfinished, self._path)


def _runs_of(text: str) -> list[Run]:
    try:
        document = json.loads(text)
    except json.JSONDecodeError:
        whole = [_parsed(line.rstrip().rstrip(",")) for line in text.splitlines()]
        return [run for run in whole if run is not None]
    if not isinstance(document, dict) or "runs" not in document:
        raise ValueError(
            "The file of the results holds something else than runs; name another one by --output, "
            "or remove it."
        )
    return document["runs"]


def _parsed(line: str) -> Run | None:
    try:
        found = json.loads(line)
    except json.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None
