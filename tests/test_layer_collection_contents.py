"""What a layer collection shows: the summary, sizes, errors before training; and new layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import models
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfkfac
from tfkfac import registry as registry_module
from tfkfac.blocks import CurvatureBlock, DenseBlock, DiagonalBlock
from tfkfac.cost import WorkSchedule

scan = tfkfac.LayerCollection.scan


class Odd(layers.Layer):
    """A layer that no builder knows."""

    def build(self, input_shape: Any) -> None:
        self.slopes = self.add_weight(shape=(3, 5), name="slopes")

    def call(self, inputs: Any) -> Any:
        return inputs[..., :3] @ self.slopes


def _mixed() -> keras.Sequential:
    """Of every kind something: 40 + 68 + 8 + 15 + 25 parameters."""
    return keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            layers.Conv2D(4, 3, strides=3, name="conv"),
            layers.Flatten(name="flat"),
            layers.Dense(4, name="dense"),
            layers.BatchNormalization(name="norm"),
            Odd(name="odd"),
            layers.Dense(5, use_bias=False, name="last"),
        ],
        name="mixed",
    )


def _summary(collection: tfkfac.LayerCollection, **arguments: Any) -> str:
    lines: list[str] = []
    collection.summary(print_fn=lines.append, **arguments)
    return "\n".join(lines)


def _row(text: str, layer_name: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"│ {layer_name} ("))
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_summary_has_a_row_for_every_layer() -> None:
    text = _summary(scan(_mixed()))
    assert '"mixed"' in text
    assert _row(text, "conv")[:4] == ["conv (Conv2D)", "Conv2D", "A 10×10, G 4×4", "40"]
    assert _row(text, "dense")[:4] == ["dense (Dense)", "Dense", "A 17×17, G 4×4", "68"]
    assert _row(text, "last")[:4] == ["last (Dense)", "Dense", "A 5×5, G 5×5", "25"]
    norm = _row(text, "norm")
    shown = ["norm (BatchNormalization)", "scale-shift", "F 4×2×2", "8", "80 B", "–"]
    assert norm == shown
    assert _row(text, "odd")[1:] == ["diagonal", "Odd", "15", "76 B", "–"]
    skipped = _row(_summary(scan(_mixed(), skip=["dense"])), "dense")
    assert skipped[1:] == ["gradient", "skipped by the user", "68", "0 B", "–"]


def test_summary_has_totals_and_fallbacks() -> None:
    collection = scan(_mixed())
    text = _summary(collection, batch_size=64, factor_update_every=2, inverse_update_every=20)
    assert collection.coverage() == 133 / 156
    assert collection.coverage(DiagonalBlock) == 15 / 156
    assert collection.coverage(CurvatureBlock) == 1.0
    assert "Trainable params: 156, 85.3% under a Kronecker block" in text
    memory = sum(block.state_size * block.bytes_each for block in collection)
    assert f"Memory of averages and inverses: {memory / 1024:.2f} KB" in text
    assert "batch 64, factors every 2, inverses every 20" in text
    assert "Without Kronecker structure: odd (Odd: diagonal)" in text
    assert "Without Kronecker" not in _summary(scan(models.sequential()))


def test_summary_predicts_what_a_step_costs() -> None:
    """From the counts of operations, which have tests of their own."""
    collection = scan(_mixed())
    fixed = WorkSchedule(1, 1, tangents=0, look_every=None)
    for schedule in (fixed, WorkSchedule()):
        text = _summary(
            collection,
            batch_size=64,
            factor_update_every=schedule.factor_update_every,
            inverse_update_every=schedule.inverse_update_every,
            automatic=schedule.tangents > 0,
        )
        cost = collection.cost(batch_size=64)
        assert f"Predicted step: {cost.kfac(schedule) / cost.sgd:.2f}× of an SGD step" in text
        assert _row(text, "conv")[-1].endswith("×")


def test_summary_tells_the_blocks_of_a_layer_apart() -> None:
    """By the variable; by cell and variable where there are several cells."""
    cells = [layers.GRUCell(3, reset_after=False, name="a"), layers.LSTMCell(2, name="b")]
    model = keras.Sequential(
        [
            keras.Input((4, 5)),
            layers.LSTM(3, return_sequences=True, name="one"),
            layers.RNN(cells, name="stack"),
        ]
    )
    last = _summary(scan(model, max_factor_size=4)).splitlines()[-1]
    assert last.endswith(
        ": one kernel (A, G), one recurrent_kernel (G), stack a/kernel (G), "
        "stack a/recurrent_kernel_01 (G), stack b/kernel (G), stack b/recurrent_kernel (G)"
    )


def test_cell_called_by_itself_is_told_where_it_has_blocks() -> None:
    class Loop(layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.cell = layers.SimpleRNNCell(3, name="cell")

        def build(self, input_shape: Any) -> None:
            self.cell.build((None, input_shape[-1]))

        def call(self, steps: Any) -> Any:
            states = [keras.ops.zeros((keras.ops.shape(steps)[0], 3))]
            for step in range(2):
                outputs, states = self.cell(steps[:, step], states)
            return outputs

    (block,) = scan(keras.Sequential([keras.Input((2, 4)), Loop()]))
    assert isinstance(block, DiagonalBlock)
    assert block.reason == "SimpleRNNCell called by itself; in keras.layers.RNN it has blocks"


def test_summary_is_the_same_after_training(capsys: pytest.CaptureFixture[str]) -> None:
    model = models.sequential()
    before = _summary(scan(model))
    optimizer = models.kfac(model=model)
    assert _summary(optimizer.layer_collection) == before
    optimizer.build(model.trainable_variables)
    assert _summary(optimizer.layer_collection) == before
    optimizer.layer_collection.summary()
    assert "hidden (Dense)" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["cholesky", "eigen", "ekfac"])
@pytest.mark.parametrize("groups", [1, 2])
def test_state_size_is_what_is_allocated(method: str, groups: int) -> None:
    model = keras.Sequential(
        [
            keras.Input((4, 4, 2)),
            layers.Conv2D(4, 2, groups=groups),
            layers.Flatten(),
            layers.Dense(3, use_bias=False),
        ]
    )
    for block in scan(model, method=method):
        allocated = []

        def add_variable(
            shape: Any, dtype: Any, name: str, initializer: Any = "zeros", sizes: list = allocated
        ) -> Any:
            variable = keras.Variable(initializer, shape=shape, dtype=dtype, trainable=False)
            sizes.append(variable.numpy().nbytes)
            return variable

        block.build(add_variable, lambda: tf.constant(0.1))
        assert block.state_size * block.bytes_each == sum(allocated)


def test_factors_of_a_double_precision_model_are_double(float64: None) -> None:
    block = scan(models.sequential())["hidden"]
    assert block.bytes_each == 8


# --- before training -----------------------------------------------------------------------

LOOKS: dict[str, Callable[[Any], Any]] = {
    "factors": lambda block: block.factors,
    "uses": lambda block: block.uses,
    "to_dense": lambda block: block.to_dense(),
    "precondition": lambda block: block.precondition([tf.ones(v.shape) for v in block.variables]),
    "precondition with a damping": lambda block: block.precondition(
        [tf.ones(v.shape) for v in block.variables], damping=0.1
    ),
}


@pytest.mark.parametrize("method", ["cholesky", "eigen", "ekfac"])
@pytest.mark.parametrize("look", LOOKS)
def test_block_that_was_only_scanned_says_so(look: str, method: str) -> None:
    block = scan(models.sequential(), method=method)["hidden"]
    with pytest.raises(ValueError, match=r"'hidden' has no statistics.*only scanned.*Train"):
        LOOKS[look](block)


def test_collection_of_the_optimizer_is_one_that_can_be_inspected() -> None:
    x, y = models.vectors()
    model = models.sequential()
    model.compile(models.kfac(), models.crossentropy(), run_eagerly=True)
    model.fit(x, y, verbose=0)
    block = model.optimizer.layer_collection["hidden"]
    assert {name: tuple(factor.shape) for name, factor in block.factors.items()} == (
        block.factor_shapes
    )
    assert block.to_dense().shape == (block.parameters, block.parameters)
    for look in LOOKS.values():
        look(block)
    assert model.optimizer.layer_collection is model.optimizer.layer_collection


# --- new layers ----------------------------------------------------------------------------


class Linear(layers.Layer):
    """A user's own dense layer, without an activation."""

    def build(self, input_shape: Any) -> None:
        self.matrix = self.add_weight(shape=(input_shape[-1], 3), name="matrix")

    def call(self, inputs: Any) -> Any:
        return inputs @ self.matrix


class Activated(Linear):
    """The same with an activation, which is applied last."""

    activation = None

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.activation = keras.activations.tanh

    def call(self, inputs: Any) -> Any:
        return self.activation(super().call(inputs))


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[type, Any]:
    """A registry of which the changes are forgotten."""
    builders = dict(registry_module._BUILDERS)
    monkeypatch.setattr(registry_module, "_BUILDERS", builders)
    return builders


def _register(layer_class: type) -> None:
    @tfkfac.register(layer_class)
    def build(layer: Any, **options: Any) -> DenseBlock:
        return DenseBlock(layer, layer.matrix, None, **options)


@pytest.mark.parametrize("layer_class", [Activated, Linear])
def test_registered_layer_gets_its_block(registry: dict[type, Any], layer_class: type) -> None:
    x, y = models.vectors()
    model = keras.Sequential([keras.Input((models.FEATURES,)), layer_class(name="mine")])
    assert _fallbacks(model) == [layer_class.__name__]
    _register(layer_class)
    assert _fallbacks(model) == []
    expected = _empirical_factor(model, x, y)
    model.compile(models.kfac(fisher="empirical"), models.crossentropy(), run_eagerly=True)
    model.fit(x, y, batch_size=len(x), shuffle=False, verbose=0)
    factors = model.optimizer.layer_collection["mine"].factors
    np.testing.assert_allclose(factors["A"], x.T @ x / len(x), rtol=1e-5)
    np.testing.assert_allclose(factors["G"], expected, rtol=1e-4, atol=1e-6)


def _fallbacks(model: keras.Model) -> list[str | None]:
    return [block.reason for block in scan(model).fallbacks]


def _empirical_factor(model: keras.Model, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Σ g gᵀ / N with g the gradient of an example's loss at ``inputs @ matrix``."""
    layer = model.get_layer("mine")
    activation = getattr(layer, "activation", None) or keras.activations.linear
    preactivations = tf.constant(x) @ layer.matrix.value
    with tf.GradientTape() as tape:
        tape.watch(preactivations)
        loss = models.crossentropy(reduction="sum")(y, activation(preactivations))
    g = tape.gradient(loss, preactivations).numpy()
    return g.T @ g / len(g)


def test_builder_of_a_parent_covers_a_child_with_the_same_call(registry: dict[type, Any]) -> None:
    class Renamed(Linear):
        pass

    class Different(Linear):
        def call(self, inputs: Any) -> Any:
            return 2 * super().call(inputs)

    _register(Linear)
    stack = [keras.Input((models.FEATURES,)), Renamed(name="same"), Different(name="other")]
    collection = scan(keras.Sequential(stack))
    assert type(collection["same"]) is DenseBlock
    assert collection["other"].reason == "Different overrides Linear.call"


def test_builder_may_refuse(registry: dict[type, Any]) -> None:
    @tfkfac.register(Linear)
    def refuse(layer: Any, **options: Any) -> DenseBlock:
        raise registry_module.NotCoveredError("too wide")

    stack = [keras.Input((models.FEATURES,)), Linear(name="mine")]
    assert _fallbacks(keras.Sequential(stack)) == ["too wide"]
