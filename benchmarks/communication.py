"""Bytes that ranks of Horovod send in a step and keep, measured against what shapes predict.

Every step makes factors and inverses anew: nothing has to be averaged. Measured is what goes
over the loopback device while rank 0 counts, headers and Horovod's own messages included; predicted
is the sum over the ranks of what `layer_collection.placement_summary()` tells. Nothing else should
use the loopback device. What the largest rank keeps is counted in its variables. The table goes to
the terminal and to OUTPUT.json, a picture of it to OUTPUT.png.

    python -m benchmarks.communication --ranks 2 4 --output docs/results/communication

Needs: Horovod (tools/install_horovod.sh); no data; some minutes.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import rich.console
import rich.progress
import rich.table
from matplotlib.figure import Figure

from benchmarks.command_line import parser_of, positive_integer, start
from benchmarks.zoo.results import Results

PLACEMENTS = ("comm_opt", "hybrid", "mem_opt")
STEPS = 50
"""That are counted, after as many that are not."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line and runs; inside of a rank, measures."""
    parser = parser_of("communication", __doc__, quick='2 ranks, "comm_opt" alone')
    parser.add_argument("--ranks", type=positive_integer, nargs="+", default=[2, 4])
    parser.add_argument("--placements", nargs="+", default=list(PLACEMENTS), choices=PLACEMENTS)
    parser.add_argument("--rank-of", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.rank_of is not None:
        measure(chosen.rank_of)
        return
    if chosen.quick:
        chosen.ranks, chosen.placements = [2], ["comm_opt"]
    kept = Results(chosen.output.with_suffix(".json"))
    settings = [{"ranks": n, "placement": p} for n in chosen.ranks for p in chosen.placements]
    rows = [kept.get(each, of_ranks) for each in rich.progress.track(settings, "Ranks")]
    print_table(rows)
    draw(rows, chosen.output.with_suffix(".png"))
    print(f"Written: {chosen.output}.json, {chosen.output}.png")


def of_ranks(setting: Mapping[str, Any]) -> dict[str, Any]:
    """Starts ranks, and returns what they have found."""
    arguments = ["benchmarks.communication", "--rank-of", setting["placement"]]
    return said_by_ranks(setting["ranks"], arguments)


def said_by_ranks(ranks: int, arguments: Sequence[str]) -> dict[str, Any]:
    """Starts a module on ranks of this machine, and returns what one of them tells by `tell`.

    Args:
        ranks: How many.
        arguments: The module, and the arguments of its command line.

    Raises:
        RuntimeError: It failed, or told nothing; with the end of what it wrote.
    """
    command = [sys.executable, "-m", "horovod.runner.launch", "--gloo", "-np", str(ranks)]
    command += ["-H", f"localhost:{ranks}", sys.executable, "-m", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    found = [line for line in run.stdout.splitlines() if _MARK in line]
    if run.returncode or not found:
        raise RuntimeError(run.stdout[-2000:] + run.stderr[-4000:])
    return json.loads(found[0].split(_MARK)[1])


def tell(found: Mapping[str, Any]) -> None:
    """What `said_by_ranks` returns."""
    print(_MARK + json.dumps(found), flush=True)


_MARK = "measured: "


def measure(placement: str) -> None:
    """Trains on this rank, and prints what was sent."""
    import horovod.tensorflow as hvd
    import keras
    import numpy as np

    import tfkfac
    from tfkfac.traffic import predict

    hvd.init(process_sets="dynamic")
    layers = [keras.layers.Dense(width, activation="tanh") for width in (500, 400, 300)]
    model = keras.Sequential([keras.Input((600,)), *layers, keras.layers.Dense(10)])
    optimizer = tfkfac.KFAC(
        0.01,
        0.9,
        1e-2,
        placement=placement,
        factor_update_every=1,
        inverse_update_every=1,
        kl_clip=None,
        seed=0,
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss)
    random = np.random.default_rng(hvd.rank())
    x = random.normal(size=(32 * STEPS, 600)).astype("float32")
    y = random.integers(0, 10, size=(32 * STEPS,))
    sent: list[int] = []

    class Counter(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: object = None) -> None:
            sent.append(sent_over_loopback())

    model.fit(x, y, batch_size=16, verbose=0, callbacks=[Counter()])
    collection = optimizer.layer_collection
    blocks = collection.curvature_blocks
    own = sum(variable.numpy().nbytes for block in blocks for variable in block.state)
    kept = hvd.allgather_object(own)
    if hvd.rank() == 0:
        assert collection.roles is not None
        traffic = predict(collection.blocks, collection.roles)
        found = {
            "ranks": hvd.size(),
            "placement": placement,
            "predicted": sum(traffic.of_step(1, 1)),
            "measured": (sent[-1] - sent[-1 - STEPS]) / STEPS,
            "kept_predicted": max(traffic.kept),
            "kept": max(kept),
            "largest_block": max(block.state_size * block.bytes_each for block in blocks),
            "all_blocks": sum(block.state_size * block.bytes_each for block in blocks),
        }
        tell(found)


def sent_over_loopback() -> int:
    """Bytes since the machine was started."""
    lines = pathlib.Path("/proc/net/dev").read_text().splitlines()
    loopback = next(line for line in lines if line.strip().startswith("lo:"))
    return int(loopback.split(":")[1].split()[8])


def print_table(rows: Sequence[dict[str, object]]) -> None:
    """Sent: predicted, measured, and their ratio. Kept: by the largest rank, and the bound of it.

    The bound is that of memory shared out: all blocks over the ranks, and the largest block.
    """
    table = rich.table.Table(title="Bytes sent in a step by all ranks; kept by the largest rank")
    for heading in ("Ranks", "Placement", "Sent: predicted", "measured", "ratio"):
        table.add_column(heading, justify="left" if heading == "Placement" else "right")
    for heading in ("Kept: predicted", "measured", "all / ranks + largest"):
        table.add_column(heading, justify="right")
    for row in rows:
        number = {key: float(str(row[key])) for key in row if key not in ("placement", "machine")}
        values = (
            f"{number['predicted']:,.0f}",
            f"{number['measured']:,.0f}",
            f"{number['measured'] / number['predicted']:.3f}",
            f"{number['kept_predicted']:,.0f}",
            f"{number['kept']:,.0f}",
            f"{number['all_blocks'] / number['ranks'] + number['largest_block']:,.0f}",
        )
        table.add_row(str(row["ranks"]), str(row["placement"]), *values)
    rich.console.Console(width=120).print(table)


def draw(rows: Sequence[Mapping[str, Any]], path: pathlib.Path) -> None:
    """Pairs of bars: predicted and measured, of what is sent and of what is kept."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    places = np.arange(len(rows))
    labels = [f"{row['ranks']} × {row['placement']}" for row in rows]
    columns = {"sent": ("predicted", "measured"), "kept": ("kept_predicted", "kept")}
    for axes, (what, keys) in zip(figure.subplots(1, 2), columns.items(), strict=True):
        for key, shift, label in zip(keys, (-0.2, 0.2), ("predicted", "measured"), strict=True):
            axes.bar(places + shift, [row[key] / 1e6 for row in rows], 0.4, label=label)
        axes.set_xticks(places, labels, rotation=30, ha="right")
        axes.set_ylabel(f"MB {what}")
        axes.legend(frameon=False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    start(main)
