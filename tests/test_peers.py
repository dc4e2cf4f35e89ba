"""The comparison with the peers: fair turns, whole conversations, right ratios, clear refusals."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest
from rich.console import Console

from benchmarks.peers import __main__ as command_line
from benchmarks.peers import environments, measurements, report, session
from benchmarks.peers.alternation import Ends, Plan, Trace, alternate
from benchmarks.peers.contenders import CONTENDERS, PEERS, contenders_of, options
from benchmarks.peers.conversation import Worker, WorkerError
from benchmarks.peers.environments import Environment, Unavailable, interpreter_of, reason_of
from benchmarks.peers.measurements import Setting, measurement
from benchmarks.peers.plot import plot
from benchmarks.peers.problems import (
    PROBLEMS,
    named_variables,
    order_of_batches,
    write_archive,
)
from benchmarks.peers.serving import Archive, LayerNames
from benchmarks.peers.session import Interpreters, companions, measure, missing
from benchmarks.zoo.data import Examples
from benchmarks.zoo.results import Results

PLAN = Plan(rounds=4, steps=3, limit=100.0)


class Clockwork:
    """A worker whose step takes a known time, on a clock of its own."""

    def __init__(self, second: float, calls: list[tuple[Any, ...]], fails_at: int = 10**9) -> None:
        self.second, self.calls, self.fails_at, self.made = second, calls, fails_at, 0

    def ask(self, **request: Any) -> dict[str, Any]:
        self.calls.append((id(self), request["do"], request.get("count")))
        if request["do"] == "memory":
            return {"megabytes": 100 * self.second, "before": 30.0}
        seconds: list[float] = []
        compiled: list[bool] = []
        while len(seconds) < request["count"] and sum(seconds) <= request["seconds"]:
            if self.made == self.fails_at:
                raise WorkerError("ValueError: broken")
            seconds.append(9.0 if self.made == 0 else self.second)
            compiled.append(self.made == 0)
            self.made += 1
        losses = [1 / (self.made + 1)] * len(seconds)
        return {"seconds": seconds, "losses": losses, "compiled": compiled}


def test_blocks_alternate_back_and_forth_and_all_get_the_same_time() -> None:
    calls: list[tuple[Any, ...]] = []
    slow, fast = Clockwork(2.0, calls), Clockwork(1.0, calls)
    advanced: list[str] = []
    traces, ends = alternate({"slow": slow, "fast": fast}, PLAN, (), advanced.append)
    s, f = id(slow), id(fast)
    there, back = [(s, "steps", 3), (f, "steps", 3)], [(f, "steps", 3), (s, "steps", 3)]
    first = [(s, "steps", 1), (f, "steps", 1)]
    assert calls[:10] == first + there + back + there + back
    assert advanced == ["slow", "fast", "fast", "slow"] * 2
    assert ends == Ends(13, 2.0 * 13)
    assert traces["slow"].clock[-1] == 26.0 <= traces["fast"].clock[-1] <= 29.0
    assert traces["slow"].seconds[0] == traces["fast"].seconds[0] == 9.0
    assert traces["fast"].clock[:3] == [1.0, 2.0, 3.0]  # The first counts as long as the second.
    assert traces["fast"].blocks == dict.fromkeys(range(4), 1.0)
    assert (traces["slow"].megabytes, traces["slow"].before) == (200.0, 30.0)


def test_a_timekeeper_is_not_waited_for_by_those_who_are_slower() -> None:
    calls: list[tuple[Any, ...]] = []
    workers = {"slow": Clockwork(2.0, calls), "ours": Clockwork(1.0, calls)}
    traces, ends = alternate(workers, PLAN, ["ours"])
    assert ends.seconds == 13.0 == traces["ours"].clock[-1]
    assert len(traces["slow"].losses) == 13


def test_no_round_begins_when_the_minutes_are_over() -> None:
    """Half a minute goes by from round to round: 0.5 and 1 of 1.2 minutes are early enough."""
    readings = itertools.count(0.0, 30.0)
    workers = {"slow": Clockwork(2.0, []), "fast": Clockwork(1.0, [])}
    plan = dataclasses.replace(PLAN, minutes=1.2)
    traces, ends = alternate(workers, plan, clock=lambda: next(readings))
    assert len(traces["slow"].losses) == len(traces["fast"].losses) == 7
    assert ends == Ends(7, 7.0)


def test_a_very_slow_worker_has_a_few_short_rounds() -> None:
    """Limit 100: a block ends with the step that exceeds 10 seconds, all with the one after 100."""
    traces, _ = alternate({"slow": Clockwork(8.0, [])}, dataclasses.replace(PLAN, rounds=50))
    assert traces["slow"].seconds[1:] == [8.0] * 12
    assert traces["slow"].blocks == dict.fromkeys(range(6), 8.0)


def test_compilation_is_not_counted_whenever_it_comes() -> None:
    """A second function is compiled in the fifth update; its block is made to the end.

    It need not take much longer than the others.
    """

    class Compiling(Clockwork):
        def ask(self, **request: Any) -> dict[str, Any]:
            before = self.made
            told = super().ask(**request)
            if request["do"] == "steps" and before <= 4 < self.made:
                self.made -= len(told["seconds"]) - (5 - before)
                told = {key: values[: 5 - before] for key, values in told.items()}
                told["seconds"][-1], told["compiled"][-1] = 3.0, True
            return told

    traces, ends = alternate({"jax": Compiling(1.0, [])}, PLAN)
    (trace,) = traces.values()
    assert trace.seconds == [9.0, 1.0, 1.0, 1.0, 3.0] + [1.0] * 8
    assert trace.compilation == 2.0
    assert trace.steps == [1.0] * 13 and trace.spent == ends.seconds == 13.0
    assert trace.blocks == dict.fromkeys(range(4), 1.0)


def test_one_that_fails_leaves_and_the_others_go_on() -> None:
    calls: list[tuple[Any, ...]] = []
    broken, sound = Clockwork(1.0, calls, fails_at=5), Clockwork(1.0, calls)
    traces, ends = alternate({"broken": broken, "sound": sound}, PLAN)
    assert traces["broken"].error == "ValueError: broken"
    assert len(traces["broken"].losses) == 4  # The first, and a whole block.
    assert traces["sound"].error is None and len(traces["sound"].losses) == 13
    assert ends.seconds == 13.0


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"steps": -1}, {"limit": float("inf")}])
def test_a_plan_says_what_is_wrong(wrong: dict[str, float]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=f"`{name}` must be positive"):
        Plan(**wrong)


# --- the conversation --------------------------------------------------------------------------

FAKE = """
import sys
from benchmarks.peers.serving import Trainer, serve

class Counting(Trainer):
    versions = {"counting": "1.0"}
    def __init__(self, problem, optimizer, options, archive):
        if optimizer == "dies":
            sys.stderr.write("Traceback\\nMemoryError: no more\\n")
            sys.stderr.flush()
            __import__("os")._exit(3)
        if optimizer == "refuses":
            raise ValueError("cannot do this\\nsecond line")
        self.archive, self.made = archive, 0
        print("noise on the standard output")
    def place(self, inputs, targets):
        return inputs.sum() + targets.sum()
    def step(self, batch):
        print("more noise")
        self.made += 1
        return batch
    def compiling(self):
        return 100.0 if self.made >= 2 else 0.0

serve(Counting)
"""


@pytest.fixture
def archive(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "archive.npz"
    order = np.array([[0, 1], [2, 3]], "int32")
    inputs = np.arange(8.0).reshape(4, 2)
    np.savez(path, order=order, inputs=inputs, classes=0, **{"weight:dense/kernel": np.ones(3)})
    return path


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker([sys.executable, "-c", FAKE], patience=60.0)
    yield made
    made.end()


def build(worker: Worker, archive: pathlib.Path, optimizer: str = "x") -> dict[str, Any]:
    given = {"archive": str(archive), "problem": "p", "optimizer": optimizer, "options": {}}
    return worker.ask(do="build", **given)


def test_a_worker_counts_its_batches_whatever_it_prints(
    worker: Worker, archive: pathlib.Path
) -> None:
    """Batches {0, 1}, {2, 3} and {0, 1} again; the targets are the inputs."""
    assert build(worker, archive) == {"versions": {"counting": "1.0"}}
    first = worker.ask(do="steps", count=1, seconds=10.0)
    others = worker.ask(do="steps", count=2, seconds=10.0)
    assert first["losses"] + others["losses"] == [2 * 6.0, 2 * 22.0, 2 * 6.0]
    assert first["compiled"] + others["compiled"] == [True, True, False]
    assert len(others["seconds"]) == 2 and min(others["seconds"]) > 0
    memory = worker.ask(do="memory")
    assert 5 < memory["before"] <= memory["megabytes"] < 1000


def test_what_goes_wrong_is_one_line_and_the_conversation_goes_on(
    worker: Worker, archive: pathlib.Path
) -> None:
    with pytest.raises(WorkerError, match=r"^ValueError: cannot do this$"):
        build(worker, archive, "refuses")
    assert "versions" in build(worker, archive)
    with pytest.raises(WorkerError, match=r"^MemoryError: no more$"):
        build(worker, archive, "dies")
    with pytest.raises(WorkerError):
        worker.ask(do="memory")


def test_a_worker_that_does_not_answer_is_ended() -> None:
    stuck = Worker([sys.executable, "-c", "import time; time.sleep(60)"], patience=0.1)
    with pytest.raises(WorkerError, match="no answer for 0 seconds"):
        stuck.ask(do="memory")


# --- what all begin with -----------------------------------------------------------------------


def test_weights_and_batches_are_written_once_for_all(tmp_path: pathlib.Path) -> None:
    """Layers are numbered in the order of making, whatever was made before; seeds differ."""
    keras.layers.Dense(3)  # Would be "dense".
    problem = PROBLEMS["transformer"]
    numbers = np.random.default_rng(0).integers(7, size=(200, 64)).astype("int32")
    examples = Examples(numbers, numbers + 1, 9)
    paths = [tmp_path / f"{seed}.npz" for seed in (0, 1)]
    for seed, path in enumerate(paths):
        write_archive(problem, examples, seed, 5, path)
    archive, other = map(Archive, paths)
    assert archive.classes == 9 and archive.shape == (64,)
    assert archive.weights["dense_4/kernel"].shape == (128, 9)
    assert archive.weights["dense_1/kernel"].shape == (128, 512)  # Made as an argument of "dense".
    assert archive.weights["multi_head_attention_1/query/kernel"].shape == (128, 4, 32)
    keras.utils.clear_session()
    assert set(named_variables(problem.training.network(examples))) == set(archive.weights)
    assert np.any(archive.weights["dense/kernel"] != other.weights["dense/kernel"])
    inputs, targets = archive.batch(3)
    assert inputs.shape == (64, 64) and np.all(targets == inputs + 1)
    assert np.any(inputs != other.batch(3)[0])
    assert np.all(archive.batch(5)[0] == archive.batch(0)[0])


def test_every_pass_has_every_example_at_most_once() -> None:
    order = order_of_batches(10, 3, 8, seed=0)
    assert order.shape == (8, 3)
    for start in (0, 3):
        assert len(set(order[start : start + 3].ravel())) == 9
    in_order = order_of_batches(10, 3, 4, seed=0, streams=True)
    np.testing.assert_array_equal(in_order.ravel(), [*range(9), 0, 1, 2])
    with pytest.raises(ValueError, match="The data has 2 examples, a batch of this problem 3"):
        order_of_batches(2, 3, 1, seed=0)


def test_layers_are_numbered_as_keras_does() -> None:
    names = LayerNames()
    made = [names.next(kind) for kind in ("dense", "conv2d", "dense", "dense")]
    assert made == ["dense", "conv2d", "dense_1", "dense_2"]


# --- who takes part ----------------------------------------------------------------------------


def test_who_takes_part() -> None:
    autoencoder, convnet = PROBLEMS["autoencoder"], PROBLEMS["convnet"]
    assert contenders_of(convnet, PEERS) == list(CONTENDERS)
    assert not any("im2col" in name for name in contenders_of(autoencoder, PEERS))
    assert contenders_of(autoencoder, ["kfac-jax"], quick=True) == [
        "tfkfac fixed",
        "SGD",
        "JAX SGD",
        "kfac-jax fixed",
    ]
    recurrent = contenders_of(PROBLEMS["lstm"], PEERS)
    assert {CONTENDERS[name].peer for name in recurrent} == {"tfkfac", "keras"}
    with pytest.raises(ValueError, match=r"`peers` must be some of keras, .* got shampoo"):
        contenders_of(autoencoder, ["shampoo"])


def test_those_that_are_compared_have_the_same_options() -> None:
    """Also what each is compared with is there, and computes in its own framework."""
    for problem in PROBLEMS.values():
        for contender in CONTENDERS.values():
            assert CONTENDERS[contender.sgd].worker == contender.worker
            if contender.against is not None and contender.optimizer.startswith("kfac"):
                ours = CONTENDERS[contender.against]
                assert options(contender, problem) == options(ours, problem)
                assert contender.automatic == ours.automatic


def test_companions_of_what_is_missing() -> None:
    assert companions(["kfac-jax auto"]) == ["tfkfac auto", "JAX SGD", "kfac-jax auto"]
    assert companions(["Adam"]) == ["tfkfac default", "SGD", "Adam"]
    assert companions(["tfkfac auto"]) == ["tfkfac auto", "SGD"]


# --- environments ------------------------------------------------------------------------------


def test_an_environment_is_made_once_and_anew_when_its_requirements_change(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(environments, "_run", lambda command, what: commands.append(command))
    monkeypatch.setattr(environments.venv, "create", lambda home, with_pip: home.mkdir())
    wanted = Environment("some", ("a==1", "b"), "a")
    python = interpreter_of(wanted, tmp_path)
    assert python.parent.parent == tmp_path / "some"
    assert commands[0][-2:] == ["a==1", "b"] and commands[1][-1] == "import a"
    interpreter_of(wanted, tmp_path)
    assert len(commands) == 2
    interpreter_of(dataclasses.replace(wanted, requirements=("a==2",)), tmp_path)
    assert len(commands) == 4


def test_an_environment_that_cannot_be_made_says_why_and_is_tried_again(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def fail(command: list[str], what: str) -> None:
        tried.append(what)
        raise Unavailable("pip: no such thing")

    monkeypatch.setattr(environments, "_run", fail)
    monkeypatch.setattr(environments.venv, "create", lambda home, with_pip: home.mkdir())
    interpreters = Interpreters(tmp_path)
    for _ in range(2):
        with pytest.raises(Unavailable, match="no such thing"):
            interpreters.of("kfac-pytorch fixed")
    assert tried == ["pip"]  # Once a run of the program.
    with pytest.raises(Unavailable):
        Interpreters(tmp_path).of("kfac-pytorch fixed")
    assert interpreters.of("SGD") == pathlib.Path(sys.executable)


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("WARNING: x\nERROR: first\nERROR: No matching distribution\n", "No matching distribution"),
        ("Traceback\n  File\nModuleNotFoundError: No module\n\n", "ModuleNotFoundError: No module"),
        ("", "it failed without a word"),
    ],
)
def test_the_line_that_says_why(output: str, reason: str) -> None:
    assert reason_of(output) == reason


# --- numbers -----------------------------------------------------------------------------------


def trace(second: float, early: float | None = None, losses: float = 1.0) -> Trace:
    """A trace of the plan; the first half of the rounds has another pace."""
    paces = [early or second] * 2 + [second] * 2
    seconds = [5.0] + [pace for pace in paces for _ in range(3)]
    losses_of_all = [losses / (i + 1) for i in range(13)]
    return Trace(losses_of_all, seconds, [True] + [False] * 12, rounds(4), 50.0, 20.0)


def rounds(count: int, steps: int = 3) -> dict[int, tuple[int, int]]:
    """After the first update."""
    return {i: (1 + i * steps, 1 + (i + 1) * steps) for i in range(count)}


def runs_of(traces: dict[str, Trace], seconds: float = 6.0) -> dict[str, dict[str, Any]]:
    ends = Ends(13, seconds)
    made = {
        name: measurement(Setting("autoencoder", name, 0, PLAN), traces, ends, 1, {"x": "1"})
        for name in traces
    }
    json.dumps(made, allow_nan=False)
    return made


def test_ratios_are_of_the_same_rounds_of_the_last_half() -> None:
    traces = {
        "tfkfac fixed": trace(0.5, early=2.0),
        "JAX SGD": trace(0.25),
        "kfac-jax fixed": trace(1.0, early=2.0),
    }
    jax = runs_of(traces)["kfac-jax fixed"]
    assert measurements.seconds_of_step([jax]).values == [1.0, 1.0]
    assert measurements.to_sgd([jax]).values == [4.0, 4.0]
    assert measurements.ours_to_it([jax]).values == [0.5, 0.5]
    ours = runs_of(traces)["tfkfac fixed"]
    assert measurements.to_sgd([ours]) is None  # Keras' SGD was not there.
    assert measurements.ours_to_it([ours]) is None


def test_of_one_that_left_early_the_rounds_are_compared_that_it_had() -> None:
    compiled = [True] + [False] * 4
    jax = Trace([1.0] * 5, [9.0] + [8.0] * 4, compiled, rounds(2, steps=2), 50.0)
    run = runs_of({"tfkfac fixed": trace(1.0, early=2.0), "kfac-jax fixed": jax})["kfac-jax fixed"]
    assert measurements.ours_to_it([run]).values == [0.25]
    assert measurements.after_updates(run) is None


def test_losses_after_equal_updates_and_equal_seconds() -> None:
    run = runs_of({"SGD": trace(0.5)}, seconds=3.0)["SGD"]
    assert measurements.after_updates(run) == pytest.approx(1 / 13, rel=1e-5)
    assert measurements.after_seconds(run) == pytest.approx(
        1 / 6, rel=1e-5
    )  # Six updates of half a second.
    broken = trace(0.5)
    broken.losses[4] = float("nan")
    run = runs_of({"SGD": broken}, seconds=3.0)["SGD"]
    assert run["diverged"] and run["curve"]["updates"] == [1, 2, 3, 4]
    assert measurements.after_seconds(run) is None


def test_seconds_to_where_a_peer_ends() -> None:
    """It is at 1/13 after thirteen updates of a second, we are after four of half a second."""
    traces = {
        "tfkfac auto": trace(0.5, losses=4 / 13),
        "tfkfac default": trace(0.5, losses=2.0),
        "kfac-jax auto": trace(1.0),
    }
    runs = runs_of(traces)
    peer = [runs["kfac-jax auto"]]
    assert measurements.overtaken(peer, [runs["tfkfac auto"]]).values == pytest.approx([2.0 / 13.0])
    assert measurements.overtaken(peer, [runs["tfkfac default"]]).values == [math.inf]
    assert measurements.overtaken(peer, []) is None
    page = report.markdown(list(runs.values()))
    assert "Where kfac-jax auto is after 13 updates (0.07692), tfkfac auto is in 0.1" in page
    assert "tfkfac default is in" not in page


def test_steps_of_one_that_diverged_are_not_told() -> None:
    """It may have skipped them."""
    lost = trace(0.5)
    lost.losses[-1] = 4e28
    runs = runs_of({"tfkfac fixed": lost, "kfac-jax fixed": trace(1.0)})
    assert runs["tfkfac fixed"]["diverged"] and not runs["kfac-jax fixed"]["diverged"]
    assert measurements.seconds_of_step([runs["tfkfac fixed"]]) is None
    assert measurements.seconds_of_step([runs["kfac-jax fixed"]]) is not None
    assert measurements.ours_to_it([runs["kfac-jax fixed"]]) is None


@pytest.fixture
def some_runs() -> list[dict[str, Any]]:
    torch = Setting("autoencoder", "kfac-pytorch fixed", 0, PLAN)
    traces = {
        "tfkfac fixed": trace(0.5),
        "SGD": trace(0.25),
        "JAX SGD": trace(0.25),
        "kfac-jax fixed": trace(1.0),
    }
    return [*runs_of(traces).values(), measurements.unavailable(torch, "pip: no such | thing")]


def test_old_files_do_not_tell_what_training_took(some_runs: list[dict[str, Any]]) -> None:
    for run in some_runs:
        del run["megabytes_before"]
    assert "| 2.00 | – | 50 | 5.0 |" in report.markdown(some_runs)


def test_tables_say_it_all(some_runs: list[dict[str, Any]], tmp_path: pathlib.Path) -> None:
    page = report.markdown(some_runs)
    lines = {line.split("|")[1].strip(): line for line in page.splitlines() if line[:1] == "|"}
    assert "| 4.00 | 0.50 (tfkfac fixed) | 50 (30) | 5.0 |" in lines["kfac-jax fixed"]
    assert "| 2.00 | – | 50 (30) | 5.0 | 0.07692 |" in lines["tfkfac fixed"]
    assert r"cannot: pip: no such \| thing" in lines["kfac-pytorch fixed"]
    widths = {line.replace(r"\|", "").count("|") for line in lines.values()}
    assert len(widths) == 1
    console = Console(width=200, record=True, quiet=True)
    report.show(some_runs, console)
    plot(some_runs, tmp_path / "peers.png")
    assert (tmp_path / "peers.png").stat().st_size > 10_000


# --- the whole ---------------------------------------------------------------------------------


@pytest.fixture
def fake_workers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Steps take a tenth of a second and no time; kfac-jax fails; nothing is written."""
    begun: list[str] = []

    class Fake(Clockwork):
        def __init__(self, command: list[Any]) -> None:
            super().__init__(0.1, [])
            self.name = command[-1]

        def send(self, **request: Any) -> None:
            self.refuses = "jax" in self.name and request["optimizer"] == "kfac"
            begun.append(f"{self.name.split('_')[-1]} {request['optimizer']}")

        def receive(self) -> dict[str, Any]:
            if self.refuses:
                raise WorkerError("ValueError: not this network")
            return {"versions": {"fake": "1"}}

        def end(self) -> None:
            pass

    monkeypatch.setattr(session, "Worker", Fake)
    monkeypatch.setattr(session, "write_archive", lambda *_: None)
    monkeypatch.setattr(Interpreters, "of", lambda self, name: pathlib.Path("python"))
    return begun


def settings_of(*names: str) -> list[Setting]:
    return [Setting("autoencoder", name, 0, PLAN) for name in names]


def test_what_is_measured_is_not_measured_again(
    tmp_path: pathlib.Path, fake_workers: list[str]
) -> None:
    """What is missing is measured beside what it is compared with."""
    path = tmp_path / "peers.json"
    examples = Examples(np.zeros((4, 2)), np.zeros(4))
    wanted = settings_of("tfkfac fixed", "SGD", "JAX SGD", "kfac-jax fixed")

    def start(wanted: list[Setting]) -> list[str]:
        fake_workers.clear()
        results = Results(path)
        left = missing(wanted, results)
        if left:
            problem = PROBLEMS["autoencoder"]
            measure(problem, examples, left, Interpreters(tmp_path), results)
        return list(fake_workers)

    assert start(wanted) == ["keras kfac", "keras SGD", "jax SGD", "jax kfac"]
    assert start(wanted) == []
    runs = {run["contender"]: run for run in Results(path).runs}
    assert list(runs) == [setting.contender for setting in wanted]
    assert runs["kfac-jax fixed"]["error"] == "ValueError: not this network"
    assert measurements.to_sgd([runs["tfkfac fixed"]]).values == pytest.approx([1.0, 1.0])
    assert start([*wanted, *settings_of("Adam")]) == [
        "keras kfac-default",
        "keras SGD",
        "keras Adam",
    ]
    assert len(Results(path).runs) == 5


def test_the_program_says_what_is_wrong(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(*arguments: str) -> str:
        output = ["--output", str(tmp_path / "peers")]
        with pytest.raises(SystemExit):
            command_line.main([*arguments, *output])
        return capsys.readouterr().err

    assert "mnist.npz is needed, and no --data was given" in told("--quick")
    assert "cifar10.npz is needed" in told("--problems", "convnet")
    assert "argument --rounds: must be an integer of at least 1, got 0" in told("--rounds", "0")
    assert "invalid choice: 'lasso'" in told("--problems", "lasso")
    assert list(tmp_path.iterdir()) == []


def test_the_program_writes_a_page_and_a_picture(
    tmp_path: pathlib.Path,
    fake_workers: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    training = dataclasses.replace(
        PROBLEMS["autoencoder"].training,
        file=None,
        examples=lambda _: Examples(np.zeros((4, 2)), np.zeros(4)),
    )
    changed = dataclasses.replace(PROBLEMS["autoencoder"], training=training)
    monkeypatch.setitem(PROBLEMS, "autoencoder", changed)
    output = tmp_path / "results" / "peers"
    command_line.main(["--quick", "--output", str(output), "--peers", "kfac-jax"])
    assert "cannot: ValueError: not this network" in output.with_suffix(".md").read_text()
    assert output.with_suffix(".png").exists()
    assert len(json.loads(output.with_suffix(".json").read_text())["runs"]) == 4
    assert "kfac-jax fixed" in capsys.readouterr().out
