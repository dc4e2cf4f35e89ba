"""What a step would take on 1 to 4096 workers, for what does not fit on a desk.

From shapes alone: the work of a step (`LayerCollection.cost`), who does what (the same greedy
assignment on the same grid that training uses), what is sent (`tfkfac.traffic`), and some numbers
of a machine. Nothing overlaps, and a collective has the hops of a ring or of a tree:

    step = passes + statistics + slowest worker's inverses + slowest worker's preconditioning
           + Σ over exchanges (most bytes that a worker sends / bandwidth + hops · latency)

An inverse of d rows takes its operations at the rate of `--inverse-flops`, and d times
`--inverse-latency`, for a factorisation goes through its columns one after the other: that is what
many small inverses cost on a GPU.

    python -m benchmarks.scaling_model --output docs/results/scaling

Needs: no data; a minute.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import keras
import rich.console
import rich.progress
import rich.table
from matplotlib.figure import Figure

import tfkfac
from benchmarks.command_line import parser_of, positive_integer, positive_number, start
from benchmarks.machine import description
from tfkfac.blocks import CurvatureBlock, KroneckerBlock
from tfkfac.cost import StepCost, WorkSchedule, block_costs, total
from tfkfac.distribution.placement import divisors
from tfkfac.roles import Roles
from tfkfac.traffic import predict

PLACEMENTS = ("comm_opt", "hybrid", "mem_opt")
WORKERS = tuple(2**power for power in range(13))


@dataclasses.dataclass(frozen=True)
class Machine:
    """One worker, and what is between workers.

    The defaults are those of a GPU of 2017 (V100) in nodes of four with two links of 12.5 GB/s.

    Attributes:
        flops: Operations a second, in passes and products.
        inverse_flops: Operations a second, in inverses.
        inverse_latency: Seconds that an inverse takes for each of its rows beside its operations.
        bandwidth: Bytes a second, into and out of a worker.
        latency: Seconds of a hop.
        tree: Whether collectives are trees, of logarithmic depth, instead of rings.
    """

    flops: float = 8e12
    inverse_flops: float = 2e12
    inverse_latency: float = 1e-5
    bandwidth: float = 6.25e9
    latency: float = 1e-5
    tree: bool = False

    def hops(self, members: int) -> int:
        """Of something that every one of so many workers gets from every other."""
        return math.ceil(math.log2(members)) if self.tree else members - 1


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A mean step.

    Attributes:
        stages: Name → seconds.
        kept: Bytes of factors and inverses on the worker that keeps the most.
    """

    stages: dict[str, float]
    kept: float

    @property
    def seconds(self) -> float:
        """Of the whole step."""
        return sum(self.stages.values())


class Network:
    """The blocks of a network and their work.

    Args:
        model: A built Keras model.
        batch_size: Examples of each worker.
    """

    def __init__(self, model: keras.Model, batch_size: int) -> None:
        self.blocks = list(tfkfac.LayerCollection.scan(model))
        self.curved = [block for block in self.blocks if isinstance(block, CurvatureBlock)]
        self.costs = block_costs(self.blocks, batch_size)
        self.total = total(self.costs.values())

    def step(
        self, workers: int, placement: str | float, machine: Machine, schedule: WorkSchedule
    ) -> Prediction:
        """Predicts a step of numbers alone: nothing that is "auto" is measured.

        Args:
            workers: W.
            placement: As for KFAC.
            machine: Rates.
            schedule: How often factors and inverses are made.
        """
        roles = Roles(self.curved, workers, placement)
        traffic = predict(self.blocks, roles)
        inverses, products = [0.0] * workers, [0.0] * workers
        everywhere = 0.0
        for block in self.curved:
            cost = self.costs.get(id(block), StepCost())
            owner = roles.owner_of(block)
            inverses[owner] += _inverse_seconds(block, cost, machine)
            if roles.all_precondition(block):
                everywhere += cost.precondition
                continue
            for worker in roles.placement.gradient_workers(roles.position_of(block)):
                products[worker] += cost.precondition
        grid = roles.placement.grid

        def sending(sent: Sequence[float], hops: int) -> float:
            return max(sent) / machine.bandwidth + hops * machine.latency if max(sent) else 0.0

        statistics = (self.total.extra_backward + self.total.factors) / machine.flops
        everyone = machine.hops(workers)
        stages = {
            "passes": self.total.sgd / machine.flops,
            "statistics": statistics / schedule.factor_update_every,
            "inverses": max(inverses) / schedule.inverse_update_every,
            "preconditioning": (everywhere + max(products)) / machine.flops,
            "sending gradients": sending(traffic.gradients, 2 * everyone),
            "sending statistics": sending(traffic.statistics, everyone)
            / schedule.factor_update_every,
            "sending inverses": sending(traffic.inverses, machine.hops(grid.rows))
            / schedule.inverse_update_every,
            "sending directions": sending(traffic.directions, machine.hops(grid.columns)),
        }
        return Prediction(stages, max(traffic.kept))


def _inverse_seconds(block: CurvatureBlock, cost: StepCost, machine: Machine) -> float:
    if not isinstance(block, KroneckerBlock) or not block.refresh_cost:
        return 0.0
    rows = sum(shape[-1] for shape in block.factor_shapes.values() if len(shape) > 1)
    return cost.inverses / machine.inverse_flops + rows * machine.inverse_latency


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line, predicts, and writes a table, JSON and a picture."""
    chosen = _parser().parse_args(arguments)
    if chosen.quick:
        chosen.workers, chosen.trade_off = [1, 4, 16], 4
    machine = Machine(
        chosen.flops,
        chosen.inverse_flops,
        chosen.inverse_latency,
        chosen.bandwidth,
        chosen.latency,
        chosen.tree,
    )
    schedule = WorkSchedule(chosen.factor_update_every, chosen.inverse_update_every)
    head = {
        "model": chosen.model,
        "batch_size": chosen.batch_size,
        "machine": dataclasses.asdict(machine),
        "factor_update_every": schedule.factor_update_every,
        "inverse_update_every": schedule.inverse_update_every,
    }
    path = chosen.output.with_suffix(".json")
    predicted = known(path, head)
    model = getattr(keras.applications, chosen.model)(weights=None)
    network = Network(model, chosen.batch_size)
    worlds = [(w, p) for w in chosen.workers for p in chosen.placements]
    placements = [(chosen.trade_off, 1 / d) for d in divisors(chosen.trade_off)]
    left = [each for each in worlds + placements if each not in predicted]
    for workers, placement in rich.progress.track(left, "Predicting", transient=True):
        predicted[workers, placement] = network.step(workers, placement, machine, schedule)
    print_table(chosen, predicted)
    rows = [
        {"workers": w, "placement": p, **dataclasses.asdict(step)}
        for (w, p), step in predicted.items()
    ]
    report = {**head, "made_with": description(), "predicted": rows}
    path.write_text(json.dumps(report, indent=1) + "\n")
    draw(chosen, predicted, chosen.output.with_suffix(".png"))
    print(f"Written: {chosen.output}.json and .png")


def known(path: pathlib.Path, head: dict[str, Any]) -> dict[tuple[int, Any], Prediction]:
    """What a file has already, if it is of the same network, machine and schedule."""
    report = json.loads(path.read_text()) if path.exists() else {}
    if not head.items() <= report.items():
        return {}
    rows = report["predicted"]
    return {(r["workers"], r["placement"]): Prediction(r["stages"], r["kept"]) for r in rows}


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(
        "scaling_model", __doc__, output="scaling", quick="1, 4 and 16 workers, fractions of 4"
    )
    rates = Machine()
    parser.add_argument("--model", default="ResNet50", help="of keras.applications")
    parser.add_argument("--batch-size", type=positive_integer, default=32, help="of each worker")
    parser.add_argument("--flops", type=positive_number, default=rates.flops)
    parser.add_argument("--inverse-flops", type=positive_number, default=rates.inverse_flops)
    parser.add_argument("--inverse-latency", type=float, default=rates.inverse_latency)
    parser.add_argument(
        "--bandwidth", type=positive_number, default=rates.bandwidth, help="bytes a second"
    )
    parser.add_argument("--latency", type=float, default=rates.latency, help="seconds of a hop")
    parser.add_argument("--tree", action="store_true", help="collectives of logarithmic depth")
    parser.add_argument("--factor-update-every", type=positive_integer, default=1)
    parser.add_argument("--inverse-update-every", type=positive_integer, default=1)
    parser.add_argument("--workers", type=positive_integer, nargs="+", default=list(WORKERS))
    parser.add_argument("--placements", nargs="+", default=list(PLACEMENTS), choices=PLACEMENTS)
    parser.add_argument(
        "--trade-off", type=positive_integer, default=64, help="workers with every fraction"
    )
    return parser


def print_table(chosen: argparse.Namespace, predicted: dict[tuple[int, Any], Prediction]) -> None:
    """Milliseconds a step, and megabytes that the fullest worker keeps."""
    table = rich.table.Table(title=f"{chosen.model}, {chosen.batch_size} examples a worker")
    table.add_column("Workers", justify="right")
    for placement in chosen.placements:
        table.add_column(f"{placement}: ms", justify="right")
        table.add_column("MB", justify="right")
    for workers in chosen.workers:
        cells = [str(workers)]
        for placement in chosen.placements:
            step = predicted[workers, placement]
            cells.append(f"{1e3 * step.seconds:,.1f}")
            cells.append(f"{step.kept / 2**20:,.0f}")
        table.add_row(*cells)
    rich.console.Console().print(table)
    for placement in chosen.placements:
        times = {w: predicted[w, placement].seconds for w in chosen.workers}
        best = min(chosen.workers, key=lambda w: times[w])
        close = [w for w in chosen.workers if times[w] <= 1.05 * times[best]]
        print(
            f"{placement}: shortest step with {best} workers, within 5 % of it with "
            f"{min(close)} to {max(close)}"
        )


def draw(
    chosen: argparse.Namespace,
    predicted: dict[tuple[int, Any], Prediction],
    path: pathlib.Path,
) -> None:
    """Steps against workers; stages; and the trade-off between memory and time."""
    figure = Figure(figsize=(15, 4.4), layout="constrained")
    steps, stages, trade = figure.subplots(1, 3)
    for placement in chosen.placements:
        times = [1e3 * predicted[w, placement].seconds for w in chosen.workers]
        steps.plot(chosen.workers, times, marker="o", markersize=3, label=placement)
    steps.set(xscale="log", yscale="log", xlabel="workers", ylabel="ms a step", title="Step")
    steps.set_xscale("log", base=2)
    steps.legend()

    of_one = [predicted[w, chosen.placements[0]].stages for w in chosen.workers]
    heights = {name: [1e3 * each[name] for each in of_one] for name in of_one[0]}
    stages.stackplot(chosen.workers, list(heights.values()), labels=list(heights))
    stages.set_xscale("log", base=2)
    stages.set(xlabel="workers", ylabel="ms a step", title=f"Stages, {chosen.placements[0]}")
    stages.legend(fontsize="small")

    alike: dict[int, list[tuple[str, float]]] = {}  # megabytes → fractions that keep as much
    for divisor in divisors(chosen.trade_off):
        each = predicted[chosen.trade_off, 1 / divisor]
        fraction = f"1/{divisor}" if divisor > 1 else "1"
        alike.setdefault(round(each.kept / 2**20), []).append((fraction, 1e3 * each.seconds))
    for megabytes, points in alike.items():
        fractions, milliseconds = zip(*points, strict=True)
        trade.plot([megabytes] * len(points), milliseconds, "o", color="tab:blue")
        trade.annotate(
            f"f = {', '.join(fractions)}",
            (megabytes, max(milliseconds)),
            textcoords="offset points",
            xytext=(6, 4),
        )
    trade.set(
        xlabel="factors and inverses that the fullest worker keeps, MB",
        ylabel="ms a step",
        title=f"Fractions, {chosen.trade_off} workers",
    )
    trade.margins(0.15)
    every = chosen.factor_update_every, chosen.inverse_update_every
    figure.suptitle(
        f"{chosen.model}, {chosen.batch_size} examples a worker, factors every {every[0]} steps, "
        f"inverses every {every[1]}: predicted"
    )
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    start(main)
