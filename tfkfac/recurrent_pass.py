"""The steps of a recurrent layer, with the products of its inputs taken for all steps at once.

Keras multiplies the input of every step with the kernel inside the loop over the steps. Here
``x·K + b`` is one large product before the loop, which is faster, and whose result is a tensor
outside the loop: the gradient there is that of every step's pre-activation. What a layer returns
is what Keras returns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfkfac import keras_internals

GATES: dict[type, int] = {
    keras.layers.SimpleRNNCell: 1,
    keras.layers.GRUCell: 3,
    keras.layers.LSTMCell: 4,
}
"""Cell class → number of matrices that lie side by side in its kernels."""


@dataclasses.dataclass(frozen=True, eq=False)
class CellPass:
    """What one cell leaves behind of a pass over sequences.

    Attributes:
        cell: The Keras cell.
        inputs: x ``[N, T, in]``.
        projections: ``x·K + b`` ``[N, T, gates·units]``, x with dropout if there is any.
        previous: Returns h_{t−1} of every step, ``[N, T, units]``.
        mask: Which steps count ``[N, T]``, or None.
        input_dropout: One mask ``[N, in]`` for each gate, one for all of them, or none.
        recurrent_dropout: Likewise ``[N, units]``.
    """

    cell: Any
    inputs: tf.Tensor
    projections: tf.Tensor
    previous: Callable[[], tf.Tensor]
    mask: tf.Tensor | None
    input_dropout: Sequence[tf.Tensor]
    recurrent_dropout: Sequence[tf.Tensor]


def cells_of(layer: Any) -> list[Any]:
    """The cells of a recurrent layer, from the inputs to the outputs."""
    stacked = isinstance(layer.cell, keras.layers.StackedRNNCells)
    return list(layer.cell.cells) if stacked else [layer.cell]


def why_not(layer: Any) -> str | None:
    """Why `run` cannot stand in for a layer's own loop, or None if it can."""
    if type(layer).inner_loop not in _LOOPS:
        return f"{type(layer).__name__} overrides inner_loop"
    if isinstance(layer.cell, keras.layers.StackedRNNCells) and not _is_as_in(
        keras.layers.StackedRNNCells, layer.cell
    ):
        return f"{type(layer.cell).__name__} overrides StackedRNNCells.call"
    strange = [cell for cell in cells_of(layer) if type(cell) not in GATES]
    return f"its cell is of class {type(strange[0]).__name__}" if strange else None


def run(
    layer: Any,
    sequences: tf.Tensor,
    initial_state: Any,
    mask: Any,
    training: Any,
    watch: Callable[[tf.Tensor], None],
) -> tuple[tuple[Any, Any, Any], list[CellPass]]:
    """Does what ``layer.inner_loop`` does.

    Args:
        layer: One for which `why_not` is None.
        sequences: ``[N, T, in]``.
        initial_state: As Keras passes it on: tensors, a list of them for each of several cells.
        mask: ``[N, T]``, or None.
        training: Whether dropout is on.
        watch: Called with every cell's projections before they are used.

    Returns:
        ``(last output, outputs, states)``, and what every cell left behind.
    """
    cells, states, passes = cells_of(layer), [], []
    stacked = cells[0] is not layer.cell
    mask = mask[0] if isinstance(mask, list | tuple) else mask
    last, outputs = None, sequences
    for cell, state in zip(cells, initial_state if stacked else [initial_state], strict=True):
        last, outputs, new_state, seen = _run_cell(
            layer, cell, outputs, tf.nest.flatten(state), mask, training, watch
        )
        passes.append(seen)
        states.append(tf.nest.pack_sequence_as(state, tf.nest.flatten(new_state)))
    if layer.go_backwards:
        outputs = tf.reverse(outputs, [1])
    return (last, outputs, states if stacked else states[0]), passes


def dropped(sequences: tf.Tensor, dropout: Sequence[tf.Tensor], gate: int = 0) -> tf.Tensor:
    """Sequences ``[N, T, d]`` as one gate sees them (all gates, if they share their dropout)."""
    if not dropout:
        return sequences
    return sequences * dropout[gate if len(dropout) > 1 else 0][:, None]


def reset_gate(seen: CellPass) -> tf.Tensor:
    """r of a GRU at all steps, ``[N, T, units]``: one product."""
    cell, units = seen.cell, seen.cell.units
    columns = slice(units, 2 * units)
    previous = dropped(seen.previous(), seen.recurrent_dropout, 1)
    dtype = previous.dtype
    gate = seen.projections[..., columns] + _product(
        previous, _value(cell.recurrent_kernel, dtype)[:, columns]
    )
    if cell.use_bias and cell.reset_after:
        gate += _value(cell.bias, dtype)[1, columns]
    return cell.recurrent_activation(gate)


def _run_cell(
    layer: Any,
    cell: Any,
    sequences: tf.Tensor,
    state: list[tf.Tensor],
    mask: tf.Tensor | None,
    training: Any,
    watch: Callable[[tf.Tensor], None],
) -> tuple[tf.Tensor, tf.Tensor, Any, CellPass]:
    """One cell over all steps. Sequences, outputs and mask are in the order of the data."""
    input_dropout: Sequence[tf.Tensor] = ()
    recurrent_dropout: Sequence[tf.Tensor] = ()
    if training and 0 < cell.dropout < 1:
        input_dropout = _as_list(cell.get_dropout_mask(sequences[:, 0]))
    if training and 0 < cell.recurrent_dropout < 1:
        recurrent_dropout = _as_list(cell.get_recurrent_dropout_mask(state[0]))
    projections = _project(cell, sequences, input_dropout)
    watch(projections)
    step = _STEPS[type(cell)](cell, recurrent_dropout, projections.dtype)

    def step_and_remember(projection: tf.Tensor, states: Sequence[tf.Tensor]) -> Any:
        new_states = step(projection, *states)
        if mask is None:
            return new_states[0], new_states
        return tf.concat([new_states[0], states[0]], axis=-1), new_states

    last, outputs, new_state = keras_internals.rnn(
        step_and_remember,
        projections,
        state,
        go_backwards=layer.go_backwards,
        mask=mask,
        unroll=layer.unroll,
        input_length=sequences.shape[1],
        zero_output_for_mask=layer.zero_output_for_mask,
        return_all_outputs=True,
    )
    if layer.go_backwards:
        outputs = tf.reverse(outputs, [1])
    if mask is None:
        previous = _shifted(outputs, state[0], layer.go_backwards)
    else:
        last, _ = tf.split(last, 2, axis=-1)
        outputs, remembered = tf.split(outputs, 2, axis=-1)

        def previous() -> tf.Tensor:
            return remembered

    seen = CellPass(cell, sequences, projections, previous, mask, input_dropout, recurrent_dropout)
    return last, outputs, new_state, seen


def _shifted(outputs: tf.Tensor, initial: tf.Tensor, go_backwards: bool) -> Callable[[], tf.Tensor]:
    """h_{t−1}, made of the outputs when it is asked for."""

    def previous() -> tf.Tensor:
        first = initial[:, None]
        if go_backwards:
            return tf.concat([outputs[:, 1:], first], axis=1)
        return tf.concat([first, outputs[:, :-1]], axis=1)

    return previous


def _project(cell: Any, sequences: tf.Tensor, dropout: Sequence[tf.Tensor]) -> tf.Tensor:
    """``x·K + b`` for all steps."""
    kernel = _value(cell.kernel, sequences.dtype)
    projections = _product(sequences, kernel, [mask[:, None] for mask in dropout])
    if not cell.use_bias:
        return projections
    bias = _value(cell.bias, sequences.dtype)
    return projections + (bias[0] if bias.shape.rank == 2 else bias)


def _product(rows: tf.Tensor, kernel: tf.Tensor, dropout: Sequence[tf.Tensor] = ()) -> tf.Tensor:
    """``rows·kernel``, every gate with its own dropout if there are several masks."""
    if len(dropout) <= 1:
        return tf.tensordot(rows * dropout[0] if dropout else rows, kernel, 1)
    parts = tf.split(kernel, len(dropout), axis=-1)
    return tf.concat(
        [tf.tensordot(rows * m, k, 1) for m, k in zip(dropout, parts, strict=True)], axis=-1
    )


def _simple_step(cell: Any, dropout: Sequence[tf.Tensor], dtype: tf.DType) -> Step:
    kernel = _value(cell.recurrent_kernel, dtype)

    def step(projection: tf.Tensor, h: tf.Tensor) -> list[tf.Tensor]:
        h = projection + _product(h, kernel, dropout)
        return [h if cell.activation is None else cell.activation(h)]

    return step


def _lstm_step(cell: Any, dropout: Sequence[tf.Tensor], dtype: tf.DType) -> Step:
    kernel = _value(cell.recurrent_kernel, dtype)

    def step(projection: tf.Tensor, h: tf.Tensor, c: tf.Tensor) -> list[tf.Tensor]:
        i, f, z, o = tf.split(projection + _product(h, kernel, dropout), 4, axis=-1)
        c = cell.recurrent_activation(f) * c + cell.recurrent_activation(i) * cell.activation(z)
        return [cell.recurrent_activation(o) * cell.activation(c), c]

    return step


def _gru_step(cell: Any, dropout: Sequence[tf.Tensor], dtype: tf.DType) -> Step:
    kernel, units = _value(cell.recurrent_kernel, dtype), cell.units
    bias = _value(cell.bias, dtype)[1] if cell.use_bias and cell.reset_after else None

    def reset_after(projection: tf.Tensor, h: tf.Tensor) -> list[tf.Tensor]:
        inner = _product(h, kernel, dropout)
        if bias is not None:
            inner += bias
        x_z, x_r, x_h = tf.split(projection, 3, axis=-1)
        h_z, h_r, h_h = tf.split(inner, 3, axis=-1)
        z, r = cell.recurrent_activation(x_z + h_z), cell.recurrent_activation(x_r + h_r)
        return [z * h + (1 - z) * cell.activation(x_h + r * h_h)]

    def reset_before(projection: tf.Tensor, h: tf.Tensor) -> list[tf.Tensor]:
        x_z, x_r, x_h = tf.split(projection, 3, axis=-1)
        h_z, h_r = tf.split(_product(h, kernel[:, : 2 * units], dropout[:2]), 2, axis=-1)
        z, r = cell.recurrent_activation(x_z + h_z), cell.recurrent_activation(x_r + h_r)
        inner = _product(r * h, kernel[:, 2 * units :], dropout[2:])
        return [z * h + (1 - z) * cell.activation(x_h + inner)]

    return reset_after if cell.reset_after else reset_before


Step = Callable[..., "list[tf.Tensor]"]
"""``(projection, *states) -> new states``, the first of which is the output."""

_STEPS: dict[type, Callable[..., Step]] = {
    keras.layers.SimpleRNNCell: _simple_step,
    keras.layers.GRUCell: _gru_step,
    keras.layers.LSTMCell: _lstm_step,
}

_LOOPS = [
    layer_class.inner_loop
    for layer_class in (
        keras.layers.RNN,
        keras.layers.SimpleRNN,
        keras.layers.GRU,
        keras.layers.LSTM,
    )
]


def _is_as_in(base: type, cell: Any) -> bool:
    return bool(type(cell).call is base.call)  # type: ignore[attr-defined]


def _as_list(dropout: Any) -> list[tf.Tensor]:
    return dropout if isinstance(dropout, list) else [dropout]


def _value(variable: Any, dtype: tf.DType) -> tf.Tensor:
    return tf.cast(tf.convert_to_tensor(variable), dtype)
