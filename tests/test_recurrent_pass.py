"""A recurrent layer returns what Keras returns, also where KFAC takes its steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from recurrences import LAYERS

import tfkfac
from tfkfac import recurrent_pass

N, T, FEATURES, UNITS = 6, 5, 4, 3

CELLS = {
    "lstm": layers.LSTMCell,
    "gru": layers.GRUCell,
    "gru-reset-before": lambda units, **o: layers.GRUCell(units, reset_after=False, **o),
    "simple": layers.SimpleRNNCell,
}
kinds = pytest.mark.parametrize("kind", LAYERS)

MASK = np.array(
    [
        [1, 1, 1, 1, 1],
        [1, 1, 0, 0, 0],  # padded at the end,
        [0, 0, 1, 1, 1],  # and at the front
        [0, 0, 0, 0, 0],
        [1, 0, 1, 1, 0],  # with gaps
        [0, 1, 0, 0, 1],
    ],
    bool,
)


def sequences(steps: int = T) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(N, steps, FEATURES)).astype("float32")


def model_of(*stack: Any, mask: bool = False, steps: int | None = T) -> keras.Model:
    """Layers one after the other, with weights that are nowhere zero."""
    inputs = keras.Input((steps, FEATURES), batch_size=N)
    masks = [keras.Input((steps,), batch_size=N, dtype="bool")] if mask else []
    outputs: Any = inputs
    for layer in stack:
        outputs = layer(outputs, mask=masks[0]) if mask else layer(outputs)
    return randomised(keras.Model([inputs, *masks] if mask else inputs, outputs))


def one_of_each(**options: Any) -> list[Any]:
    """A stack of layers of every kind."""
    return [make(UNITS, return_sequences=True, **options) for make in LAYERS.values()]


def randomised(model: keras.Model) -> keras.Model:
    rng = np.random.default_rng(1)
    for variable in model.trainable_variables:
        variable.assign(0.5 * rng.normal(size=variable.shape))
    return model


def assert_returns_what_keras_does(
    model: keras.Model,
    *inputs: Any,
    passes: int = 1,
    tolerance: float = 1e-6,
    wrapped: Callable[..., Any] = lambda function: function,
) -> None:
    """Outputs, states and draws of random numbers of training passes, with KFAC and without."""
    given = [tf.constant(each) for each in inputs]
    given = given if len(given) > 1 else given[0]
    kept = kept_by(model)
    before = [variable.numpy() for variable in kept]
    expected = [wrapped(lambda: model(given, training=True))() for _ in range(passes)]
    left = [variable.numpy() for variable in kept]
    for variable, value in zip(kept, before, strict=True):
        variable.assign(value)
    optimizer = tfkfac.KFAC(model=model)
    uses: list[int] = []

    def recorded() -> Any:
        with optimizer.record() as record:
            outputs = model(given, training=True)
        uses.append(sum(map(len, record.uses.values())))
        return outputs

    found = [wrapped(recorded)() for _ in range(passes)]
    optimizer.detach()
    assert min(uses) > 0
    assert_close(found, expected, tolerance)
    assert_close([variable.numpy() for variable in kept], left, tolerance)


def kept_by(model: keras.Model) -> list[Any]:
    """What a pass changes: counters of random numbers, and states that stay."""
    states = [getattr(layer, "states", None) for layer in model.layers]
    return [*model.non_trainable_variables, *(v for v in tf.nest.flatten(states) if v is not None)]


def assert_close(found: Any, expected: Any, tolerance: float) -> None:
    tf.nest.assert_same_structure(found, expected)
    for one, other in zip(tf.nest.flatten(found), tf.nest.flatten(expected), strict=True):
        assert one.dtype == other.dtype
        one, other = (np.asarray(each).astype("float64") for each in (one, other))
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance)


# --- shapes of outputs -------------------------------------------------------------------------


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("all_steps", [False, True])
@kinds
def test_outputs_and_states(kind: str, all_steps: bool, backwards: bool) -> None:
    layer = LAYERS[kind](
        UNITS, return_sequences=all_steps, return_state=True, go_backwards=backwards
    )
    assert_returns_what_keras_does(model_of(layer), sequences())


MERGED = {
    "lstm": ["concat", None],
    "gru": ["concat", "sum"],
    "gru-reset-before": ["mul"],
    "simple": ["concat", "ave"],
}


@pytest.mark.parametrize(("kind", "merge"), [(k, merge) for k in MERGED for merge in MERGED[k]])
def test_both_directions(kind: str, merge: str | None) -> None:
    inner = LAYERS[kind](UNITS, return_sequences=True)
    assert_returns_what_keras_does(
        model_of(layers.Bidirectional(inner, merge_mode=merge)), sequences()
    )


@kinds
def test_layers_on_layers(kind: str) -> None:
    stack = [
        layers.Bidirectional(LAYERS[kind](UNITS, return_sequences=True)),
        LAYERS[kind](4, return_sequences=True, go_backwards=True),
        LAYERS[kind](2),
    ]
    assert_returns_what_keras_does(model_of(*stack), sequences())


@pytest.mark.parametrize("options", [{"use_bias": False}, {"implementation": 1}, {"unroll": True}])
@kinds
def test_options_of_the_layer(kind: str, options: dict[str, Any]) -> None:
    if kind == "simple":
        options = {key: value for key, value in options.items() if key != "implementation"}
    layer = LAYERS[kind](UNITS, return_sequences=True, return_state=True, **options)
    assert_returns_what_keras_does(model_of(layer), sequences())


@kinds
def test_other_activations(kind: str) -> None:
    gates = {} if kind == "simple" else {"recurrent_activation": "hard_sigmoid"}
    for activation in ("relu", None):
        layer = LAYERS[kind](UNITS, activation=activation, **gates)
        assert_returns_what_keras_does(model_of(layer), sequences(), tolerance=1e-5)


def test_number_of_steps_that_is_not_known() -> None:
    model = model_of(*one_of_each(), steps=None)
    for steps in (1, 4):
        assert_returns_what_keras_does(model, sequences(steps), wrapped=tf.function)


@kinds
def test_cells_in_a_layer(kind: str) -> None:
    layer = layers.RNN(CELLS[kind](UNITS), return_sequences=True, return_state=True)
    assert_returns_what_keras_does(model_of(layer), sequences())


@pytest.mark.parametrize("all_steps", [False, True])
def test_cells_on_cells(all_steps: bool) -> None:
    cells = [CELLS[kind](2 + i) for i, kind in enumerate(CELLS)]
    layer = layers.RNN(cells, return_sequences=all_steps, return_state=True, go_backwards=True)
    assert_returns_what_keras_does(model_of(layer), sequences())


# --- states ------------------------------------------------------------------------------------


@kinds
def test_initial_states(kind: str) -> None:
    layer = LAYERS[kind](UNITS, return_sequences=True, return_state=True)
    inputs = keras.Input((T, FEATURES))
    states = [keras.Input((UNITS,)) for _ in range(2 if kind == "lstm" else 1)]
    outputs = layer(inputs, initial_state=states)
    model = randomised(keras.Model([inputs, *states], outputs))
    given = np.random.default_rng(2).normal(size=(len(states), N, UNITS)).astype("float32")
    assert_returns_what_keras_does(model, sequences(), *given)


@kinds
def test_states_that_stay_from_batch_to_batch(kind: str) -> None:
    layer = LAYERS[kind](UNITS, return_sequences=True, stateful=True)
    assert_returns_what_keras_does(model_of(layer), sequences(), passes=3)


def test_states_of_stacked_cells_that_stay() -> None:
    layer = layers.RNN([layers.LSTMCell(2), layers.GRUCell(3)], stateful=True)
    assert_returns_what_keras_does(model_of(layer), sequences(), passes=2)


# --- masks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("zero", [False, True])
@kinds
def test_masked_steps(kind: str, zero: bool) -> None:
    layer = LAYERS[kind](UNITS, return_sequences=True, return_state=True, zero_output_for_mask=zero)
    assert_returns_what_keras_does(model_of(layer, mask=True), sequences(), MASK)


@pytest.mark.parametrize("unroll", [False, True])
def test_masked_steps_backwards_and_in_stacks(unroll: bool) -> None:
    options = {"return_sequences": True, "unroll": unroll}
    stack = [
        layers.GRU(UNITS, go_backwards=True, zero_output_for_mask=True, **options),
        layers.RNN([layers.LSTMCell(2), layers.SimpleRNNCell(3)], **options),
        layers.RNN([layers.GRUCell(2), layers.LSTMCell(3)], zero_output_for_mask=True, **options),
    ]
    assert_returns_what_keras_does(model_of(*stack, mask=True), sequences(), MASK)


@kinds
def test_masked_steps_in_both_directions(kind: str) -> None:
    layer = layers.Bidirectional(LAYERS[kind](UNITS, return_sequences=True))
    assert_returns_what_keras_does(model_of(layer, mask=True), sequences(), MASK)


# --- dropout -----------------------------------------------------------------------------------

DROPOUT = {
    "inputs": {"dropout": 0.4},
    "states": {"recurrent_dropout": 0.4},
    "both": {"dropout": 0.4, "recurrent_dropout": 0.3},
}
dropouts = pytest.mark.parametrize("dropout", DROPOUT.values(), ids=DROPOUT)


@dropouts
@kinds
def test_dropout(kind: str, dropout: dict[str, float]) -> None:
    layer = LAYERS[kind](UNITS, return_sequences=True, seed=0, **dropout)
    assert_returns_what_keras_does(model_of(layer), sequences(), passes=2)


@dropouts
def test_dropout_for_each_gate(dropout: dict[str, float]) -> None:
    stack = [
        LAYERS[kind](3, return_sequences=True, seed=0, implementation=1, use_cudnn=False, **dropout)
        for kind in ("lstm", "gru", "gru-reset-before")
    ]
    assert_returns_what_keras_does(model_of(*stack), sequences())


def test_dropout_in_stacked_cells_and_both_directions() -> None:
    cells = [layers.LSTMCell(2, dropout=0.3, seed=0), layers.GRUCell(3, dropout=0.5, seed=1)]
    stack = [
        layers.RNN(cells, return_sequences=True),
        layers.Bidirectional(layers.LSTM(2, dropout=0.3, recurrent_dropout=0.3, seed=2)),
    ]
    assert_returns_what_keras_does(model_of(*stack), sequences(), passes=2)


def test_dropout_is_off_where_keras_turns_it_off() -> None:
    layer = layers.LSTM(UNITS, dropout=0.5, recurrent_dropout=0.5)
    model = model_of(layer)
    optimizer = tfkfac.KFAC(model=model)
    expected = model(sequences(), training=False)
    with optimizer.record() as record:
        found = model(sequences(), training=False)
    assert record.uses
    np.testing.assert_allclose(found, expected, atol=1e-6)


# --- modes and precision -----------------------------------------------------------------------


@pytest.mark.parametrize("jit", [False, True])
def test_graphs(jit: bool) -> None:
    assert_returns_what_keras_does(
        model_of(*one_of_each(), mask=True),
        sequences(),
        MASK,
        tolerance=2e-6,
        wrapped=lambda function: tf.function(function, jit_compile=jit),
    )


@pytest.mark.parametrize(
    ("policy", "tolerance"), [("mixed_bfloat16", 2e-2), ("mixed_float16", 3e-3)]
)
def test_half_precision(policy: str, tolerance: float) -> None:
    model = model_of(*one_of_each(dtype=policy), mask=True)
    assert model.outputs[0].dtype == policy.removeprefix("mixed_")
    assert_returns_what_keras_does(model, sequences(), MASK, tolerance=tolerance)


# --- when it is not KFAC's turn ----------------------------------------------------------------


def compiled(**options: Any) -> keras.Model:
    model = model_of(layers.LSTM(UNITS, name="first", return_sequences=True), layers.GRU(2))
    model.compile(tfkfac.KFAC(seed=0, **options), "mse", run_eagerly=True)
    return model


def test_keras_takes_the_steps_of_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    model, y = compiled(), np.zeros((N, 2), "float32")
    model.train_on_batch(sequences(), y)
    monkeypatch.setattr(recurrent_pass, "run", None)
    model.evaluate(sequences(), y, verbose=0)
    model.predict(sequences(), verbose=0)
    model(sequences())
    with pytest.raises(TypeError, match="NoneType"):
        model.train_on_batch(sequences(), y)


def test_keras_takes_the_steps_after_the_recorded_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(layers.LSTM(UNITS))
    with tfkfac.KFAC(model=model).record():
        model(sequences(), training=True)
        monkeypatch.setattr(recurrent_pass, "run", None)
    model(sequences(), training=True)


FUSED = {"lstm": "bidirectional_lstm", "gru": "bidirectional_gru"}


@pytest.mark.parametrize(("kind", "fused"), FUSED.items())
def test_both_directions_at_once_are_seen_one_by_one(
    kind: str, fused: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU, newer versions of Keras run both layers in one operation, without their loops."""
    from keras.src import backend

    if not hasattr(backend, fused):
        pytest.skip(f"this version of Keras has no {fused}")
    layer = layers.Bidirectional(LAYERS[kind](UNITS, return_sequences=True))
    model = model_of(layer)
    expected = model(sequences(), training=True)
    monkeypatch.setattr(backend, fused, None)
    optimizer = tfkfac.KFAC(model=model)
    with optimizer.record() as record:
        found = model(sequences(), training=True)
    assert len(record.uses) == 2
    assert_close(found, expected, 1e-6)
    with pytest.raises(TypeError, match="NoneType"):
        model(sequences())


def stand_ins(model: keras.Model) -> list[str]:
    return [layer.name for layer in model.layers if "inner_loop" in vars(layer)]


def test_detached_layers_are_as_they_were() -> None:
    model = compiled()
    before = [set(vars(layer)) for layer in model.layers]
    model.train_on_batch(sequences(), np.zeros((N, 2), "float32"))
    assert len(stand_ins(model)) == 2
    model.optimizer.detach()
    assert stand_ins(model) == []
    assert [set(vars(layer)) for layer in model.layers] == before


def test_skipped_layers_are_left_to_keras() -> None:
    model = compiled(skip=["first"])
    model.train_on_batch(sequences(), np.zeros((N, 2), "float32"))
    assert stand_ins(model) == [model.layers[-1].name]


class OwnLoop(layers.GRU):
    """A layer with steps of its own."""

    def inner_loop(self, *args: Any, **kwargs: Any) -> Any:
        last, outputs, states = super().inner_loop(*args, **kwargs)
        return 2 * last, outputs, states


def test_a_loop_of_the_users_own_is_left_alone() -> None:
    model = model_of(OwnLoop(2))
    expected = model(sequences())
    with tfkfac.KFAC(model=model).record() as record:
        found = model(sequences(), training=True)
    assert not record.uses
    np.testing.assert_array_equal(found, expected)
