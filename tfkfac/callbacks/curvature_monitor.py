"""What Keras callbacks can tell of KFAC: how training goes, as History, TensorBoard and plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfkfac.blocks import KroneckerBlock
from tfkfac.callbacks.optimizer_of import kfac_of
from tfkfac.spectra import condition_numbers, traces


class CurvatureMonitor(keras.callbacks.Callback):
    """Adds to the logs of every epoch what KFAC knows of itself.

    ``damping``, ``reduction_ratio`` (ρ, the true over the foreseen change of the loss, when it was
    last measured), ``learning_rate``, ``momentum``, ``clipped_share`` (of the epoch's steps, those
    that the KL clip shortened), ``curvature_seconds`` (spent in statistics, inverses and
    preconditioning, of one step on average; not in graphs that XLA compiles), ``taken_back`` and
    ``skipped`` (steps of the epoch), ``failures`` (statistics and inverses that could not be had;
    the last good ones were used), and of the factors of all Kronecker blocks the largest
    ``trace_A``, ``trace_G``, ``condition_A`` and ``condition_G`` (the ratio of a factor's largest
    to its smallest eigenvalue, both with the damping that is added to it). What every block has,
    ``<layer>/trace_A`` and so on, is in `history` and drawn by `plot`; of the layers that `layers`
    names it is in the logs too. Under Horovod it is of the factors that this rank keeps.

    Give it before callbacks that write logs (``TensorBoard``, ``CSVLogger``); History needs no
    order.

    Example:

    ```python
    monitor = tfkfac.callbacks.CurvatureMonitor()
    model.fit(x, y, epochs=10, callbacks=[monitor])
    monitor.plot("curvature.png")
    ```

    Args:
        layers: Names or paths of the only layers whose factors are looked at, each with numbers of
            its own in the logs; all by default, and the logs have the largest. A condition number
            takes an eigendecomposition a factor and epoch.
        conditions: Whether condition numbers are wanted.

    Attributes:
        history: Key → what was found at the end of each epoch.

    Raises:
        ValueError: Training has no KFAC, or a layer no Kronecker block.
    """

    def __init__(self, *, layers: Sequence[str] | None = None, conditions: bool = True) -> None:
        super().__init__()
        if isinstance(layers, str):
            raise ValueError(
                f"Argument `layers` must be a sequence of names, got the string {layers!r}; write "
                f"layers=[{layers!r}]."
            )
        self.layers = layers
        self.conditions = conditions
        self.history: dict[str, list[float]] = {}
        self._before: dict[str, float] = {}

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Asks KFAC to take the time; a training step that was made without is made anew."""
        del logs
        if self._optimizer.take_time():
            self.model.train_function = None
            self.model.make_train_function()
        self._before = self._optimizer.counts()

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Begins to count."""
        del epoch, logs
        self._before = self._optimizer.counts()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes into the logs."""
        del epoch
        state, factors = self._state(), self._of_factors()
        for key, value in (state | factors).items():
            self.history.setdefault(key, []).append(value)
        if logs is not None:
            logs.update(state | (_largest(factors) if self.layers is None else factors))

    def plot(self, path: Any = None) -> Any:
        """Draws what was logged, an axis for each kind of number.

        Args:
            path: Where the figure is saved; None does not save it.

        Returns:
            The matplotlib figure.

        Raises:
            ValueError: Nothing was logged yet.
        """
        if not self.history:
            raise ValueError("Nothing to plot: no epoch of training has ended yet.")
        from matplotlib.figure import Figure

        groups = self._groups()
        figure = Figure(figsize=(11, 2.6 * -(-len(groups) // 2)), layout="constrained")
        axes = np.ravel(figure.subplots(-(-len(groups) // 2), 2))
        for axis, (title, keys) in zip(axes, groups.items(), strict=False):
            for key in keys:
                values = self.history[key]
                label = key.removesuffix(f"/{title}")
                axis.plot(range(1, len(values) + 1), values, marker=".", label=label)
            positive = all(v > 0 for key in keys for v in self.history[key] if np.isfinite(v))
            if positive and title not in _LINEAR:
                axis.set_yscale("log")
            axis.set_title(title)
            axis.set_xlabel("epoch")
            if 1 < len(keys) <= _MOST_LABELS:
                axis.legend(fontsize="x-small", ncols=2 if len(keys) > 4 else 1, framealpha=0.6)
        for axis in axes[len(groups) :]:
            axis.set_visible(False)
        if path is not None:
            figure.savefig(path, dpi=120)
        return figure

    @property
    def _optimizer(self) -> Any:
        return kfac_of(self.model, type(self).__name__)

    def _state(self) -> dict[str, float]:
        optimizer = self._optimizer
        counts = optimizer.counts()
        done = {key: value - self._before[key] for key, value in counts.items()}
        steps = max(1.0, done["updates"])
        return {
            "damping": _number(optimizer.damping),
            "reduction_ratio": optimizer.reduction_ratio,
            "learning_rate": _number(optimizer.learning_rate),
            "momentum": _number(optimizer.momentum),
            "clipped_share": done["clipped"] / steps,
            "curvature_seconds": done["seconds"] / steps,
            "taken_back": done["taken_back"],
            "skipped": done["skipped"],
            "failures": done["failures"],
        }

    def _of_factors(self) -> dict[str, float]:
        collection = self._optimizer.layer_collection
        blocks = collection.kronecker_blocks
        if self.layers is not None:
            blocks = [collection[name] for name in self.layers]
            unknown = [block.name for block in blocks if not isinstance(block, KroneckerBlock)]
            if unknown:
                raise ValueError(
                    f"Argument `layers`: {unknown[0]!r} has no Kronecker block. Those that have: "
                    f"{', '.join(block.name for block in collection.kronecker_blocks)}."
                )
        found: dict[str, float] = {}
        for name, block in zip(_names(blocks), blocks, strict=True):
            if not block.is_here:
                continue
            for key, trace in traces(block).items():
                found[f"{name}/trace_{key}"] = _number(trace)
            if not self.conditions:
                continue
            for key, condition in condition_numbers(
                block, self._optimizer.damping_of(block)
            ).items():
                found[f"{name}/condition_{key}"] = _number(condition)
        return found

    def _groups(self) -> dict[str, list[str]]:
        """Title of an axis → keys."""
        groups: dict[str, list[str]] = {}
        for key, values in self.history.items():
            if key in ("taken_back", "skipped", "failures") and not any(values):
                continue
            groups.setdefault(key.rpartition("/")[2], []).append(key)
        return groups


_LINEAR = ("momentum", "clipped_share", "reduction_ratio", "taken_back", "skipped", "failures")
"""What is drawn on a linear axis."""

_MOST_LABELS = 8


def _names(blocks: Sequence[KroneckerBlock]) -> list[str]:
    """A name for each block; layers with several blocks are told apart by their kernels."""
    names = [block.name for block in blocks]
    return [
        name if names.count(name) == 1 else f"{name}/{block.variables[0].name}"
        for name, block in zip(names, blocks, strict=True)
    ]


def _largest(of_layers: Mapping[str, float]) -> dict[str, float]:
    """Kind of number → the largest of all layers: a line of logs has no room for every one."""
    found: dict[str, float] = {}
    for key, value in of_layers.items():
        kind = key.rpartition("/")[2]
        found[kind] = float(np.fmax(value, found.get(kind, np.nan)))
    return found


def _number(value: Any) -> float:
    return float(np.asarray(tf.convert_to_tensor(value)))
