"""A worker's end of the conversation: a line of JSON is a request, a line of JSON the answer.

``{"do": "build", "archive": FILE, "problem": NAME, "optimizer": NAME, "options": {…}}`` answers
with versions; ``{"do": "steps", "count": N, "seconds": S}`` makes up to N updates and begins none
after S seconds, and answers with the seconds and the loss of each, and whether something was
compiled in it, as in the first; ``{"do": "memory"}`` answers with the peak so far, and with what
the process held before there was a network. What goes wrong is answered with ``{"error": LINE}``.

This file is read in all environments: it imports NumPy and nothing of any framework.
"""

from __future__ import annotations

import abc
import collections
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.memory import megabytes, peak_megabytes


class Archive:
    """What `benchmarks.peers.problems.write_archive` wrote.

    Args:
        path: The file.

    Attributes:
        classes: How many classes the targets have; 0 if they are numbers.
        weights: ``layer/variable`` → first values.
        shape: Of the inputs of one example.
    """

    def __init__(self, path: pathlib.Path | str) -> None:
        with np.load(path) as arrays:
            self._order = arrays["order"]
            self._inputs = arrays["inputs"]
            self._targets = arrays.get("targets", self._inputs)
            self.classes = int(arrays["classes"])
            self.weights = {
                name.removeprefix("weight:"): arrays[name]
                for name in arrays.files
                if name.startswith("weight:")
            }

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the inputs of one example."""
        return self._inputs.shape[1:]

    def batch(self, update: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of an update; after the last batch the first comes again."""
        chosen = self._order[update % len(self._order)]
        return self._inputs[chosen], self._targets[chosen]


class LayerNames:
    """Names as Keras numbers them: dense, dense_1, dense_2, conv2d."""

    def __init__(self) -> None:
        self._made: collections.Counter[str] = collections.Counter()

    def next(self, kind: str) -> str:
        """The name of the next layer of this kind."""
        number = self._made[kind]
        self._made[kind] += 1
        return f"{kind}_{number}" if number else kind


COMPILES = 0.1
"""Share of an update from which on it was compiling that is told."""


class Trainer(abc.ABC):
    """A network with an optimizer."""

    versions: Mapping[str, str]

    @abc.abstractmethod
    def place(self, inputs: np.ndarray, targets: np.ndarray) -> Any:
        """The batch as the framework wants it; not timed."""

    @abc.abstractmethod
    def step(self, batch: Any) -> float:
        """Makes an update, waits until it is made, and returns the loss before it.

        The first one traces, compiles, and makes the state of the optimizer.
        """

    def compiling(self) -> float:
        """Seconds of compilation so far, where the framework tells and there may be later ones."""
        return 0.0


Begin = Callable[[str, str, Mapping[str, Any], Archive], Trainer]
"""From problem, optimizer and options to a trainer."""


def serve(begin: Begin, wake: Callable[[], object] = lambda: None) -> None:
    """Answers until there are no more requests.

    Whatever else writes to the standard output goes to the standard error.

    Args:
        begin: Makes the network.
        wake: Some operation of the framework: what it holds for itself, it holds from then on.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    conversation = _Conversation(begin, wake)
    for line in sys.stdin:
        try:
            answer = conversation.answer(json.loads(line))
        except Exception as error:
            answer = {"error": first_line(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def first_line(error: BaseException) -> str:
    """The kind of an error and the first line of its message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


class _Conversation:
    """The requests of one parent, in their order."""

    def __init__(self, begin: Begin, wake: Callable[[], object]) -> None:
        self._begin, self._wake = begin, wake
        self._made = 0
        self._before = 0.0

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a request."""
        return getattr(self, f"_{request['do']}")(request)

    def _build(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self._archive = Archive(request["archive"])
        self._wake()
        self._before = megabytes()
        given = (request["problem"], request["optimizer"], request["options"])
        self._trainer = self._begin(*given, self._archive)
        return {"versions": dict(self._trainer.versions)}

    def _steps(self, request: Mapping[str, Any]) -> dict[str, Any]:
        seconds: list[float] = []
        losses: list[float] = []
        compiled: list[bool] = []
        while len(seconds) < request["count"] and sum(seconds) <= request["seconds"]:
            batch = self._trainer.place(*self._archive.batch(self._made))
            before, start = self._trainer.compiling(), time.perf_counter()
            losses.append(float(self._trainer.step(batch)))
            seconds.append(time.perf_counter() - start)
            share = (self._trainer.compiling() - before) / seconds[-1]
            compiled.append(self._made == 0 or share > COMPILES)
            self._made += 1
        return {"seconds": seconds, "losses": losses, "compiled": compiled}

    def _memory(self, _: Mapping[str, Any]) -> dict[str, Any]:
        return {"megabytes": peak_megabytes(), "before": self._before}
