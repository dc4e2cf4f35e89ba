"""What the examples share: train one model with several optimizers, tabulate and plot the runs.

A run's history holds one value an epoch: what Keras' own `History` holds (`loss`, `val_loss`,
metrics), and `epoch`, `updates` and `seconds` counted from the start of the training.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import matplotlib

matplotlib.use("Agg")  # Writes files, opens no window.
from matplotlib import pyplot as plt
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.axis import Axis


@dataclass(frozen=True)
class Run:
    """One training: the name of its optimizer and what was measured, one value an epoch.

    `line` is the style in which matplotlib draws it.
    """

    name: str
    history: Mapping[str, Sequence[float]]
    line: str = "-"


@dataclass(frozen=True)
class Quantity:
    """A key of `Run.history`, and how tables and plots show it."""

    key: str
    label: str
    format: str = ".4f"
    scale: str = "linear"


EPOCHS = Quantity("epoch", "epochs", ".0f")
UPDATES = Quantity("updates", "updates", ".0f")
SECONDS = Quantity("seconds", "seconds", ".1f")


def at_rates(
    make: Mapping[str, Callable[[float, int], keras.optimizers.Optimizer]],
    learning_rates: Mapping[str, float],
    *,
    names: Sequence[str],
    tried: Sequence[float] | None,
    seed: int,
) -> dict[str, keras.optimizers.Optimizer]:
    """Returns the named optimizers at their learning rates, or each at all those to be tried.

    Args:
        make: Name to function of a learning rate and a seed.
        learning_rates: Name to the rate that suits it.
        names: Which of them.
        tried: Rates to try, or None.
        seed: For the optimizers' own random numbers.
    """
    if tried is None:
        return {name: make[name](learning_rates[name], seed) for name in names}
    return {f"{name} {rate:g}": make[name](rate, seed) for name in names for rate in tried}


def compare(
    optimizers: Mapping[str, keras.optimizers.Optimizer],
    compiled_model: Callable[[keras.optimizers.Optimizer], keras.Model],
    *,
    seed: int,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    **fit_arguments: Any,
) -> list[Run]:
    """Trains a fresh model with each optimizer, from the same weights on the same batches.

    Args:
        optimizers: Name to optimizer, each used for one training.
        compiled_model: Builds the model and compiles it with the optimizer it is given.
        seed: Fixes the initial weights and the order of the examples.
        callbacks: For every training, beside the clock.
        **fit_arguments: What `keras.Model.fit` is called with.

    Returns:
        One run for each optimizer, in their order.
    """
    runs = []
    for name, optimizer in optimizers.items():
        print(f"\n{name}", flush=True)
        keras.utils.set_random_seed(seed)
        clock = TrainingClock()
        model = compiled_model(optimizer)
        history = model.fit(callbacks=[clock, *callbacks], **fit_arguments).history
        runs.append(Run(name, {**history, **clock.history}))
    return runs


class TrainingClock(keras.callbacks.Callback):
    """Counts epochs, updates and seconds at the end of every epoch.

    The seconds are those of the training alone. Validation is left out; the tracing of the first
    step is not, since a user waits for it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.history: dict[str, list[float]] = {"epoch": [], "updates": [], "seconds": []}
        self._elapsed = 0.0
        self._started_at: float | None = None

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Starts the clock."""
        self._started_at = time.perf_counter()

    def on_test_begin(self, logs: Mapping[str, float] | None = None) -> None:
        """Stops the clock: the validation begins."""
        self._stop()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Stops the clock, unless validation has, and writes the epoch down."""
        self._stop()
        self.history["epoch"].append(epoch + 1)
        self.history["updates"].append(int(self.model.optimizer.iterations))
        self.history["seconds"].append(self._elapsed)

    def _stop(self) -> None:
        if self._started_at is not None:
            self._elapsed += time.perf_counter() - self._started_at
            self._started_at = None


def table(runs: Sequence[Run], columns: Sequence[Quantity]) -> str:
    """Returns the last values of every run as a table of plain text, one line a run."""
    header = ["optimizer", *(column.label for column in columns)]
    rows = [
        [run.name, *(format(run.history[column.key][-1], column.format) for column in columns)]
        for run in runs
    ]
    widths = [max(map(len, cells)) for cells in zip(header, *rows, strict=True)]
    lines = [_aligned(cells, widths) for cells in (header, *rows)]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Joins the cells of one line: the first to the left, numbers to the right."""
    name, *numbers = (
        cell.ljust(width) if column == 0 else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return "  ".join([name, *numbers])


def plot(
    runs: Sequence[Run],
    *,
    title: str,
    rows: Sequence[Quantity],
    columns: Sequence[Quantity],
    output: str,
) -> None:
    """Writes a PNG with one panel for each quantity in `rows` against each in `columns`."""
    figure, panels = plt.subplots(
        len(rows),
        len(columns),
        figsize=(5 * len(columns), 0.6 + 3.2 * len(rows)),
        sharex="col",
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    for y, panels_of_row in zip(rows, panels, strict=True):
        for x, axes in zip(columns, panels_of_row, strict=True):
            _draw(axes, runs, x, y)
    for y, axes in zip(rows, panels[:, 0], strict=True):
        axes.set_ylabel(y.label)
    for x, axes in zip(columns, panels[-1], strict=True):
        axes.set_xlabel(x.label)
    panels[0, -1].legend(frameon=False)
    figure.suptitle(title)
    figure.savefig(output, dpi=150)
    plt.close(figure)


def _draw(axes: Axes, runs: Sequence[Run], x: Quantity, y: Quantity) -> None:
    """Draws one panel: a line for each run."""
    for run in runs:
        points = run.history[x.key], run.history[y.key]
        marker = "o" if len(points[0]) == 1 else None
        axes.plot(*points, run.line, label=run.name, linewidth=1.8, marker=marker)
    axes.set_xscale(x.scale)
    axes.set_yscale(y.scale)
    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "log":
            _label_logarithms(axis)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _label_logarithms(axis: Axis) -> None:
    """Where there are few powers of ten, labels steps between them: 0.3, not 3 × 10⁻¹."""
    low, high = axis.get_view_interval()
    if high < 30 * low:
        axis.set_minor_locator(ticker.LogLocator(subs=(2, 3, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("{x:g}")
