"""Which share of the parameters of every architecture is under which kind of block.

Scans every model, trains it for three steps on one batch, and writes a page with a table,
OUTPUT.md, and a picture of the shares, OUTPUT.png. Results are kept in OUTPUT.json as they come:
started again, the program goes on where it was; what has a row in OUTPUT.md is not run again.

    python -m benchmarks.coverage --output docs/coverage

Needs: no data; some hours for all architectures.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import rich.progress
from matplotlib.figure import Figure

import tfkfac
from benchmarks.architectures import Entry, applications, others
from benchmarks.command_line import parser_of, positive_number, start
from benchmarks.zoo.results import Results
from tfkfac.blocks import DiagonalBlock, KroneckerBlock, ScaleShiftBlock

STEPS = 3

LEARNING_RATE = 0.01
"""Small: deep networks without normalisation overshoot with more."""

KINDS = {"Kronecker": KroneckerBlock, "scale-shift": ScaleShiftBlock, "diagonal": DiagonalBlock}

HEADER = """# Coverage

{which} (random weights, the smallest images that Keras allows, 10 classes): the share of
the trainable parameters under each kind of block, the memory of KFAC's state, and the loss on one
batch before and after three steps of
`KFAC(learning_rate=0.01, damping=1e-3, kl_clip=1e-3, factor_update_every=1)`, with the same dropout
in all (ConvNeXt with `kl_clip=1e-5`: its scales begin at 10⁻⁶, and at 1e-3 it jumps, as with SGD).
A cell "–" means that the model was scanned but not trained: it has more parameters than
`--largest`, which was {largest} million.

Written by `python -m benchmarks.coverage`, which runs every architecture in
`keras.applications` and some of other kinds.

| architecture | parameters | Kronecker | scale-shift | diagonal | none | state | loss | then |
|---|--:|--:|--:|--:|--:|--:|--:|--:|
"""


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of one architecture.

    Attributes:
        name: The architecture.
        parameters: Trainable ones.
        shares: Kind of block → share of the parameters.
        state: Bytes of KFAC's averages and inverses.
        before: Loss on the batch at the first step; None if it was not trained.
        after: Loss after the last step.
    """

    name: str
    parameters: int
    shares: dict[str, float]
    state: int
    before: float | None = None
    after: float | None = None

    @property
    def covered(self) -> float:
        """The share under any kind of curvature."""
        return sum(self.shares.values())


def scan(entry: Entry) -> Result:
    """Scans an architecture without training it."""
    collection = tfkfac.LayerCollection.scan(entry.make())
    return Result(
        entry.name,
        sum(block.parameters for block in collection),
        {name: collection.coverage(kind) for name, kind in KINDS.items()},
        sum(block.state_size * block.bytes_each for block in collection),
    )


def train(entry: Entry, **options: Any) -> Result:
    """Scans an architecture and trains it for a few steps on one batch.

    Every step has the same dropout and stochastic depth: with others the loss would rise and fall
    by itself.

    Args:
        entry: The architecture.
        **options: Further arguments of KFAC.
    """
    keras.utils.set_random_seed(0)
    scanned = scan(entry)
    model = entry.make()
    optimizer = tfkfac.KFAC(
        LEARNING_RATE, damping=1e-3, kl_clip=entry.kl_clip, factor_update_every=1, seed=0, **options
    )
    model.compile(optimizer, **({} if entry.loss is None else {"loss": entry.loss}))
    if entry.loss is None:
        optimizer.attach(model)
    inputs, targets = entry.batch()
    losses = []
    seeds = [v for v in model.variables if "seed_generator_state" in v.name]
    drawn = [seed.numpy() for seed in seeds]
    for _ in range(STEPS + 1):
        for seed, state in zip(seeds, drawn, strict=True):
            seed.assign(state)
        losses.append(float(model.train_on_batch(inputs, targets, return_dict=True)["loss"]))
    assert all(np.isfinite(weight).all() for weight in model.get_weights()), entry.name
    return dataclasses.replace(scanned, before=losses[0], after=losses[-1])


def row(result: Result) -> str:
    """A line of the table."""
    shares = [f"{100 * share:.2f} %" for share in result.shares.values()]
    losses = ["–" if loss is None else f"{loss:.3f}" for loss in (result.before, result.after)]
    cells = [
        result.name,
        f"{result.parameters:,}",
        *shares,
        f"{100 * (1 - result.covered):.2f} %",
        f"{result.state / 2**20:,.0f} MB",
        *losses,
    ]
    return "| " + " | ".join(cells) + " |"


def rows_of(path: pathlib.Path) -> dict[str, str]:
    """Architecture → its line in a table written before."""
    lines = path.read_text().splitlines() if path.exists() else []
    _, *rows = [line for line in lines if line.startswith("| ")] or [""]
    return {line.split("|")[1].strip(): line for line in rows}


def in_process_of_its_own(entry: Entry, trained: bool) -> Result:
    """A fresh process for every model: memory is given back."""
    command = [sys.executable, "-m", "benchmarks.coverage", "--alone", entry.name]
    found = subprocess.run(
        command + (["--train"] if trained else []), capture_output=True, text=True, check=False
    )
    if found.returncode:
        raise RuntimeError(f"{entry.name}: {found.stderr[-2000:]}")
    return Result(**json.loads(found.stdout.strip().splitlines()[-1]))


def shares_plot(rows: Mapping[str, str], path: pathlib.Path) -> None:
    """A bar an architecture: the shares of a table's lines, one kind of block after the other."""
    figure = Figure(figsize=(9, 1 + 0.18 * len(rows)), layout="constrained")
    axes = figure.subplots()
    left = np.zeros(len(rows))
    for column, kind in enumerate(KINDS, start=3):
        widths = [float(line.split("|")[column].strip(" %")) for line in rows.values()]
        axes.barh(list(rows), widths, left=left, label=kind)
        left += widths
    axes.invert_yaxis()
    axes.set_xlabel("share of the parameters, %")
    axes.tick_params(axis="y", labelsize=7)
    axes.legend(frameon=False, loc="lower left")
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line and runs.

    Args:
        arguments: Of the command line.
    """
    parser = parser_of("coverage", __doc__, quick="three small architectures")
    parser.add_argument("--names", nargs="+", help="only these architectures")
    parser.add_argument(
        "--largest",
        type=positive_number,
        default=60,
        help="million parameters that are still trained",
    )
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    parser.add_argument("--train", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    entries = {entry.name: entry for entry in (*others(), *applications())}
    if chosen.alone:
        run = train if chosen.train else scan
        print(json.dumps(dataclasses.asdict(run(entries[chosen.alone]))))
        return
    names = list(entries)[:3] if chosen.quick else chosen.names or list(entries)
    which = "The architectures named" if len(names) < len(entries) else "Every architecture"
    header = HEADER.replace("{which}", which).replace("{largest}", f"{chosen.largest:g}")
    page = chosen.output.with_suffix(".md")
    rows, results = rows_of(page), Results(chosen.output.with_suffix(".json"))

    def found(setting: Mapping[str, Any]) -> dict[str, Any]:
        entry = entries[setting["name"]]
        result = in_process_of_its_own(entry, trained=False)
        if result.parameters <= chosen.largest * 1e6:
            result = in_process_of_its_own(entry, trained=True)
        return dataclasses.asdict(result)

    for name in rich.progress.track(names, description="architectures"):
        if name not in rows:
            kept = results.get({"name": name}, found)
            rows[name] = row(
                Result(**{each.name: kept[each.name] for each in dataclasses.fields(Result)})
            )
        rows = {each: rows[each] for each in entries if each in rows}
        page.write_text(header + "\n".join(rows.values()) + "\n")
    print("\n".join(rows.values()))
    shares_plot(rows, chosen.output.with_suffix(".png"))
    print(f"Written: {chosen.output}.json, {page}, {chosen.output}.png")


if __name__ == "__main__":
    start(main)
