"""Statistics of recurrent layers equal those of cells by hand, summed step by step in NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from recurrences import LAYERS, Traced, trace
from reference import ggn_of_variables, relative_error

import tfkfac
from tfkfac.blocks import RecurrentBlock
from tfkfac.blocks.recurrent import LONGEST
from tfkfac.variable_slice import VariableSlice, whole_of

pytestmark = pytest.mark.usefixtures("float64")

N, T, FEATURES, UNITS = 3, 5, 4, 2
TOLERANCE = 1e-10

kinds = pytest.mark.parametrize("kind", LAYERS)
GAPS = np.array([[1, 0, 1, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], bool)


def sequences() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(N, T, FEATURES))


def targets(*shape: int) -> np.ndarray:
    return np.random.default_rng(2).normal(size=(N, *shape))


def model_of(*stack: Any, mask: bool = False) -> keras.Model:
    """Layers one after the other, with weights that are nowhere zero."""
    inputs = keras.Input((T, FEATURES))
    masks = [keras.Input((T,), dtype="bool")] if mask else []
    outputs: Any = inputs
    for layer in stack:
        outputs = layer(outputs, mask=masks[0]) if mask else layer(outputs)
    model = keras.Model([inputs, *masks] if mask else inputs, outputs)
    rng = np.random.default_rng(1)
    for variable in model.trainable_variables:
        variable.assign(0.7 * rng.normal(size=variable.shape))
    return model


def statistics(
    model: keras.Model, x: Any, y: Any, sample_weight: Any = None, **options: Any
) -> list[RecurrentBlock]:
    """The recurrent blocks after a step on one batch that moves nothing."""
    given = {"recurrent": "lggm_symmetric", "fisher": "empirical", **options}
    optimizer = tfkfac.KFAC(0.0, factor_decay=0.0, seed=0, **given)
    model.compile(optimizer, keras.losses.MeanSquaredError(), run_eagerly=True)
    model.train_on_batch(x, y, sample_weight=sample_weight)
    blocks = [b for b in optimizer.layer_collection if isinstance(b, RecurrentBlock)]
    assert blocks
    return blocks


def injected(outputs: tf.Tensor, y: Any, sample_weight: Any = None) -> tf.Tensor:
    """``Σ_u √(N c_u) (−log p_u)`` of the mean of squares: scalar, of outputs ``[N, ..., D]``."""
    share = N / float(tf.size(outputs))
    weights = np.ones(N) if sample_weight is None else sample_weight
    weights = weights.reshape(weights.shape + (1,) * (len(outputs.shape) - weights.ndim))
    return tf.reduce_sum(np.sqrt(share * weights) * (y - outputs) ** 2)


def expected(
    block: RecurrentBlock,
    traces: Sequence[Traced],
    gradients: Sequence[tuple[Any, Any]],
    omega: np.ndarray,
) -> dict[str, np.ndarray]:
    """The statistics of a block, one step of one example after the other.

    Args:
        block: Tells which columns of which kernel it covers, and whether it has a bias.
        traces: By hand, one for each use.
        gradients: For each use: g at the nudges of both kernels ``[T, N, gates·units]``.
        omega: ω of the steps ``[N, T]``, 0 where they do not count.
    """
    kernel, cell = block.variables[0], block.layers[-1]
    recurrent = whole_of(kernel) is cell.recurrent_kernel
    columns = kernel.index[1] if isinstance(kernel, VariableSlice) else slice(None)
    gate = (columns.start or 0) // cell.units
    names = ("A", "A1", "G", "G1")
    dims = [block.input_dim] * 2 + [block.output_dim] * 2
    sums = {name: np.zeros((dim, dim)) for name, dim in zip(names, dims, strict=True)}
    lengths, longest = np.zeros(T + 1), block.averages()["lengths"].shape[0] - 1
    for traced, of_use in zip(traces, gradients, strict=True):
        seen = traced.recurrent_inputs if recurrent else traced.kernel_inputs
        for n in range(N):
            rows, gs = [], []
            for t in range(T):
                one = [1.0] if block.has_bias else []
                rows.append(np.sqrt(omega[n, t]) * np.append(seen[t][gate][n], one))
                gs.append(of_use[recurrent][t][n].numpy()[columns])
                sums["A"] += np.outer(rows[t], rows[t])
                sums["G"] += np.outer(gs[t], gs[t])
                if t > 0 and omega[n, t] > 0 and omega[n, t - 1] > 0:
                    sums["A1"] += np.outer(rows[t], rows[t - 1])
                    sums["G1"] += np.outer(gs[t], gs[t - 1])
            lengths[np.count_nonzero(omega[n])] += 1
    steps = len(traces) * np.count_nonzero(omega)
    total = len(traces) * omega.sum()
    scaled = {key: value / (total if key[0] == "A" else steps) for key, value in sums.items()}
    assert longest == T
    return {**scaled, "lengths": lengths / N, "uses": np.array(steps / N)}


def assert_statistics(blocks: Sequence[RecurrentBlock], *args: Any) -> None:
    """All of them, of every block."""
    for block in blocks:
        found = {
            key: value.numpy() for key, value in (dict(block.averages()) | block.factors).items()
        }
        wanted = expected(block, *args)
        assert found.keys() == wanted.keys()
        for key, value in wanted.items():
            error = relative_error(found[key], value) if value.any() else np.abs(found[key]).max()
            assert error < TOLERANCE, f"{key} of {block.variables[0].path}: {error}"


def by_hand(layer: Any, x: Any, y: Any, sample_weight: Any = None, **options: Any) -> Any:
    """A pass of a layer that returns all steps and is the last one, and g at both its nudges."""
    with tf.GradientTape() as tape:
        traced = trace(layer.cell, x, tape, **options)
        loss = injected(tf.stack(traced.outputs, axis=1), y, sample_weight)
    return [traced], [gradients_of(tape, loss, traced)]


def gradients_of(tape: tf.GradientTape, loss: tf.Tensor, traced: Traced) -> Any:
    nudges = [traced.kernel_nudges, traced.recurrent_nudges]
    return tape.gradient(loss, nudges, unconnected_gradients="zero")


# --- one layer ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("bias", "backwards"), [(True, False), (False, True)])
@kinds
def test_statistics_of_a_layer(kind: str, bias: bool, backwards: bool) -> None:
    layer = LAYERS[kind](UNITS, return_sequences=True, use_bias=bias, go_backwards=backwards)
    model, x, y = model_of(layer), sequences(), targets(T, UNITS)
    in_order = y[:, ::-1] if backwards else y  # Keras returns the steps as it took them
    hand = by_hand(layer, x, in_order, backwards=backwards)
    blocks = statistics(model, x, y)
    assert len(blocks) == (3 if kind == "gru-reset-before" else 2)
    assert_statistics(blocks, *hand, np.ones((N, T)))


@kinds
def test_statistics_where_only_the_last_step_is_returned(kind: str) -> None:
    layer = LAYERS[kind](UNITS)
    model, x, y = model_of(layer), sequences(), targets(UNITS)
    with tf.GradientTape() as tape:
        traced = trace(layer.cell, x, tape)
        loss = injected(traced.outputs[-1], y)
    hand = [traced], [gradients_of(tape, loss, traced)]
    assert_statistics(statistics(model, x, y), *hand, np.ones((N, T)))


WEIGHTS = {
    "by-example": np.array([[0.5], [2.0], [1.25]]),
    "by-step": np.random.default_rng(3).uniform(0.1, 2.0, size=(N, T)),
}


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
@kinds
def test_statistics_with_sample_weights(kind: str, weights: np.ndarray) -> None:
    layer = LAYERS[kind](UNITS, return_sequences=True)
    model, x, y = model_of(layer), sequences(), targets(T, UNITS)
    hand = by_hand(layer, x, y, weights)
    omega = np.broadcast_to(weights, (N, T))
    assert_statistics(statistics(model, x, y, weights), *hand, omega)


@pytest.mark.parametrize(("backwards", "zero"), [(False, False), (False, True), (True, True)])
@kinds
def test_masked_steps_do_not_count_and_part_their_neighbours(
    kind: str, backwards: bool, zero: bool
) -> None:
    """The state goes on behind them, also where the output is zero (`zero`)."""
    options = {"go_backwards": backwards, "zero_output_for_mask": zero}
    layer = LAYERS[kind](UNITS, return_sequences=True, **options)
    model, x, y = model_of(layer, mask=True), sequences(), targets(T, UNITS)
    weights = GAPS * GAPS.size / GAPS.sum()  # Keras' mean over valid steps
    y_in_order, weights = (each[:, ::-1] if backwards else each for each in (y, weights))
    weights = weights * GAPS if zero else weights  # zeros have no gradient
    hand = by_hand(layer, x, y_in_order, weights, mask=GAPS, backwards=backwards)
    assert_statistics(statistics(model, [x, GAPS], y), *hand, GAPS.astype("float64"))


DROPOUT = {
    "inputs": {"dropout": 0.4},
    "inputs-by-gate": {"dropout": 0.4, "implementation": 1, "use_cudnn": False},
    "states": {"recurrent_dropout": 0.4},
    "both": {"dropout": 0.3, "recurrent_dropout": 0.4},
}


@pytest.mark.parametrize("dropout", DROPOUT)
@kinds
def test_statistics_see_what_dropout_leaves(kind: str, dropout: str) -> None:
    options = dict(DROPOUT[dropout])
    if kind == "simple":
        options = {key: value for key, value in options.items() if key.endswith("dropout")}
    layer = LAYERS[kind](UNITS, return_sequences=True, seed=0, **options)
    model, x, y = model_of(layer), sequences(), targets(T, UNITS)
    hand = by_hand(layer, x, y, **dropout_of(layer.cell))
    blocks = statistics(model, x, y)
    gates = {"lstm": 4, "simple": 1}.get(kind, 3)
    apart = dict.fromkeys(DROPOUT, gates + 1) | {"inputs": 2, "both": 2 * gates}
    if dropout == "inputs" and kind == "gru-reset-before":
        apart["inputs"] = 3
    elif dropout == "inputs-by-gate" and kind == "gru-reset-before":
        apart[dropout] = gates + 2
    assert len(blocks) == apart[dropout]
    assert_statistics(blocks, *hand, np.ones((N, T)))


def dropout_of(cell: Any) -> dict[str, Any]:
    """The masks of the next pass, for each gate; the generator is put back."""
    before, gates = cell.seed_generator.state.numpy(), cell.kernel.shape[1] // cell.units
    ones = tf.ones([N, FEATURES], tf.float64), tf.ones([N, cell.units], tf.float64)
    masks = cell.get_dropout_mask(ones[0]), cell.get_recurrent_dropout_mask(ones[1])
    cell.reset_dropout_mask()
    cell.reset_recurrent_dropout_mask()
    cell.seed_generator.state.assign(before)
    of_gates = [
        each if isinstance(each, list) or each is None else [each] * gates for each in masks
    ]
    return dict(zip(("input_dropout", "recurrent_dropout"), of_gates, strict=True))


@pytest.mark.slow
def test_number_of_steps_need_not_be_known() -> None:
    """The statistics are those of the same layer with a known number, in a graph."""
    found = []
    for steps in (T, None):
        inputs, mask = keras.Input((steps, FEATURES)), keras.Input((steps,), dtype="bool")
        layer = layers.GRU(UNITS, return_sequences=True, kernel_initializer="ones")
        model = keras.Model([inputs, mask], layer(inputs, mask=mask))
        layer.cell.recurrent_kernel.assign(0.3 * np.eye(UNITS, 3 * UNITS))
        optimizer = tfkfac.KFAC(
            0.0, factor_decay=0.0, seed=0, recurrent="lggm_symmetric", fisher="empirical"
        )
        model.compile(optimizer, "mse", jit_compile=False)
        model.train_on_batch([sequences(), GAPS], targets(T, UNITS))
        found.append(
            [dict(block.averages()) | block.factors for block in optimizer.layer_collection]
        )
    for known, unknown in zip(*found, strict=True):
        assert unknown["lengths"].shape == (LONGEST + 1,)
        for key, value in known.items():
            other = unknown[key][: T + 1] if key == "lengths" else unknown[key]
            assert relative_error(other, value) < TOLERANCE


# --- several layers ----------------------------------------------------------------------------


@kinds
def test_statistics_of_both_directions(kind: str) -> None:
    layer = layers.Bidirectional(LAYERS[kind](UNITS, return_sequences=True))
    model, x, y = model_of(layer), sequences(), targets(T, 2 * UNITS)
    pair = layer.forward_layer, layer.backward_layer
    with tf.GradientTape(persistent=True) as tape:
        traces = [trace(each.cell, x, tape, backwards=each.go_backwards) for each in pair]
        outputs = [tf.stack(traced.outputs, axis=1) for traced in traces]
        loss = injected(tf.concat(outputs, axis=-1), y)
    blocks = statistics(model, x, y)
    for one, traced in zip(pair, traces, strict=True):
        own = [block for block in blocks if block.layers[0] is one]
        assert len(own) == len(blocks) // 2
        hand = [traced], [gradients_of(tape, loss, traced)]
        assert_statistics(own, *hand, np.ones((N, T)))


@pytest.mark.parametrize("as_cells", [False, True])
def test_statistics_of_layers_on_layers(as_cells: bool) -> None:
    cells = [layers.LSTMCell(3), layers.GRUCell(UNITS), layers.SimpleRNNCell(UNITS)]
    stack = [layers.RNN(cell, return_sequences=True) for cell in cells]
    if as_cells:
        stack = [layers.RNN(cells, return_sequences=True)]
    model, x, y = model_of(*stack, mask=True), sequences(), targets(T, UNITS)
    traces, outputs = [], tf.constant(x)
    with tf.GradientTape(persistent=True) as tape:
        for cell in cells:
            traces.append(trace(cell, outputs, tape, mask=GAPS))
            outputs = tf.stack(traces[-1].outputs, axis=1)
        loss = injected(outputs, y, GAPS * GAPS.size / GAPS.sum())
    blocks = statistics(model, [x, GAPS], y)
    assert len(blocks) == 6
    for cell, traced in zip(cells, traces, strict=True):
        hand = [traced], [gradients_of(tape, loss, traced)]
        own = [block for block in blocks if block.layers[-1] is cell]
        assert_statistics(own, *hand, GAPS.astype("float64"))


@kinds
def test_statistics_of_a_layer_that_is_used_twice(kind: str) -> None:
    layer = LAYERS[kind](FEATURES, return_sequences=True)
    model, x, y = model_of(layer, layer), sequences(), targets(T, FEATURES)
    with tf.GradientTape(persistent=True) as tape:
        first = trace(layer.cell, x, tape)
        second = trace(layer.cell, tf.stack(first.outputs, axis=1), tape)
        loss = injected(tf.stack(second.outputs, axis=1), y)
    hand = [first, second], [gradients_of(tape, loss, each) for each in (first, second)]
    assert_statistics(statistics(model, x, y), *hand, np.ones((N, T)))


# --- the Fisher --------------------------------------------------------------------------------


@kinds
def test_gradients_of_the_weights_are_those_of_the_steps(kind: str) -> None:
    """Σ_t a_t g_tᵀ over the steps is what autodiff finds at the kernels."""
    layer = LAYERS[kind](UNITS, return_sequences=True)
    model, x, y = model_of(layer), sequences(), targets(T, UNITS)
    traces, gradients = by_hand(layer, x, y)
    with tf.GradientTape() as tape:
        loss = injected(model(x), y)
    kernels = layer.cell.kernel, layer.cell.recurrent_kernel
    wanted = tape.gradient(loss, [kernel.value for kernel in kernels])
    seen = traces[0].kernel_inputs, traces[0].recurrent_inputs
    for inputs, g, total in zip(seen, gradients[0], wanted, strict=True):
        of_gates = [
            sum(tf.transpose(inputs[t][gate]) @ columns for t, columns in enumerate(steps))
            for gate, steps in enumerate(
                zip(*(tf.split(each, len(inputs[0]), axis=1) for each in g), strict=True)
            )
        ]
        assert relative_error(tf.concat(of_gates, axis=1), total) < 1e-12


@pytest.mark.parametrize("form", ["independent", "lggm_symmetric"])
def test_one_linear_step_is_exact(form: str) -> None:
    """A ⊗ G is the Gauss-Newton block, of either kernel; there are no neighbours."""
    layer = layers.SimpleRNN(UNITS, activation=None)
    inputs, state = keras.Input((1, FEATURES)), keras.Input((UNITS,))
    model = keras.Model([inputs, state], layer(inputs, initial_state=state))
    x = [sequences()[:, :1], targets(UNITS)]
    y, cell = np.ones((N, UNITS)), layer.cell
    exact = [
        ggn_of_variables(model, variables, x, y, keras.losses.MeanSquaredError())
        for variables in ([cell.kernel, cell.bias], [cell.recurrent_kernel])
    ]
    blocks = statistics(model, x, y, recurrent=form, fisher="exact")
    assert len(blocks) == 2
    for block, dense in zip(blocks, exact, strict=True):
        assert relative_error(block.to_dense(), dense) < 1e-10
