"""The parent's end of the conversation with a worker (`benchmarks.peers.serving`)."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import select
import subprocess
import tempfile
from collections.abc import Sequence
from typing import Any

from benchmarks.peers.environments import reason_of

ROOT = pathlib.Path(__file__).parents[2]
"""Of the repository, from which the workers import."""

PATIENCE = 900.0
"""Seconds until a worker that does not answer is taken to be stuck."""


class WorkerError(Exception):
    """A worker cannot do what it was asked for; the message is one line."""


class Worker:
    """A process that answers one request after the other.

    Args:
        command: Of the process, which runs in the folder of the repository, without a GPU.
        patience: Seconds until it is ended if it does not answer.
    """

    def __init__(self, command: Sequence[str | pathlib.Path], patience: float = PATIENCE) -> None:
        self._patience = patience
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by `end`)
        settings = {
            "PYTHONPATH": str(ROOT),
            "KERAS_BACKEND": "tensorflow",
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "CUDA_VISIBLE_DEVICES": "-1",
        }
        self._process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=ROOT,
            env=os.environ | settings,
            start_new_session=True,  # An interrupt from the keyboard is for the parent.
        )

    def send(self, **request: Any) -> None:
        """Asks, and does not wait for the answer (`receive`)."""
        with contextlib.suppress(BrokenPipeError):  # `receive` says why it is gone.
            self._input.write(json.dumps(request) + "\n")
            self._input.flush()

    def receive(self) -> dict[str, Any]:
        """The answer to the oldest request that has none yet.

        Raises:
            WorkerError: The worker could not do it, ended, or does not answer.
        """
        if not select.select([self._output], [], [], self._patience)[0]:
            self.end()
            raise WorkerError(f"no answer for {self._patience:.0f} seconds")
        line = self._output.readline()
        if not line:
            code = self._process.wait()
            self._errors.seek(0)
            text = self._errors.read()
            raise WorkerError(reason_of(text) if text.strip() else f"ended with code {code}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def ask(self, **request: Any) -> dict[str, Any]:
        """`send` and `receive`."""
        self.send(**request)
        return self.receive()

    def end(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._input, self._output, self._errors):
            with contextlib.suppress(BrokenPipeError):
                stream.close()

    @property
    def _input(self) -> Any:
        return self._process.stdin

    @property
    def _output(self) -> Any:
        return self._process.stdout
