"""How a step's cost grows with width, depth and batch, against the count of its operations.

Fully connected networks (tanh), of which one size changes at a time. Three kinds of step in turn:
SGD's; KFAC's with all that it ever does (factors and inverses made anew, fixed numbers); and KFAC's
with nothing but preconditioning. The bound is SGD's measured step and, for what comes on top of it,
the count of operations at the machine's own rate of matrix products. The first step, tracing
included, is `KFAC()`'s, as it is without arguments, in a process of its own.

    python -m benchmarks.growth --output docs/results/growth

Needs: no data; 10 to 40 minutes, 3 GB of memory.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import rich.progress
import tensorflow as tf
from matplotlib.figure import Figure

import tfkfac
from benchmarks import machine, markdown
from benchmarks.command_line import parser_of, positive_integer, start
from benchmarks.late import NEVER, make_late
from benchmarks.zoo import report
from benchmarks.zoo.results import Results, Run
from tfkfac.cost import WorkSchedule

FIXED = {"learning_rate": 0.01, "damping": 1.0, "kl_clip": 1e-3}
KINDS: dict[str, Mapping[str, Any] | None] = {
    "SGD": None,
    "everything": FIXED | {"factor_update_every": 1, "inverse_update_every": 1},
    "preconditioning": FIXED | {"factor_update_every": NEVER, "inverse_update_every": NEVER},
}
"""Kind of step → arguments of KFAC, None for SGD."""


@dataclasses.dataclass(frozen=True)
class Size:
    """A network and a batch.

    Attributes:
        axis: Which of the sizes is studied.
        width: Of each hidden layer.
        depth: Hidden layers.
        batch: Examples.
    """

    axis: str
    width: int = 500
    depth: int = 3
    batch: int = 512

    @property
    def value(self) -> int:
        """The size that is studied."""
        return getattr(self, self.axis)

    def network(self) -> keras.Model:
        """256 inputs, 10 classes."""
        hidden = [keras.layers.Dense(self.width, activation="tanh") for _ in range(self.depth)]
        return keras.Sequential([keras.Input((256,)), *hidden, keras.layers.Dense(10)])


SIZES = (
    *(Size("width", width=width, depth=2) for width in (250, 500, 1000, 2000, 4000)),
    *(Size("depth", width=250, depth=depth) for depth in (4, 8, 16, 32, 64)),
    *(Size("batch", batch=batch) for batch in (64, 256, 1024, 4096, 16_384)),
)
QUICK = (
    *(Size("width", width=width, depth=2) for width in (100, 200)),
    *(Size("depth", width=50, depth=depth) for depth in (2, 4)),
    *(Size("batch", width=100, batch=batch) for batch in (64, 256)),
)
DEEP = "ResNet50"
"""Its first step is told too, 64×64 images, batches of 8."""


def compiled(model: keras.Model, kind: str) -> keras.Model:
    """With the optimizer of a kind of step."""
    arguments = KINDS[kind]
    optimizer = (
        keras.optimizers.SGD(0.01, momentum=0.9)
        if arguments is None
        else tfkfac.KFAC(seed=0, **arguments)
    )
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def step_of(size: Size, kind: str) -> Callable[[], Any]:
    """A compiled training step on data in memory."""
    rng = np.random.default_rng(0)
    inputs = tf.constant(rng.normal(size=(size.batch, 256)), tf.float32)
    targets = tf.constant(rng.integers(10, size=size.batch))
    model = compiled(size.network(), kind)
    model.train_on_batch(inputs, targets)
    if isinstance(model.optimizer, tfkfac.KFAC):
        make_late(model.optimizer)
    return tf.function(lambda: model.train_step((inputs, targets))["loss"])


def counted(size: Size) -> dict[str, float]:
    """Operations of each kind of step."""
    cost = tfkfac.LayerCollection.scan(size.network()).cost(batch_size=size.batch)
    schedules = {
        name: WorkSchedule(every, every, tangents=0, look_every=None)
        for name, every in (("everything", 1), ("preconditioning", NEVER))
    }
    return {"SGD": cost.sgd} | {name: cost.kfac(each) for name, each in schedules.items()}


def measured(size: Size, rounds: int) -> Run:
    """Median seconds of each kind of step, measured in turn, and the seconds of the first one."""
    rate = machine.matmul_rate()
    steps = {kind: step_of(size, kind) for kind in KINDS}
    for step in steps.values():
        step().numpy()
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(rounds):
        for kind, step in steps.items():
            start = time.perf_counter()
            step().numpy()
            seconds[kind].append(time.perf_counter() - start)
    return {
        **dataclasses.asdict(size),
        "rounds": rounds,
        "matmul_rate": max(rate, machine.matmul_rate()),
        "operations": counted(size),
        "seconds": seconds,
        **first_step_alone(json.dumps(dataclasses.asdict(size))),
    }


def first_step_alone(what: str) -> dict[str, float]:
    """Seconds of the first step of `KFAC()` in a fresh process, see `first_step`."""
    command = [sys.executable, "-m", "benchmarks.growth", "--alone", what]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(found.stdout.strip().splitlines()[-1])


def first_step(what: str) -> dict[str, float]:
    """Seconds from `compile` to the end of the first step of `KFAC()`, and those of tracing.

    And the operations of the step's graph, those of functions that it calls included.
    """
    rng = np.random.default_rng(0)
    if what == DEEP:
        model = keras.applications.ResNet50(
            weights=None, input_shape=(64, 64, 3), classes=10, classifier_activation=None
        )
        inputs = rng.normal(size=(8, 64, 64, 3)).astype("float32")
    else:
        size = Size(**json.loads(what))
        model = size.network()
        inputs = rng.normal(size=(size.batch, 256)).astype("float32")
    targets = rng.integers(10, size=len(inputs))
    traced = model.train_step
    tracing = 0.0
    graphs = []

    def timed(data: Any) -> Any:
        nonlocal tracing
        begun = time.perf_counter()
        logs = traced(data)
        tracing += time.perf_counter() - begun
        graphs.append(tf.compat.v1.get_default_graph())
        return logs

    model.train_step = timed  # which Python runs while it is traced only
    start = time.perf_counter()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tfkfac.KFAC(seed=0), loss)
    model.fit(inputs, targets, batch_size=len(inputs), verbose=0)
    seconds = time.perf_counter() - start
    graph = graphs[-1].as_graph_def()
    bodies = [graph.node, *(function.node_def for function in graph.library.function)]
    return {"first_step": seconds, "tracing": tracing, "operations_of_graph": sum(map(len, bodies))}


def bound(run: Run, kind: str) -> float:
    """Seconds that the counted operations take: SGD's as measured, all others at the full rate."""
    operations = run["operations"]
    sgd = float(np.median(run["seconds"]["SGD"]))
    beyond = (operations[kind] - operations["SGD"]) / run["matmul_rate"]
    return sgd + beyond


def table(runs: Sequence[Run], deep: Run | None) -> str:
    """A line a size."""
    rows = []
    for run in runs:
        cells = [f"{run['axis']} {Size(**_size_in(run)).value:,}"]
        for kind in KINDS:
            cells.append(f"{1e3 * np.median(run['seconds'][kind]):.1f}")
            if kind != "SGD":
                cells.append(f"{np.median(run['seconds'][kind]) / bound(run, kind):.2f}")
        first = [f"{run[key]:.1f}" for key in ("first_step", "tracing")]
        rows.append([*cells, *first, f"{run['operations_of_graph']:,}"])
    headings = [
        "size",
        "SGD, ms",
        "everything, ms",
        "of the bound",
        "preconditioning, ms",
        "of the bound",
        "first step of KFAC(), s",
        "of them tracing, s",
        "operations of the graph",
    ]
    lines = markdown.table(headings, rows)
    if deep is None:
        return lines
    return (
        f"{lines}\n\nThe first step of {DEEP} (64×64, batch 8): {deep['first_step']:.1f} s, "
        f"of them {deep['tracing']:.1f} s tracing; {deep['operations_of_graph']:,} operations."
    )


def plot(runs: Sequence[Run], path: pathlib.Path) -> None:
    """A panel an axis: seconds of each kind of step, with their bounds; and the first steps."""
    axes_of = list(dict.fromkeys(run["axis"] for run in runs))
    figure = Figure(figsize=(4.2 * (len(axes_of) + 1), 3.8), layout="constrained")
    *panels, last = figure.subplots(1, len(axes_of) + 1)
    for panel, axis in zip(panels, axes_of, strict=True):
        chosen = [run for run in runs if run["axis"] == axis]
        values = [run[axis] for run in chosen]
        for number, kind in enumerate(KINDS):
            color = f"C{number}"
            medians = [float(np.median(run["seconds"][kind])) for run in chosen]
            panel.loglog(values, medians, "o-", color=color, label=kind)
            if kind != "SGD":
                bounds = [bound(run, kind) for run in chosen]
                panel.loglog(values, bounds, ":", color=color, label="its bound")
        panel.set_xticks(values, [f"{value:,}" for value in values])
        panel.minorticks_off()
        panel.set_xlabel(axis)
        panel.set_ylabel("seconds of a step")
    panels[0].legend(frameon=False, fontsize=8)
    deep = [run for run in runs if run["axis"] == "depth"]
    for color, (key, label) in enumerate(
        {"first_step": "compile to first step", "tracing": "tracing"}.items(), start=len(KINDS)
    ):
        depths = [run["depth"] for run in deep]
        last.plot(depths, [run[key] for run in deep], "o-", color=f"C{color}", label=label)
    last.set(xlabel="depth", ylabel="seconds", xlim=(0, None), ylim=(0, None))
    last.legend(frameon=False, fontsize=8)
    for panel in (*panels, last):
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def _size_in(run: Mapping[str, Any]) -> dict[str, Any]:
    return {field.name: run[field.name] for field in dataclasses.fields(Size)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line and runs.

    Args:
        arguments: Of the command line.
    """
    parser = parser_of("growth", __doc__, quick="small sizes, three rounds")
    parser.add_argument(
        "--rounds", type=positive_integer, default=7, help="alternations (default: 7)"
    )
    parser.add_argument("--alone", metavar=DEEP, help="only the first step of it")
    chosen = parser.parse_args(arguments)
    if chosen.alone:
        if chosen.alone != DEEP and not chosen.alone.startswith("{"):
            parser.error(f"argument --alone: must be {DEEP}, got {chosen.alone}")
        print(json.dumps(first_step(chosen.alone)))
        return
    sizes, rounds = (QUICK, 3) if chosen.quick else (SIZES, chosen.rounds)
    runs = []
    try:
        kept = Results(chosen.output.with_suffix(".json"))
        report.require_place(chosen.output.with_suffix(".md"))
    except ValueError as error:
        parser.error(str(error))
    for size in rich.progress.track(sizes, description="sizes"):
        setting = dataclasses.asdict(size) | {"rounds": rounds}
        runs.append(kept.get(setting, lambda _, size=size: measured(size, rounds)))
    deep = None
    if not chosen.quick:
        setting = {"axis": DEEP}
        deep = kept.get(setting, lambda _: setting | first_step_alone(DEEP))
    text = table(runs, deep)
    print(text)
    report.write_page(chosen.output.with_suffix(".md"), text)
    plot(runs, chosen.output.with_suffix(".png"))
    print(f"\nWritten: {chosen.output}.json, {chosen.output}.md, {chosen.output}.png")


if __name__ == "__main__":
    start(main)
