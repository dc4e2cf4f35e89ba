"""Recurrent cells by hand, step by step, with something added to every product that can be moved.

Nothing of tfkfac takes part. A pass returns what every matrix of the cell is multiplied with, and
what is added to its product (zeros), in which autodiff finds g of every step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from keras import layers

Steps = list[tf.Tensor]

LAYERS = {
    "lstm": layers.LSTM,
    "gru": layers.GRU,
    "gru-reset-before": lambda units, **o: layers.GRU(units, reset_after=False, **o),
    "simple": layers.SimpleRNN,
}


@dataclasses.dataclass(eq=False)
class Traced:
    """A pass of a cell over sequences; lists run over the steps in the order of the data.

    Attributes:
        outputs: h_t ``[N, units]``.
        kernel_inputs: For each gate: x_t as it sees it.
        recurrent_inputs: For each gate: h_{t−1} as it sees it (or r∘h_{t−1}).
        kernel_nudges: What is added to ``x_t·K + b``.
        recurrent_nudges: What is added to ``h_{t−1}·R`` (before a reset gate scales it).
    """

    outputs: Steps
    kernel_inputs: list[list[tf.Tensor]]
    recurrent_inputs: list[list[tf.Tensor]]
    kernel_nudges: Steps
    recurrent_nudges: Steps


def trace(
    cell: Any,
    sequences: Any,
    tape: tf.GradientTape,
    *,
    mask: np.ndarray | None = None,
    backwards: bool = False,
    input_dropout: Sequence[Any] | None = None,
    recurrent_dropout: Sequence[Any] | None = None,
) -> Traced:
    """One step after the other, from states of zero.

    Args:
        cell: A Keras cell, of which only weights and settings are used.
        sequences: ``[N, T, in]``.
        tape: Watches the nudges.
        mask: ``[N, T]``; steps that do not count leave the state as it is.
        backwards: The last step comes first.
        input_dropout: A mask for each gate.
        recurrent_dropout: A mask for each gate.
    """
    step, gates = STEPS[type(cell).__name__]
    count, length = sequences.shape[:2]
    kernels = [tf.split(k.value, gates, axis=1) for k in (cell.kernel, cell.recurrent_kernel)]
    biases = _biases(cell, gates)
    input_dropout = input_dropout or [1.0] * gates
    recurrent_dropout = recurrent_dropout or [1.0] * gates
    state = [tf.zeros([count, cell.units], sequences.dtype)] * (2 if gates == 4 else 1)
    traced = Traced(*([None] * length for _ in range(5)))
    for t in reversed(range(length)) if backwards else range(length):
        nudges = [tf.zeros([count, gates * cell.units], sequences.dtype) for _ in range(2)]
        tape.watch(nudges)
        of_x, of_h = (tf.split(nudge, gates, axis=1) for nudge in nudges)
        x = [sequences[:, t] * dropout for dropout in input_dropout]
        h = [state[0] * dropout for dropout in recurrent_dropout]
        projections = [
            a @ k + b + n for a, k, b, n in zip(x, kernels[0], biases[0], of_x, strict=True)
        ]

        def product(
            gate: int, a: Any, of_h: Any = of_h, kernels: Any = kernels, biases: Any = biases
        ) -> tf.Tensor:
            return a @ kernels[1][gate] + biases[1][gate] + of_h[gate]

        new_state, seen = step(cell, projections, h, state, product)
        if mask is not None:
            counts = mask[:, t, None]
            new_state = [tf.where(counts, n, o) for n, o in zip(new_state, state, strict=True)]
        state = new_state
        traced.outputs[t] = state[0]
        traced.kernel_inputs[t], traced.recurrent_inputs[t] = x, seen
        traced.kernel_nudges[t], traced.recurrent_nudges[t] = nudges
    return traced


def _biases(cell: Any, gates: int) -> list[list[Any]]:
    """Of the kernel and of the recurrent kernel, for each gate."""
    if not cell.use_bias:
        return [[0.0] * gates] * 2
    bias = cell.bias.value
    if bias.shape.rank == 2:
        return [tf.split(row, gates) for row in tf.unstack(bias)]
    return [tf.split(bias, gates), [0.0] * gates]


def _simple(cell: Any, x: Any, h: Any, state: Any, product: Any) -> Any:
    del state
    return [cell.activation(x[0] + product(0, h[0]))], h


def _lstm(cell: Any, x: Any, h: Any, state: Any, product: Any) -> Any:
    i, f, c, o = (projection + product(gate, h[gate]) for gate, projection in enumerate(x))
    carry = tf.sigmoid(f) * state[1] + tf.sigmoid(i) * tf.tanh(c)
    return [tf.sigmoid(o) * tf.tanh(carry), carry], h


def _gru(cell: Any, x: Any, h: Any, state: Any, product: Any) -> Any:
    z, r = (tf.sigmoid(x[gate] + product(gate, h[gate])) for gate in (0, 1))
    seen = [h[0], h[1], h[2] if cell.reset_after else r * h[2]]
    inner = product(2, seen[2])
    candidate = tf.tanh(x[2] + (r * inner if cell.reset_after else inner))
    return [z * state[0] + (1 - z) * candidate], seen


STEPS = {"SimpleRNNCell": (_simple, 1), "LSTMCell": (_lstm, 4), "GRUCell": (_gru, 3)}
