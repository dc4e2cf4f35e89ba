"""Recurrent layers: LSTM, GRU, SimpleRNN, and RNN around their cells.

Every cell has two kernels in which the matrices of its gates lie side by side. All gates see the
same inputs, and one block takes the whole kernel; where they do not (each gate has its own
dropout, or the candidate of a GRU sees r∘h), blocks take ranges of its columns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from tfkfac import recurrent_pass
from tfkfac.blocks import Block, RecurrentBlock, Use
from tfkfac.recurrent_pass import GATES, CellPass, dropped, reset_gate
from tfkfac.registry import NotCoveredError, if_trained, register, trains
from tfkfac.variable_slice import VariableSlice


@register(keras.layers.RNN)
@register(keras.layers.SimpleRNN)
@register(keras.layers.GRU)
@register(keras.layers.LSTM)
def recurrent_layer(layer: Any, **options: Any) -> list[Block]:
    """A block for the kernel (with bias) and one for the recurrent kernel of every cell, or more.

    Raises:
        NotCoveredError: The layer or a cell of it is not one of Keras' own, or nothing trains.
    """
    reason = recurrent_pass.why_not(layer)
    if reason is not None:
        raise NotCoveredError(reason)
    blocks: list[Block] = []
    for cell in recurrent_pass.cells_of(layer):
        for part in _parts_of(layer, cell):
            blocks.append(
                RecurrentBlock(
                    [layer, cell],
                    part.kernel,
                    part.bias,
                    steps=_steps_of(layer),
                    of_inputs=_of_pass(part.inputs),
                    of_gradients=part.gradients and _of_pass(part.gradients),
                    **options,
                )
            )
    if not blocks:
        raise NotCoveredError("its kernels are frozen")
    return blocks


@dataclasses.dataclass(frozen=True, eq=False)
class _Part:
    """A matrix of a cell with the same inputs for all its columns.

    Attributes:
        kernel: A variable or a range of its columns.
        bias: Likewise, or None.
        inputs: What the matrix is multiplied with at every step.
        gradients: g of its columns, from the gradient at the cell's projections (None: that is it).
    """

    kernel: Any
    bias: Any
    inputs: Callable[[CellPass], tf.Tensor]
    gradients: Callable[..., tf.Tensor] | None = None


def _parts_of(layer: Any, cell: Any) -> Iterator[_Part]:
    gates, reset_after = GATES[type(cell)], getattr(cell, "reset_after", False)
    kernel, recurrent_kernel, bias = (
        if_trained(layer, variable)
        for variable in (cell.kernel, cell.recurrent_kernel, cell.bias if cell.use_bias else None)
    )
    two_biases = bias is not None and len(bias.shape) == 2
    if two_biases and not (trains(layer, cell.kernel) and trains(layer, cell.recurrent_kernel)):
        bias, two_biases = None, False  # a variable is covered whole or not at all
    if kernel is not None:
        for first, last in _ranges(gates, apart=_each_gate_apart(cell, cell.dropout)):
            columns = _Columns(cell, first, last)
            yield _Part(
                columns.of(kernel),
                columns.of(bias, row=0 if two_biases else None),
                columns.dropped_inputs,
                columns.gradients_or_none,
            )
    if recurrent_kernel is None:
        return
    apart = _each_gate_apart(cell, cell.recurrent_dropout)
    resets = type(cell) is keras.layers.GRUCell
    ranges = _ranges(gates, apart) if reset_after or not resets else _reset_ranges(apart)
    for first, last in ranges:
        columns = _Columns(cell, first, last)
        candidate = resets and last == gates
        yield _Part(
            columns.of(recurrent_kernel),
            columns.of(bias, row=1) if two_biases else None,
            columns.reset_state if candidate and not reset_after else columns.dropped_state,
            columns.reset_gradients if candidate and reset_after else columns.gradients_or_none,
        )


@dataclasses.dataclass(frozen=True, eq=False)
class _Columns:
    """The columns of some neighbouring gates of a cell.

    Attributes:
        cell: The Keras cell.
        first: The first gate.
        last: The gate after the last one.
    """

    cell: Any
    first: int
    last: int

    @property
    def all(self) -> bool:
        """Whether these are all gates."""
        return self.last - self.first == GATES[type(self.cell)]

    @property
    def range(self) -> slice:
        """As a range of columns."""
        return slice(self.first * self.cell.units, self.last * self.cell.units)

    def of(self, variable: Any, row: int | None = None) -> Any:
        """These columns of a variable, of one row of it if one is named; None of None."""
        if variable is None or (self.all and row is None):
            return variable
        rows = () if len(variable.shape) == 1 else (slice(None) if row is None else row,)
        part = "" if self.all else "".join(map(str, range(self.first, self.last)))
        name = part if row is None else f"row{row}{part}"
        return VariableSlice(variable, (*rows, self.range), name)

    def dropped_inputs(self, seen: CellPass) -> tf.Tensor:
        """x."""
        return dropped(seen.inputs, seen.input_dropout, self.first)

    def dropped_state(self, seen: CellPass) -> tf.Tensor:
        """h_{t−1}."""
        return dropped(seen.previous(), seen.recurrent_dropout, self.first)

    def reset_state(self, seen: CellPass) -> tf.Tensor:
        """r∘h_{t−1}."""
        return reset_gate(seen) * self.dropped_state(seen)

    @property
    def gradients_or_none(self) -> Callable[[CellPass, tf.Tensor], tf.Tensor] | None:
        """g of the columns; None where it is that of all."""
        return None if self.all else self.gradients

    def gradients(self, seen: CellPass, gradient: tf.Tensor) -> tf.Tensor:
        """g of the columns."""
        del seen
        return gradient[..., self.range]

    def reset_gradients(self, seen: CellPass, gradient: tf.Tensor) -> tf.Tensor:
        """g where the reset gate scales the candidate's product: ``(g_z, g_r, r∘g_h)``."""
        gate = tf.cast(reset_gate(seen), gradient.dtype)
        whole = tf.concat([tf.ones_like(gate), tf.ones_like(gate), gate], axis=-1)
        return (gradient * whole)[..., self.range]


def _each_gate_apart(cell: Any, rate: float) -> bool:
    """Whether every gate has a dropout mask of its own."""
    return 0 < rate < 1 and getattr(cell, "dropout_mask_count", None) is not None


def _ranges(gates: int, apart: bool) -> list[tuple[int, int]]:
    """All gates together, or each alone."""
    return [(gate, gate + 1) for gate in range(gates)] if apart else [(0, gates)]


def _reset_ranges(apart: bool) -> list[tuple[int, int]]:
    """Of a GRU that resets its state before the product: the candidate is always alone."""
    return [(0, 1), (1, 2), (2, 3)] if apart else [(0, 2), (2, 3)]


def _of_pass(function: Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
    """A function of a use, from one of what the cell left behind."""

    def of_use(use: Use, *gradients: tf.Tensor) -> tf.Tensor:
        return function(use.arguments["cell_pass"], *gradients)

    return of_use


def _steps_of(layer: Any) -> int | None:
    """The number of steps, if it was known when the layer was built."""
    config = layer.get_build_config() or {}
    shape = config.get("input_shape") or config.get("shapes_dict", {}).get("sequences_shape")
    return shape[1] if shape else None
