"""The counts of operations against the products in traced graphs and the hand count of issue 1."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from reference import add_variable

import tfkfac
from tfkfac.blocks import ConvBlock, DenseBlock, KroneckerBlock
from tfkfac.blocks.use import Use, UseWeights
from tfkfac.blocks.window import Window
from tfkfac.cost import StepCost, WorkSchedule, block_cost, total, uses_of_output
from tfkfac.layer_collection import LayerCollection

BATCH = 8
COST = StepCost(1.0, 2.0, 3.0, 4.0, 5.0, 6.0)


def dense(inputs: int, outputs: int, *, bias: bool = False, method: str = "cholesky") -> DenseBlock:
    layer = keras.layers.Dense(outputs, use_bias=bias)
    layer.build((None, inputs))
    return DenseBlock(layer, layer.kernel, layer.bias, method=method)


def conv(groups: int, channels: int = 6, method: str = "cholesky") -> ConvBlock:
    layer = keras.layers.Conv2D(4, 3, groups=groups, use_bias=False)
    layer.build((None, 7, 7, channels))
    window = Window(size=(3, 3))
    return ConvBlock(layer, layer.kernel, None, window=window, groups=groups, method=method)


def products(function: Callable[[], Any]) -> int:
    """The operations of all matrix products in the graph of a function."""
    return _products_in(tf.function(function).get_concrete_function().graph)


def _products_in(graph: Any) -> int:
    """Those of functions that it calls, too."""
    count = 0
    for op in graph.get_operations():
        if op.type == "PartitionedCall":
            count += _products_in(graph._get_function(op.get_attr("f").name).graph)
        if op.type in ("MatMul", "BatchMatMulV2"):
            transposed = op.get_attr("transpose_a" if op.type == "MatMul" else "adj_x")
            inner = op.inputs[0].shape[-2 if transposed else -1]
            count += 2 * inner * op.outputs[0].shape.num_elements()
    return count


def products_of_statistics(block: KroneckerBlock, inputs: list[int], outputs: list[int]) -> int:
    places = tf.constant(float(math.prod(outputs[:-1])))
    weights = [UseWeights(None, places, places)]

    def statistics() -> Any:
        use = Use(tf.zeros(inputs), tf.zeros(outputs))
        return (
            block.input_statistics([use], weights, tf.constant(inputs[0])),
            block.output_statistics([tf.zeros(outputs)], weights),
        )

    return products(statistics)


@pytest.mark.parametrize(("inputs", "outputs"), [(5, 3), (650, 3), (3, 820), (600, 601)])
def test_factor_products_of_a_dense_layer(inputs: int, outputs: int) -> None:
    counted = products_of_statistics(dense(inputs, outputs), [BATCH, inputs], [BATCH, outputs])
    assert block_cost(dense(inputs, outputs), BATCH, 1).factors == counted


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("channels", [6, 140])
def test_factor_products_of_a_convolution(groups: int, channels: int) -> None:
    block = conv(groups, channels)
    counted = products_of_statistics(block, [BATCH, 7, 7, channels], [BATCH, 5, 5, 4])
    assert block_cost(block, BATCH, 25).factors == counted


@pytest.mark.parametrize("inputs", [[BATCH, 5], [BATCH, 4, 5], [BATCH, 90, 5]])
def test_factor_products_with_what_is_measured_in_eigenbases(inputs: list[int]) -> None:
    """One place an example, some, and so many that the products are rotated."""
    block, uses = dense(5, 3, method="ekfac"), math.prod(inputs[1:-1])
    block.build(add_variable, lambda: tf.constant(0.1))
    outputs = tf.zeros([*inputs[:-1], 3])
    places = tf.constant(float(BATCH * uses))
    weights, batch = [UseWeights(None, places, places, True)], tf.constant(BATCH)

    def statistics() -> Any:
        seen = [Use(tf.zeros(inputs), outputs)]
        of_inputs = block.input_statistics(seen, weights, batch)
        return of_inputs, block.pass_statistics(seen, [outputs], weights, batch)

    assert block_cost(block, BATCH, uses).factors == products(statistics)


@pytest.mark.parametrize("method", ["cholesky", "eigen", "ekfac"])
@pytest.mark.parametrize("groups", [1, 2])
def test_products_of_preconditioning(method: str, groups: int) -> None:
    block = conv(groups, method=method)
    block.build(add_variable, lambda: tf.constant(0.1))
    gradients = [tf.zeros(block.variables[0].shape)]
    counted = products(lambda: block.precondition(gradients))
    assert block_cost(block, BATCH, 25).precondition == counted


@pytest.mark.parametrize("bias", [False, True])
def test_products_of_an_sgd_step(bias: bool) -> None:
    layers = [keras.layers.Dense(5, use_bias=bias), keras.layers.Dense(3, use_bias=bias)]
    model = keras.Sequential([keras.Input((4,)), *layers])

    def step() -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(tf.ones([BATCH, 4]), training=True))
        return tape.gradient(loss, [variable.value for variable in model.trainable_variables])

    blocks = [DenseBlock(layer, layer.kernel, layer.bias) for layer in layers]
    costs = [block_cost(block, BATCH, 1, first=not i) for i, block in enumerate(blocks)]
    assert total(costs).sgd == products(step)
    assert total(costs).extra_backward == 2 * BATCH * 5 * 3


def test_convolution_counts_every_place_and_group() -> None:
    one, two = (block_cost(conv(groups), BATCH, 25) for groups in (1, 2))
    assert one.forward == 2 * BATCH * 25 * (3 * 3 * 6) * 4
    assert two.forward == one.forward / 2
    assert one.backward == 2 * one.forward
    assert one.extra_backward == one.forward


def test_uses_are_counted_from_the_shape_of_the_output() -> None:
    image = keras.Input((7, 9, 3))
    x = keras.layers.Conv2D(4, 3, name="conv")(image)
    x = keras.layers.Dense(5, name="pixels")(x)
    x = keras.layers.Dense(2, name="rows")(keras.layers.Flatten()(x))
    collection = LayerCollection.scan(keras.Model(image, x))
    assert [uses_of_output(collection[name]) for name in ("conv", "pixels", "rows")] == [35, 35, 1]


def test_uses_in_the_other_image_format() -> None:
    layer = keras.layers.Conv2D(4, 3, data_format="channels_first")
    model = keras.Sequential([keras.Input((3, 7, 9)), layer])
    assert uses_of_output(LayerCollection.scan(model)[layer.name]) == 35


def test_uses_that_keras_does_not_know() -> None:
    open_ended = keras.Sequential([keras.Input((None, 3)), keras.layers.Dense(2, name="dense")])
    assert uses_of_output(LayerCollection.scan(open_ended)["dense"]) is None
    assert uses_of_output(dense(3, 2)) is None
    assert LayerCollection.scan(open_ended).cost(batch_size=3) == StepCost()


def test_the_cost_of_a_model_is_that_of_its_blocks() -> None:
    sizes, rows = (4, 3, 2), [keras.layers.Dense(size, name=f"dense_{size}") for size in (4, 3, 2)]
    collection = LayerCollection.scan(keras.Sequential([keras.Input((5,)), *rows]), method="eigen")
    blocks = [collection[f"dense_{size}"] for size in sizes]
    expected = total(block_cost(b, 8, 1, first=not i) for i, b in enumerate(blocks))
    assert collection.cost(batch_size=8) == expected
    assert collection.factor_bytes() == 4 * sum(
        factor.size for block in blocks for factor in map(np.empty, block.factor_shapes.values())
    )


def test_the_mnist_autoencoder_costs_what_the_issue_counts() -> None:
    sizes = [784, 1000, 500, 250, 30, 250, 500, 1000, 784]
    blocks = [dense(*pair, bias=True) for pair in itertools.pairwise(sizes)]
    costs = [block_cost(b, 1000, 1, first=not i) for i, b in enumerate(blocks)]
    giga = {key: value / 1e9 for key, value in vars(total(costs)).items()}
    assert total(costs).sgd / 1e9 == pytest.approx(15, abs=0.5)
    assert giga["extra_backward"] == pytest.approx(4, abs=0.5)
    assert 13 / 2 < giga["factors"] < 9  # one triangle, by panels
    assert giga["precondition"] == pytest.approx(9, abs=0.5)


@pytest.mark.parametrize(("method", "cubes"), [("cholesky", 2), ("eigen", 9), ("ekfac", 9)])
def test_inverses_cost_cubes(method: str, cubes: int) -> None:
    assert block_cost(dense(5, 3, bias=True, method=method), BATCH, 1).inverses == cubes * (
        6**3 + 3**3
    )
    assert block_cost(conv(2, method=method), BATCH, 1).inverses == 2 * cubes * (27**3 + 2**3)
    assert conv(2).refresh_cost == 2 * (27**3 + 2**3)


def test_a_mean_step_shares_out_statistics_and_inverses() -> None:
    assert COST.sgd == 3
    fixed = WorkSchedule(1, 1, tangents=0, look_every=None)
    assert COST.kfac(fixed) == 1 + 2 + 3 + 4 + 5 + 6
    seldom = WorkSchedule(10, 20, tangents=0, look_every=None)
    assert COST.kfac(seldom) == pytest.approx(1 + 2 + (3 + 4) / 10 + 5 + 6 / 20)
    automatic = WorkSchedule(10, 20, tangents=2, look_every=5)
    assert COST.kfac(automatic) == pytest.approx(COST.kfac(seldom) + 2 * 2 + 1 / 5)


def test_the_usual_schedule_is_that_of_the_optimizer() -> None:
    told = {n: p.default for n, p in inspect.signature(tfkfac.KFAC).parameters.items()}
    usual = WorkSchedule()
    assert usual.factor_update_every == told["factor_update_every"]
    assert usual.inverse_update_every == told["inverse_update_every"]
    assert usual.tangents == 2 / told["learning_rate_update_every"]
    assert usual.look_every == tfkfac.LevenbergMarquardt().every


def test_costs_add_up() -> None:
    assert total([]) == StepCost()
    assert total([COST, COST]) == StepCost(2.0, 4.0, 6.0, 8.0, 10.0, 12.0)
