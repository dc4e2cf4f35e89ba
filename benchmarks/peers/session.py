"""One alternation of a problem: workers are started, alternate, and are ended."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence

from benchmarks.peers.alternation import Ends, Trace, alternate
from benchmarks.peers.contenders import CONTENDERS, options
from benchmarks.peers.conversation import Worker, WorkerError
from benchmarks.peers.environments import ENVIRONMENTS, Environment, Unavailable, interpreter_of
from benchmarks.peers.measurements import Setting, measurement, unavailable
from benchmarks.peers.problems import Problem, write_archive
from benchmarks.zoo.data import Examples
from benchmarks.zoo.results import Results, Run


class Interpreters:
    """The Python of every contender.

    Args:
        folder: Of the environments, which are made when they are first needed.
        requirements: Environment → what it needs, instead of the usual.
    """

    def __init__(
        self, folder: pathlib.Path, requirements: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        self._folder = folder
        self._requirements = requirements or {}
        self._found: dict[str, pathlib.Path | Unavailable] = {}

    def of(self, contender: str) -> pathlib.Path:
        """The program that runs the worker.

        Raises:
            Unavailable: Its environment cannot be made.
        """
        name = CONTENDERS[contender].environment
        if name is None:
            return pathlib.Path(sys.executable)
        if name not in self._found:
            self._found[name] = self._make(ENVIRONMENTS[name])
        found = self._found[name]
        if isinstance(found, Unavailable):
            raise found
        return found

    def _make(self, environment: Environment) -> pathlib.Path | Unavailable:
        wanted = self._requirements.get(environment.name)
        if wanted is not None:
            environment = dataclasses.replace(environment, requirements=tuple(wanted))
        try:
            return interpreter_of(environment, self._folder)
        except Unavailable as reason:
            return reason


def missing(settings: Sequence[Setting], results: Results) -> list[Setting]:
    """Those that are not in the file yet."""
    return [setting for setting in settings if results.find(setting) is None]


def companions(names: Sequence[str]) -> list[str]:
    """Those with whom contenders are compared, and they themselves, in the usual order.

    Args:
        names: Of the contenders.
    """
    wanted = set(names)
    for name in names:
        wanted |= {CONTENDERS[name].sgd, CONTENDERS[name].against or name}
    return [name for name in CONTENDERS if name in wanted]


def measure(
    problem: Problem,
    examples: Examples,
    settings: Sequence[Setting],
    interpreters: Interpreters,
    results: Results,
    advance: Callable[[str], None] = lambda name: None,
) -> None:
    """Measures contenders in one alternation, and puts them into the file.

    Those with whom they are compared take part, even if the file has them already.

    Args:
        problem: What is trained.
        examples: Its data.
        settings: Of one seed and plan, what is missing.
        interpreters: What runs the workers.
        results: The file.
        advance: Is told of every block.
    """
    seed, plan = settings[0].seed, settings[0].plan
    names = companions([setting.contender for setting in settings])
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        archive = folder / "archive.npz"
        write_archive(problem, examples, seed, 4 * plan.rounds * plan.steps, archive)
        workers, versions, reasons = _begin(names, problem, archive, interpreters, stack)
        ours = [name for name in names if CONTENDERS[name].peer == "tfkfac"]
        traces, ends = alternate(workers, plan, ours, advance)
    made = {
        setting: unavailable(setting, reasons[setting.contender])
        if setting.contender in reasons
        else _measured(setting, traces, ends, problem, versions)
        for setting in settings
    }
    for setting in settings:
        results.get(setting, made.__getitem__)


def _measured(
    setting: Setting,
    traces: Mapping[str, Trace],
    ends: Ends,
    problem: Problem,
    versions: Mapping[str, Mapping[str, str]],
) -> Run:
    smoothing = problem.training.smoothing
    return measurement(setting, traces, ends, smoothing, versions[setting.contender])


def _begin(
    names: Sequence[str],
    problem: Problem,
    archive: pathlib.Path,
    interpreters: Interpreters,
    stack: contextlib.ExitStack,
) -> tuple[dict[str, Worker], dict[str, dict[str, str]], dict[str, str]]:
    """Workers that are built, what they run with, and why others are not there."""
    workers: dict[str, Worker] = {}
    versions: dict[str, dict[str, str]] = {}
    reasons: dict[str, str] = {}
    for name in names:
        contender = CONTENDERS[name]
        try:
            worker = Worker([interpreters.of(name), "-m", contender.worker])
        except Unavailable as reason:
            reasons[name] = str(reason)
            continue
        stack.callback(worker.end)
        workers[name] = worker
        worker.send(
            do="build",
            archive=str(archive),
            problem=problem.name,
            optimizer=contender.optimizer,
            options=options(contender, problem),
        )
    for name in list(workers):
        try:
            versions[name] = workers[name].receive()["versions"]
        except WorkerError as error:
            reasons[name] = str(error)
            del workers[name]
    return workers, versions, reasons
