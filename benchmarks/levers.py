"""What ways of computing give that a step of KFAC uses, each in turn with the plain way.

Functions alone, on numbers drawn at random: triangles and borders of the products of factors,
convolutions with and without patches, inverses, the fused step of momentum; and, what KFAC does
not do, layers of one shape preconditioned as a stack. A round times every way of a lever, in turn;
told are medians, and the ratio to the plain way, of every round, with its spread. What was measured
is kept in OUTPUT.json; the table goes into OUTPUT.md, between two marks, the ratios into the PNG.

    python -m benchmarks.levers --output docs/results/levers

Needs: no data; two minutes.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import rich.progress
import tensorflow as tf
from matplotlib.figure import Figure

from benchmarks import markdown
from benchmarks.command_line import parser_of, positive_integer, start
from benchmarks.zoo import report
from benchmarks.zoo.results import Results, Run
from tfkfac import linalg, momentum
from tfkfac.blocks import shifted_moments
from tfkfac.blocks.window import Window
from tfkfac.layer_collection import LayerCollection

Way = Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Lever:
    """One computation, in several ways.

    Attributes:
        name: What is computed, and of which size.
        ways: From a name to what does it, the plain way first, the one that KFAC takes last; made
            anew for every measurement.
    """

    name: str
    ways: Callable[[], Mapping[str, Way]]


def drawn(*shape: int) -> tf.Tensor:
    """Normal numbers."""
    return tf.random.stateless_normal(shape, [0, sum(shape)])


def triangle(examples: int, width: int) -> Mapping[str, Way]:
    """A factor: the whole product, or panels of its lower triangle."""
    rows = drawn(examples, width)
    return {
        "whole product": lambda: tf.matmul(rows, rows, transpose_a=True),
        "one triangle": lambda: linalg.second_moment(rows),
    }


def bias(examples: int, width: int) -> Mapping[str, Way]:
    """A factor with a bias: a column of ones, or a border."""
    rows = drawn(examples, width)
    ones, corner = tf.ones([examples, 1]), tf.constant(float(examples))
    return {
        "column of ones": lambda: linalg.second_moment(tf.concat([rows, ones], axis=1)),
        "border": lambda: linalg.second_moment(rows, (tf.reduce_sum(rows, axis=0), corner)),
    }


def convolution(side: int, channels: int, examples: int = 16) -> Mapping[str, Way]:
    """The input factor of a 3×3 convolution: of its patches, or without making them."""
    model = keras.Sequential(
        [
            keras.Input((side, side, channels)),
            keras.layers.Conv2D(4, 3, padding="same", use_bias=False),
        ]
    )
    (block,) = LayerCollection.scan(model).curvature_blocks
    images = drawn(examples, side, side, channels)

    def of_patches(padded: tf.Tensor) -> tf.Tensor:
        return linalg.second_moment(block.patch_rows(padded))

    return {
        "patches": lambda: of_patches(block.window.pad(images)),
        "shifted images": lambda: shifted_moments.second_moment(images, block.window, of_patches),
    }


def patches(side: int, channels: int, examples: int = 16) -> Mapping[str, Way]:
    """The patches of a 3×3 kernel, all places side by side."""
    images, window = drawn(examples, side, side, channels), Window((3, 3))
    sizes = {"sizes": [1, 3, 3, 1], "strides": [1] * 4, "rates": [1] * 4}
    return {
        "extract_patches": lambda: tf.image.extract_patches(images, padding="VALID", **sizes),
        "slices": lambda: tf.concat(window.patches(images), axis=-1),
    }


def inversion(width: int) -> Mapping[str, Way]:
    """The inverse of a positive definite matrix."""
    matrix = linalg.shifted(linalg.second_moment(drawn(2 * width, width)), tf.constant(1.0))
    whole, eye = linalg.symmetric(matrix), tf.eye(width)
    return {
        "tf.linalg.inv": lambda: tf.linalg.inv(whole),
        "cholesky_solve": lambda: tf.linalg.cholesky_solve(tf.linalg.cholesky(matrix), eye),
        "products of triangles": lambda: linalg.inverse(matrix),
    }


def assignment(width: int) -> Mapping[str, Way]:
    """δ ← μ·δ − s·p, θ ← θ + δ: in two operations, or in one."""
    zeros = np.zeros([width, width], "float32")
    direction, scale, share = drawn(width, width), tf.constant(1e-3), tf.constant(0.6)

    def in_two(weights: Any, velocity: Any) -> tf.Tensor:
        velocity.assign(share * velocity - scale * direction)
        weights.assign_add(velocity)
        return weights[0]

    def in_one(weights: Any, velocity: Any) -> tf.Tensor:
        momentum.move(weights, velocity, direction, scale, share)
        return weights[0]

    return {
        name: functools.partial(way, keras.Variable(zeros), keras.Variable(zeros))
        for name, way in {"two operations": in_two, "one operation": in_one}.items()
    }


def preconditioning(layers: int, inputs: int, outputs: int) -> Mapping[str, Way]:
    """A⁻¹VG⁻¹ of layers of one shape: as a stack, or each by itself, as KFAC does."""
    matrices = [drawn(inputs, outputs) for _ in range(layers)]
    left = [drawn(inputs, inputs) for _ in range(layers)]
    right = [drawn(outputs, outputs) for _ in range(layers)]
    stacks = tf.stack(left), tf.stack(right)

    def stacked() -> list[tf.Tensor]:
        products = tf.matmul(tf.matmul(stacks[0], tf.stack(matrices)), stacks[1])
        return tf.unstack(products)

    def alone() -> list[tf.Tensor]:
        triples = zip(left, matrices, right, strict=True)
        return [tf.matmul(tf.matmul(a, v), g) for a, v, g in triples]

    return {"stacked": stacked, "each by itself": alone}


LEVERS = (
    Lever("factor, 1000 examples, 1000 units", lambda: triangle(1000, 1000)),
    Lever("factor, 1000 examples, 500 units", lambda: triangle(1000, 500)),
    Lever("bias, 1000 examples, 1000 units", lambda: bias(1000, 1000)),
    Lever("convolution 3×3, 32×32×64", lambda: convolution(32, 64)),
    Lever("convolution 3×3, 14×14×256", lambda: convolution(14, 256)),
    Lever("convolution 3×3, 8×8×256", lambda: convolution(8, 256)),
    Lever("patches 3×3, 32×32×64", lambda: patches(32, 64)),
    Lever("patches 3×3, 14×14×256", lambda: patches(14, 256)),
    Lever("inverse, 500 rows", lambda: inversion(500)),
    Lever("inverse, 1000 rows", lambda: inversion(1000)),
    Lever("momentum, 1000×1000", lambda: assignment(1000)),
    Lever("8 layers 129→128", lambda: preconditioning(8, 129, 128)),
    Lever("8 layers 513→512", lambda: preconditioning(8, 513, 512)),
    Lever("19 layers 144→16", lambda: preconditioning(19, 144, 16)),
)
QUICK = (
    Lever("factor, 60 examples, 30 units", lambda: triangle(60, 30)),
    Lever("bias, 60 examples, 30 units", lambda: bias(60, 30)),
    Lever("convolution 3×3, 6×6×4", lambda: convolution(6, 4, examples=2)),
    Lever("patches 3×3, 6×6×4", lambda: patches(6, 4, examples=2)),
    Lever("inverse, 40 rows", lambda: inversion(40)),
    Lever("momentum, 20×20", lambda: assignment(20)),
    Lever("2 layers 9→8", lambda: preconditioning(2, 9, 8)),
)

BLOCK_SECONDS = 0.2
"""Of one way in one round, about."""


def measured(lever: Lever, rounds: int) -> Run:
    """Seconds of every way in every round, and how far its result is from that of the plain way."""
    ways = {name: tf.function(way) for name, way in lever.ways().items()}
    results = {name: _lower_triangles(way()) for name, way in ways.items()}
    plain = next(iter(results.values()))
    errors = {
        name: max(_relative(a, b) for a, b in zip(each, plain, strict=True))
        for name, each in results.items()
    }
    calls = {name: max(1, int(BLOCK_SECONDS / _seconds(way, 3))) for name, way in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            seconds[name].append(_seconds(way, calls[name]))
    return {"lever": lever.name, "rounds": rounds, "seconds": seconds, "errors": errors}


def _seconds(way: Way, calls: int) -> float:
    """Of one call, when it is called so many times."""
    start = time.perf_counter()
    for _ in range(calls):
        result = way()
    tf.nest.map_structure(lambda tensor: tensor.numpy(), result)
    return (time.perf_counter() - start) / calls


def _lower_triangles(result: Any) -> list[np.ndarray]:
    """What a computation tells: of a square matrix its lower triangle."""
    found = [tensor.numpy() for tensor in tf.nest.flatten(result)]
    return [np.tril(m) if m.ndim == 2 and m.shape[0] == m.shape[1] else m for m in found]


def _relative(found: np.ndarray, plain: np.ndarray) -> float:
    return float(np.max(np.abs(found - plain)) / np.max(np.abs(plain)))


def ratios(run: Run, name: str) -> np.ndarray:
    """Seconds of a way over those of the plain one, in every round."""
    seconds = run["seconds"]
    return np.divide(seconds[name], seconds[next(iter(seconds))])


def table(runs: Sequence[Run]) -> str:
    """A line a way."""
    rows = []
    for run in runs:
        for place, (name, seconds) in enumerate(run["seconds"].items()):
            found = report.spread(list(ratios(run, name)), ".2f", "–")
            rows.append(
                [
                    run["lever"] if place == 0 else "",
                    name,
                    f"{1e3 * np.median(seconds):.2f}",
                    "1" if place == 0 else found,
                    "" if place == 0 else f"{run['errors'][name]:.0e}",
                ]
            )
    headings = ["what", "how", "ms", "over the plain way", "greatest difference, relative"]
    return markdown.table(headings, rows)


def plot(runs: Sequence[Run]) -> Figure:
    """The ratio of the last way to the plain one, a bar a lever."""
    figure = Figure(figsize=(7.5, 0.8 + 0.32 * len(runs)), layout="constrained")
    panel = figure.subplots()
    for place, run in enumerate(runs):
        *_, last = run["seconds"]
        found = ratios(run, last)
        middle = float(np.median(found))
        reach = [[middle - found.min()], [found.max() - middle]]
        color, label = ("C0", "helps") if middle < 1 else ("C3", "does not")
        panel.barh(place, middle, xerr=reach, color=color, ecolor="0.4", label=label)
    panel.axvline(1.0, color="0.3", linewidth=1)
    handles, told = panel.get_legend_handles_labels()
    by_label = dict(zip(told, handles, strict=True))
    panel.legend(by_label.values(), by_label.keys(), frameon=False, loc="lower right")
    labels = [f"{run['lever']}: {list(run['seconds'])[-1]}" for run in runs]
    panel.set_yticks(range(len(runs)), labels, fontsize=8)
    panel.invert_yaxis()
    panel.set_xlabel("seconds, over those of the plain way (least, median, greatest)")
    panel.spines[["top", "right"]].set_visible(False)
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line and runs.

    Args:
        arguments: Of the command line.
    """
    parser = parser_of("levers", __doc__, quick="small sizes, three rounds")
    parser.add_argument(
        "--rounds", type=positive_integer, default=9, help="alternations (default: 9)"
    )
    chosen = parser.parse_args(arguments)
    levers, rounds = (QUICK, 3) if chosen.quick else (LEVERS, chosen.rounds)
    runs = []
    try:
        kept = Results(chosen.output.with_suffix(".json"))
        report.require_place(chosen.output.with_suffix(".md"))
    except ValueError as error:
        parser.error(str(error))
    for lever in rich.progress.track(levers, description="levers"):
        setting = {"lever": lever.name, "rounds": rounds}
        runs.append(kept.get(setting, lambda _, lever=lever: measured(lever, rounds)))
    text = table(runs)
    print(text)
    report.write_page(chosen.output.with_suffix(".md"), text)
    plot(runs).savefig(chosen.output.with_suffix(".png"), dpi=110)
    print(f"\nWritten: {chosen.output}.json, {chosen.output}.md, {chosen.output}.png")


if __name__ == "__main__":
    start(main)
