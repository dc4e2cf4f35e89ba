"""What a KFAC step costs against an SGD step: seconds, memory, first step, and the bound.

The work is counted first (operations, at the machine's own matrix-product rate), then measured:
one process, the optimizers in alternating blocks of steps, the compiled train step fed from
memory, medians and quartiles. Peak memory and the first step are measured in processes of their
own.

    python -m benchmarks.step_cost --problems autoencoder convnet --rounds 5

Needs: no data; some ten minutes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import matplotlib
import numpy as np
import rich.progress
import rich.table
import tensorflow as tf
from rich.console import Console

import tfkfac
from benchmarks import machine
from benchmarks.command_line import parser_of, positive_integer, start
from benchmarks.problems import PROBLEMS, Problem
from benchmarks.zoo.results import Results, Run
from tfkfac.capture import Recorder
from tfkfac.cost import WorkSchedule
from tfkfac.registry import supported

matplotlib.use("Agg")

WARM_UP_STEPS = 100
"""Steps of KFAC before measuring: until then its updates come more often (tfkfac/schedule.py)."""


@dataclasses.dataclass
class Measurement:
    """One optimizer on one problem.

    Attributes:
        operations: Of a mean step.
        seconds: Of every measured step.
        ratios: Mean step over the mean SGD step, round by round.
        period: Steps after which the updates repeat.
        first_step: Seconds from `compile` to the end of the first step, tracing included.
        tensor_megabytes: Most that the tensors of 25 steps took at once.
        process_megabytes: Peak memory of the process that trained them, TensorFlow and all.
    """

    operations: float
    period: int = 1
    seconds: list[float] = dataclasses.field(default_factory=list)
    ratios: list[float] = dataclasses.field(default_factory=list)
    first_step: float = 0.0
    tensor_megabytes: float = 0.0
    process_megabytes: float = 0.0

    @property
    def slowest(self) -> float:
        """The slowest step of a period over the median step.

        Every step of the period is the median of its repetitions: other programs on the machine
        make single steps of any optimizer slow.
        """
        steps = [np.median(self.seconds[i :: self.period]) for i in range(self.period)]
        return float(np.max(steps) / np.median(self.seconds))


def make_optimizer(problem: Problem, name: str, method: str) -> keras.optimizers.Optimizer:
    """SGD with momentum, or KFAC with one of the settings."""
    setting = problem.settings.get(name)
    if setting is None:
        return keras.optimizers.SGD(0.01, momentum=0.9)
    fixed = {"learning_rate": 0.3, "damping": 1e-3, "kl_clip": 1e-3, "method": method}
    return tfkfac.KFAC(**{**fixed, **setting})


def schedule_of(problem: Problem, name: str) -> WorkSchedule | None:
    """How often KFAC does what; None if it does nothing."""
    setting = problem.settings.get(name)
    if setting is None:
        return None
    automatic = setting.get("momentum") == "auto"  # and all the rest, see `benchmarks.problems`
    return WorkSchedule(
        setting["factor_update_every"],
        setting["inverse_update_every"],
        tangents=2 if automatic else 0,
        look_every=WorkSchedule.look_every if automatic else None,
    )


def compiled_step(problem: Problem, name: str, method: str) -> tuple[Callable[[], Any], Any]:
    """The train step as one graph on data in memory, and its model."""
    inputs, targets = map(tf.constant, problem.batch(problem.batch_size))
    model = problem.network()
    model.compile(optimizer=make_optimizer(problem, name, method), loss=problem.loss())
    if name != "SGD" and schedule_of(problem, name) is None:
        Recorder(relevant=supported).attach(model)
    model.train_on_batch(inputs, targets)
    return tf.function(lambda: model.train_step((inputs, targets))["loss"]), model


def count_operations(problem: Problem, method: str) -> dict[str, Any]:
    """Operations of a step by what they are for, in GFLOP, and the bounds that follow."""
    network, parts, totals = problem.network(), {}, {}
    for name in ("SGD", *problem.settings):
        form = (problem.settings.get(name) or {}).get("recurrent", "independent")
        collection = tfkfac.LayerCollection.scan(network, method=method, recurrent=form)
        step = collection.cost(batch_size=problem.batch_size)
        parts[form] = {key: value / 1e9 for key, value in dataclasses.asdict(step).items()}
        schedule = schedule_of(problem, name)
        totals[name] = (step.sgd if schedule is None else step.kfac(schedule)) / 1e9
    return {"parts": parts, "totals": totals}


def measure(
    problem: Problem, rounds: int, steps: int, method: str, warm_up: int = WARM_UP_STEPS
) -> dict[str, Measurement]:
    """Alternates blocks of steps of all optimizers."""
    totals = count_operations(problem, method)["totals"]
    measured = {
        name: Measurement(operations=1e9 * total, period=_period(schedule_of(problem, name)))
        for name, total in totals.items()
    }
    run = {name: compiled_step(problem, name, method)[0] for name in measured}
    for name, step in run.items():
        for _ in range(warm_up if schedule_of(problem, name) else 3):
            step().numpy()
    for _ in rich.progress.track(range(rounds), description=problem.name):
        for name, step in run.items():
            measured[name].seconds.extend(_time(step) for _ in range(steps))
        means = {name: np.mean(value.seconds[-steps:]) for name, value in measured.items()}
        for name, value in measured.items():
            value.ratios.append(float(means[name] / means["SGD"]))
    for name, value in measured.items():
        found = in_process_of_its_own(problem, name, method)
        value.first_step, value.tensor_megabytes, value.process_megabytes = found
    return measured


def _period(schedule: WorkSchedule | None) -> int:
    """Steps after which work repeats itself."""
    if schedule is None:
        return 1
    return max(schedule.factor_update_every, schedule.inverse_update_every)


def in_process_of_its_own(problem: Problem, name: str, method: str) -> list[float]:
    """What `alone` prints, in a fresh process whose CPU allocator counts as that of a GPU does."""
    command = [sys.executable, "-m", "benchmarks.step_cost", "--alone", problem.name, name]
    found = subprocess.run(
        [*command, "--method", method],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"TF_CPU_ALLOCATOR_USE_BFC": "1"},
    )
    return json.loads(found.stdout.strip().splitlines()[-1])


def alone(problem: Problem, name: str, method: str) -> None:
    """Trains 25 steps; prints ``[seconds of the first step, MB of tensors, MB of the process]``."""
    start = time.perf_counter()
    step, _ = compiled_step(problem, name, method)
    first = time.perf_counter() - start
    for _ in range(25):
        step().numpy()
    tensors = tf.config.experimental.get_memory_info(_device())["peak"] / 2**20
    print(json.dumps([first, tensors, machine.peak_megabytes()]))


def _device() -> str:
    return "GPU:0" if tf.config.list_physical_devices("GPU") else "CPU:0"


def report(problem: Problem, measured: dict[str, Measurement], rate: float, method: str) -> None:
    """Prints both tables: the work, and the measurements against it."""
    console = Console(width=140)
    counted = count_operations(problem, method)
    console.print(f"\n[bold]{problem.name}[/bold], batch {problem.batch_size}, method {method}")
    for form, parts in counted["parts"].items():
        text = ", ".join(f"{key} {value:.2f}" for key, value in parts.items())
        console.print(f"GFLOP{f' ({form})' if len(counted['parts']) > 1 else ''}: {text}")
    headings = "Optimizer|GFLOP|bound|median s|mean s|ratio (min…max)|ratio/bound|slowest/median"
    table = rich.table.Table(title=f"{rate / 1e9:.0f} GFLOP/s measured")
    for heading in f"{headings}|first step s|tensors MB|process MB".split("|"):
        table.add_column(heading, justify="right")
    sgd = measured["SGD"]
    for name, value in measured.items():
        bound = value.operations / sgd.operations
        ratio = float(np.median(value.ratios))
        table.add_row(
            name,
            f"{value.operations / 1e9:.1f}",
            f"{bound:.2f}",
            f"{np.median(value.seconds):.4f}",
            f"{np.mean(value.seconds):.4f}",
            f"{ratio:.2f} ({min(value.ratios):.2f}…{max(value.ratios):.2f})",
            f"{ratio / bound:.2f}",
            f"{value.slowest:.2f}",
            f"{value.first_step:.1f}",
            f"{value.tensor_megabytes:.0f}",
            f"{value.process_megabytes:.0f}",
        )
    console.print(table)
    for name, value in measured.items():
        fixed = measured.get(name.replace("auto", "KFAC"))
        if name.startswith("auto") and fixed is not None:
            ratios = [a / b for a, b in zip(value.ratios, fixed.ratios, strict=True)]
            console.print(
                f"{name} over the same with fixed numbers: {np.median(ratios):.2f} "
                f"({min(ratios):.2f}…{max(ratios):.2f}); counted "
                f"{value.operations / fixed.operations:.2f}"
            )
    factors = tfkfac.LayerCollection.scan(problem.network(), method=method).factor_bytes()
    extra = max(v.tensor_megabytes for v in measured.values()) - sgd.tensor_megabytes
    console.print(
        f"Factors {factors / 2**20:.1f} MB; peak memory of tensors above SGD {extra:.0f} MB = "
        f"{extra / (factors / 2**20):.1f} × the factors"
    )


def plot(results: dict[str, dict[str, Measurement]], path: pathlib.Path) -> None:
    """A bar an optimizer: mean step over SGD's, with the bound as a line."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(results), figsize=(5 * len(results), 4), squeeze=False)
    for axis, (name, measured) in zip(axes[0], results.items(), strict=True):
        ratios = [np.median(value.ratios) for value in measured.values()]
        spread = [
            [ratio - min(value.ratios), max(value.ratios) - ratio]
            for ratio, value in zip(ratios, measured.values(), strict=True)
        ]
        positions = np.arange(len(measured))
        axis.bar(positions, ratios, yerr=np.array(spread).T, color="#4878a8", capsize=4)
        bounds = [value.operations / measured["SGD"].operations for value in measured.values()]
        axis.hlines(bounds, positions - 0.4, positions + 0.4, color="black", label="counted work")
        axis.set_xticks(positions, list(measured))
        axis.set_ylabel("mean step / SGD step")
        axis.set_title(name)
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line and runs.

    Args:
        arguments: Of the command line.
    """
    parser = parser_of(
        "step_cost", __doc__, quick="two rounds of 10 steps of the convnet, hardly warmed up"
    )
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS), choices=list(PROBLEMS))
    parser.add_argument("--rounds", type=positive_integer, default=5, help="alternations")
    parser.add_argument("--steps", type=positive_integer, default=40, help="steps of a block")
    parser.add_argument("--method", default="cholesky", choices=["cholesky", "eigen", "ekfac"])
    parser.add_argument("--alone", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.alone:
        problem, name = chosen.alone
        alone(PROBLEMS[problem], name, chosen.method)
        return
    if chosen.quick:
        chosen.problems, chosen.rounds, chosen.steps = ["convnet"], 2, 10
    kept, results = Results(chosen.output.with_suffix(".json")), {}
    for name in chosen.problems:
        setting = {"problem": name, "method": chosen.method}
        setting |= {"rounds": chosen.rounds, "steps": chosen.steps, "quick": chosen.quick}
        run = kept.get(setting, measured_as_set)
        results[name] = {key: Measurement(**value) for key, value in run["measured"].items()}
        report(PROBLEMS[name], results[name], run["matmul_rate"], chosen.method)
    plot(results, chosen.output.with_suffix(".png"))
    print(f"Written: {chosen.output}.json, {chosen.output}.png")


def measured_as_set(setting: Mapping[str, Any]) -> Run:
    """A problem's measurements, as they go into the file."""
    warm_up = setting["steps"] if setting["quick"] else WARM_UP_STEPS
    rate = machine.matmul_rate()
    measured = measure(
        PROBLEMS[setting["problem"]],
        setting["rounds"],
        setting["steps"],
        setting["method"],
        warm_up,
    )
    found = {name: dataclasses.asdict(value) for name, value in measured.items()}
    return {**setting, "matmul_rate": max(rate, machine.matmul_rate()), "measured": found}


def _time(step: Callable[[], Any]) -> float:
    start = time.perf_counter()
    step().numpy()
    return time.perf_counter() - start


if __name__ == "__main__":
    start(main)
