"""Models that are built in unusual ways, as newcomers built them: they train, or are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import tfkfac

RNG = np.random.default_rng(0)
TOKENS = RNG.integers(1, 200, size=(96, 6))
ROWS = RNG.normal(size=(96, 12)).astype("float32")
CLASSES = TOKENS[:, 0] % 3
SPARSE = (RNG.random((96, 500)) < 0.02).astype("float32")
CROSSENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class Table(layers.Layer):
    """Looks rows up by itself: its gradient holds some rows only."""

    def build(self, input_shape: Any) -> None:
        self.table = self.add_weight(shape=(200, 8), name="table")

    def call(self, tokens: Any) -> Any:
        return ops.take(self.table, tokens, axis=0)


class Scale(layers.Layer):
    """A layer with a variable of which no structure is known."""

    def build(self, input_shape: Any) -> None:
        self.factor = self.add_weight(shape=(input_shape[-1],), initializer="ones", name="factor")

    def call(self, x: Any) -> Any:
        return x * self.factor


class Positions(keras.Model):
    """Normalises something that no example has a part in."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = layers.Embedding(200, 8)
        self.positions = layers.Embedding(6, 8)
        self.norm = layers.LayerNormalization(name="norm")
        self.head = layers.Dense(3)

    def call(self, tokens: Any) -> Any:
        hidden = self.tokens(tokens) + self.norm(self.positions(ops.arange(6)))
        return self.head(ops.mean(ops.tanh(hidden), axis=1))


class Unused(keras.Model):
    """Has a layer that is never called, and calls another by keywords in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.body = layers.Dense(8)
        self.unused = layers.LayerNormalization()
        self.norm = layers.BatchNormalization()
        self.head = layers.Dense(3)

    def call(self, x: Any, training: Any = None) -> Any:
        return self.head(self.norm(training=training, inputs=self.body(x)))


def table() -> tuple[keras.Model, Any]:
    body = [Table(), layers.Flatten(), layers.Dense(3)]
    return keras.Sequential([keras.Input((6,), dtype="int32"), *body]), TOKENS


def sparse_rows() -> tuple[keras.Model, Any]:
    inputs = keras.Input((500,), sparse=True)
    return keras.Model(inputs, layers.Dense(3)(inputs)), tf.sparse.from_dense(SPARSE)


def positions() -> tuple[keras.Model, Any]:
    model = Positions()
    model(TOKENS)
    return model, TOKENS


def unused() -> tuple[keras.Model, Any]:
    model = Unused()
    model(ROWS)
    return model, ROWS


def activation_with_weights() -> tuple[keras.Model, Any]:
    body = [layers.Dense(8, activation=layers.PReLU()), layers.Dense(3)]
    return keras.Sequential([keras.Input((12,)), *body]), ROWS


def double_precision_at_the_end() -> tuple[keras.Model, Any]:
    body = [layers.Dense(8, activation="tanh"), layers.Dense(3, dtype="float64")]
    return keras.Sequential([keras.Input((12,)), *body]), ROWS


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        table,
        sparse_rows,
        positions,
        unused,
        activation_with_weights,
        double_precision_at_the_end,
    ],
)
def test_it_trains(make: Callable[[], tuple[keras.Model, Any]], eager: bool) -> None:
    keras.utils.set_random_seed(0)
    model, x = make()
    model.compile(tfkfac.KFAC(0.05, seed=0), CROSSENTROPY, run_eagerly=eager)
    data = tf.data.Dataset.from_tensor_slices((x, CLASSES)).batch(48)
    losses = model.fit(data, epochs=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


def test_rows_of_no_example_have_the_curvature_of_all() -> None:
    """Six positions and six examples: of the same size, and yet no position is an example."""
    keras.utils.set_random_seed(0)
    model, x = Positions(), TOKENS[:6]
    model(x)
    optimizer = tfkfac.KFAC(1e-12, fisher="exact", factor_decay=0.999, seed=0)
    model.compile(optimizer, "mse")
    data = tf.data.Dataset.from_tensor_slices((x, np.zeros((6, 3)))).batch(6).repeat(300)
    model.fit(data, verbose=0)
    with tf.GradientTape(persistent=True) as tape:
        outputs = tf.unstack(tf.reshape(model(x), [-1]))
    squares = [
        tf.reduce_sum(tf.square(tape.gradient(output, variable.value)))
        for output in outputs
        for variable in model.norm.trainable_variables
    ]
    expected = 2 / 3 * float(tf.add_n(squares)) / 6
    found = float(tf.linalg.trace(optimizer.layer_collection["norm"].to_dense()))
    assert found == pytest.approx(expected, rel=0.2)  # 300 draws


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_a_diagonal_is_found_under_every_dtype_policy(policy: str) -> None:
    keras.config.set_dtype_policy(policy)
    try:
        body = [layers.Dense(8), Scale(name="scale"), layers.Dense(3, dtype="float32")]
        model = keras.Sequential([keras.Input((12,)), *body])
        optimizer = tfkfac.KFAC(0.05, seed=0)
        model.compile(optimizer, CROSSENTROPY)
        model.fit(ROWS, CLASSES, verbose=0)
    finally:
        keras.config.set_dtype_policy("float32")
    assert np.all(optimizer.layer_collection["scale"].factors["F0"].numpy() > 0)


@pytest.mark.parametrize("dtype", ["int32", "float32"])
def test_padding_does_not_count_whatever_the_dtype_of_tokens(dtype: str) -> None:
    tokens = keras.Input((6,), dtype=dtype)
    hidden = layers.Embedding(200, 4, mask_zero=True, name="tokens")(tokens)
    model = keras.Model(tokens, layers.Dense(3)(layers.GlobalAveragePooling1D()(hidden)))
    optimizer = tfkfac.KFAC(0.05, seed=0)
    model.compile(optimizer, CROSSENTROPY)
    model.train_on_batch(np.where(np.arange(6) < 3, TOKENS, 0), CLASSES)
    block = optimizer.layer_collection["tokens"]
    assert float(block.factors["A"][0]) == 0.0
    assert float(block.uses) == pytest.approx(3.0)


def test_a_time_distributed_layer_has_the_mask_of_its_steps() -> None:
    """The same factors as the layer has without the wrapper."""
    steps = RNG.normal(size=(32, 6, 5)).astype("float32")
    steps[:, 4:] = 0
    traces = []
    for wrap in (layers.TimeDistributed, lambda layer: layer):
        keras.utils.set_random_seed(0)
        body = [layers.Masking(), wrap(layers.Dense(8, name="body"))]
        model = keras.Sequential(
            [keras.Input((6, 5)), *body, layers.GlobalAveragePooling1D(), layers.Dense(1)]
        )
        optimizer = tfkfac.KFAC(1e-9, seed=0)
        model.compile(optimizer, "mse")
        model.train_on_batch(steps, steps.mean(axis=(1, 2)))
        block = optimizer.layer_collection["body"]
        assert float(block.uses) == pytest.approx(4.0)
        traces.append(float(tf.linalg.trace(block.to_dense())))
    assert traces[0] == pytest.approx(traces[1], rel=1e-5)


class Standardised(layers.Conv1D):
    """Overrides the hook that Keras has for it, and not `call`."""

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        return super().convolution_op(inputs, kernel - ops.mean(kernel))


class OwnKernel(layers.Dense):
    """Has a kernel that is none of its variables."""

    @property
    def kernel(self) -> Any:
        return ops.tanh(self._kernel)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Standardised(3, 2), "Standardised overrides Conv1D.convolution_op"),
        (OwnKernel(3), "OwnKernel overrides Dense.kernel"),
    ],
)
def test_a_subclass_that_computes_something_else_falls_back(layer: Any, reason: str) -> None:
    model = keras.Sequential([keras.Input((6, 4)), layer])
    (block,) = tfkfac.LayerCollection.scan(model).fallbacks
    assert block.reason == reason


def test_ragged_inputs_are_refused_by_name() -> None:
    tokens = keras.Input((None,), ragged=True, dtype="int64")
    hidden = layers.Embedding(200, 8, name="tokens")(tokens)
    model = keras.Model(tokens, layers.Dense(3)(layers.GlobalAveragePooling1D()(hidden)))
    model.compile(tfkfac.KFAC(), CROSSENTROPY, run_eagerly=True)
    ragged = tf.RaggedTensor.from_row_lengths([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match=r"Layer 'tokens' is called with a ragged tensor"):
        model.train_on_batch(ragged, np.zeros(2))


def test_a_model_under_a_remat_scope_is_refused_by_name() -> None:
    with keras.RematScope(mode="full"):
        inputs = keras.Input((12,))
        model = keras.Model(inputs, layers.Dense(3)(inputs), name="hidden")
    with pytest.raises(ValueError, match=r"Model 'hidden' was made under keras\.RematScope"):
        model.compile(tfkfac.KFAC(), CROSSENTROPY)


class LayeredCell(layers.Layer):
    """A recurrent cell that is made of layers."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.state_size = units
        self.of_inputs, self.of_state = layers.Dense(units), layers.Dense(units)

    def build(self, input_shape: Any) -> None:
        self.of_inputs.build(input_shape)
        self.of_state.build((None, self.state_size))

    def call(self, inputs: Any, states: Any) -> Any:
        state = ops.tanh(self.of_inputs(inputs) + self.of_state(states[0]))
        return state, [state]


@pytest.mark.parametrize("run_eagerly", [False, True])
def test_layers_in_a_cell_fall_back_with_a_reason(run_eagerly: bool) -> None:
    """The loop over the steps hides them."""
    model = keras.Sequential(
        [keras.Input((4, 3)), layers.RNN(LayeredCell(5), name="loop"), layers.Dense(3)]
    )
    with pytest.warns(UserWarning, match="runs in the loop of loop: diagonal"):
        model.compile(tfkfac.KFAC(0.1, seed=0), CROSSENTROPY, run_eagerly=run_eagerly)
        losses = model.fit(ROWS.reshape(-1, 4, 3), CLASSES, epochs=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    kinds = [block.label for block in model.optimizer.layer_collection]
    assert sorted(kinds) == ["Dense", "diagonal", "diagonal"]


@pytest.mark.parametrize(
    ("recurrent", "method"),
    [
        pytest.param(recurrent, method, marks=() if at == other else pytest.mark.slow)
        for at, recurrent in enumerate(["independent", "lggm_symmetric", "lggm_limit"])
        for other, method in enumerate(["cholesky", "eigen", "ekfac"])
    ],
)
def test_a_first_batch_of_masked_steps_alone_does_no_harm(recurrent: str, method: str) -> None:
    """There were no uses: neither curvature nor its inverse exists yet."""
    stack = [layers.Embedding(200, 5, mask_zero=True), layers.GRU(4), layers.Dense(3)]
    model = keras.Sequential([keras.Input((None,), dtype="int32"), *stack])
    model.compile(tfkfac.KFAC(0.05, recurrent=recurrent, method=method, seed=0), CROSSENTROPY)
    model.train_on_batch(np.zeros_like(TOKENS), CLASSES)
    losses = [float(model.train_on_batch(TOKENS, CLASSES)) for _ in range(4)]
    assert losses[-1] < losses[0]
    assert all(np.isfinite(variable).all() for variable in model.optimizer.variables)


def test_ragged_sequences_are_refused_by_name() -> None:
    ragged = tf.RaggedTensor.from_row_lengths(ROWS[:12], [5, 3, 4])
    model = keras.Sequential([layers.LSTM(4, name="reader"), layers.Dense(3)])
    model.build((None, None, 12))
    optimizer = tfkfac.KFAC(model=model)
    with (
        pytest.raises(ValueError, match="Layer 'reader' is called with a ragged tensor"),
        tf.GradientTape(),
        optimizer.record(),
    ):
        model.layers[0](ragged)


def test_what_the_user_skips_is_no_news(recwarn: pytest.WarningsRecorder) -> None:
    model = keras.Sequential([keras.Input((12,)), layers.Dense(4, name="left"), layers.Dense(3)])
    model.compile(tfkfac.KFAC(skip=("left",)), CROSSENTROPY)
    model.train_on_batch(ROWS, CLASSES)
    assert not [warning for warning in recwarn if "tfkfac" in str(warning.message)]
