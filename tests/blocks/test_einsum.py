"""Einsum layers as rows and matrices, exact in linear networks, and attention made of them."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers
from reference import dense_block, ggn_of_variables, input_factor, relative_error

import tfkfac
from tfkfac.blocks import DenseBlock, DiagonalBlock, EinsumDenseBlock, KroneckerBlock, Use
from tfkfac.blocks.block import UseWeights
from tfkfac.blocks.einsum import Equation

TOLERANCE = 1e-10
N = 2

Case = tuple[str, tuple[int, ...], Any, str | None]

CASES: dict[str, Case] = {
    "dense": ("ab,bc->ac", (3,), 4, "c"),
    "dense, ellipsis": ("...x,xy->...y", (5, 3), (4,), "y"),
    "no bias": ("abc,cd->abd", (5, 3), (None, 4), None),
    "query": ("abc,cde->abde", (5, 3), (None, 2, 4), "de"),
    "query of two axes": ("abcd,def->abcef", (2, 3, 4), (None, None, 2, 3), "ef"),
    "attention output": ("abcd,cde->abe", (5, 2, 3), (None, 4), "e"),
    "kernel turned": ("abc,dec->abde", (5, 3), (None, 2, 4), "de"),
    "outputs turned": ("abc,cde->adbe", (5, 3), (2, None, 4), None),
    "outputs turned with bias": ("ab,bcd->adc", (3,), (4, 2), "dc"),
    "groups": ("abc,bcd->abd", (5, 3), (5, 4), "bd"),
    "groups turned": ("abc,cbd->adb", (5, 3), (4, 5), "db"),
    "two groups": ("abcd,bcde->abce", (2, 3, 4), (2, 3, 2), "bce"),
    "ellipsis behind": ("ab...,bc->ac...", (3, 5), (4,), "c"),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))


def built(case: Case) -> tuple[Any, tf.Tensor]:
    equation, shape, outputs, bias = case
    rng = np.random.default_rng(0)
    layer = layers.EinsumDense(equation, outputs, bias_axes=bias, dtype="float64")
    x = tf.constant(rng.normal(size=(N, *shape)))
    layer(x)
    for weight in layer.weights:
        weight.assign(rng.normal(size=weight.shape))
    return layer, x


def block_of(layer: Any) -> EinsumDenseBlock:
    (block,) = tfkfac.registry.build_blocks(layer, [layer])
    assert isinstance(block, EinsumDenseBlock)
    return block


def rows_of(block: EinsumDenseBlock, x: tf.Tensor) -> tf.Tensor:
    equation = block.equation
    rows = block._to_rows(x, equation.inputs, equation.contracted, block._in)
    return tf.concat([rows, tf.ones_like(rows[..., :1])], -1) if block.has_bias else rows


def check(case: Case) -> None:
    layer, x = built(case)
    block = block_of(layer)
    outputs = layer(x)
    product = tf.matmul(rows_of(block, x), block.to_matrix(block.variables))
    if block.has_bias or layer.bias is None:
        assert relative_error(product, block.output_rows(outputs)) < TOLERANCE
    for variable, back in zip(
        block.variables, block.from_matrix(block.to_matrix(block.variables)), strict=True
    ):
        np.testing.assert_array_equal(back, variable)


@every_case
def test_rows_and_matrices_are_those_of_keras(case: Case) -> None:
    check(case)
    assert block_of(built(case)[0]).has_bias == (case[3] is not None)


@st.composite
def equations(draw: st.DrawFn) -> Case:
    """Labels in random roles and orders."""
    letters = iter("bcdefghij")
    places, groups, contracted, made = (
        [next(letters) for _ in range(draw(st.integers(low, 2)))] for low in (0, 0, 1, 1)
    )
    sizes = {label: draw(st.integers(1, 3)) for label in places + groups + contracted + made}
    inputs = draw(st.permutations(places + groups + contracted))
    kernel = draw(st.permutations(groups + contracted + made))
    outputs = draw(st.permutations(places + groups + made))
    bias = None
    if outputs[-len(groups + made) :] and set(outputs[-len(groups + made) :]) == {*groups, *made}:
        bias = draw(st.sampled_from([None, "".join(outputs[-len(groups + made) :])]))
    return (
        f"a{''.join(inputs)},{''.join(kernel)}->a{''.join(outputs)}",
        tuple(sizes[label] for label in inputs),
        tuple(sizes[label] for label in outputs),
        bias,
    )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(equations())
def test_any_equation_is_that_of_keras(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("weighted", [False, True])
@every_case
def test_factors_are_the_moments_of_the_rows(case: Case, weighted: bool) -> None:
    layer, x = built(case)
    block = block_of(layer)
    outputs = layer(x)
    places = [n for axis, n in enumerate(outputs.shape) if axis not in block.channel_axes]
    rng = np.random.default_rng(2)
    omega = rng.uniform(0.1, 2, size=places) if weighted else None
    count = tf.constant(float(np.prod(places)), tf.float64)
    total = count if omega is None else tf.constant(omega.sum())
    weights = UseWeights(None if omega is None else tf.constant(omega), total, count)
    found = block.input_statistics([Use(x, outputs)], [weights], tf.constant(N))
    rows = rows_of(block, x).numpy()
    stacked = rows.reshape(-1, *rows.shape[-2:])
    expected = np.stack([np.tril(input_factor(each, omega)) for each in stacked])
    assert relative_error(np.tril(found["A"]).reshape(expected.shape), expected) < TOLERANCE
    assert found["uses"] == np.prod(places) / N


def test_equation_of_a_dense_layer_is_a_dense_layer() -> None:
    layer, x = built(CASES["dense, ellipsis"])
    dense = layers.Dense(4, dtype="float64")
    dense(x)
    blocks = block_of(layer), DenseBlock(dense, dense.kernel, dense.bias)
    omega = tf.constant(np.random.default_rng(2).uniform(size=(N, 1)))
    count, total = tf.constant(10.0, tf.float64), tf.reduce_sum(omega) * 5
    weights = [UseWeights(omega, total, count)]
    found, expected = (
        block.input_statistics([Use(x, layer(x))], weights, tf.constant(N)) for block in blocks
    )
    assert relative_error(np.tril(found["A"]), np.tril(expected["A"])) < TOLERANCE


@pytest.mark.parametrize(
    ("equation", "shape", "outputs"),
    [("abc,bd->ad", (2, 3), (4,)), ("abc,cd->ad", (2, 3), (4,))],
    ids=["input summed", "places summed"],
)
def test_equation_without_structure_falls_back(
    equation: str, shape: tuple[int, ...], outputs: tuple[int, ...]
) -> None:
    assert not Equation.parse(equation, 1 + len(shape)).has_structure
    stack = [keras.Input(shape), layers.EinsumDense(equation, outputs, name="odd")]
    (block,) = tfkfac.LayerCollection.scan(keras.Sequential(stack)).blocks
    assert isinstance(block, DiagonalBlock)
    assert block.reason == f"its equation {equation} is no matrix product"


def test_bias_of_other_axes_falls_back_alone() -> None:
    layer = layers.EinsumDense("abc,cde->abde", (5, 2, 4), bias_axes="e", name="odd")
    model = keras.Sequential([keras.Input((5, 3)), layer])
    blocks = tfkfac.LayerCollection.scan(model).blocks
    assert [type(block) for block in blocks] == [EinsumDenseBlock, DiagonalBlock]
    assert blocks[1].variables == [layer.bias]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("weighted", [False, True])
def test_exact_in_a_linear_network(weighted: bool) -> None:
    """Heads are split and joined again; squared loss; every example is used at every place."""
    inputs = keras.Input((3, 4))
    heads = layers.EinsumDense("abc,cde->abde", (None, 2, 3), bias_axes="de", name="query")(inputs)
    joined = layers.EinsumDense("abcd,cde->abe", (None, 2), bias_axes="e", name="output")(heads)
    model = keras.Model(inputs, joined)
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(size=variable.shape))
    x, y = rng.normal(size=(N, 3, 4)), rng.normal(size=(N, 3, 2))
    weights = np.array([[0.5], [3.0]]) if weighted else None
    loss = keras.losses.MeanSquaredError()
    optimizer = tfkfac.KFAC(fisher="exact", factor_decay=0.0, seed=0)
    expected = {
        name: ggn_of_variables(
            model, model.get_layer(name).trainable_variables, x, y, loss, weights
        )
        for name in ("query", "output")
    }
    model.compile(optimizer, loss, run_eagerly=True)
    model.train_on_batch(x, y, sample_weight=weights)
    for name, exact in expected.items():
        # Kernel [in.., out..] row by row and then the bias: the order of the block's matrix.
        assert relative_error(optimizer.layer_collection[name].to_dense(), exact) < 1e-9


def _attention(kind: str) -> keras.Model:
    keras.utils.set_random_seed(0)
    tokens = keras.Input((6,), dtype="int32")
    hidden = layers.Embedding(20, 8, mask_zero=True)(tokens)
    if kind == "multi-head":
        attended = layers.MultiHeadAttention(2, 4)(hidden, hidden)
    elif kind == "causal":
        attended = layers.MultiHeadAttention(2, 4, value_dim=3)(
            hidden, hidden, use_causal_mask=True
        )
    else:
        attended = layers.GroupQueryAttention(4, 4, 2)(hidden, hidden)
    hidden = layers.LayerNormalization()(hidden + attended)
    return keras.Model(tokens, layers.Dense(20)(hidden))


@pytest.mark.parametrize("kind", ["multi-head", "causal", "grouped"])
def test_attention_trains_alike_in_every_mode(kind: str) -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 20, size=(16, 7))
    tokens[:, 5:] *= rng.integers(0, 2, size=(16, 2))
    histories, parameters = [], []
    for options in ({}, {"run_eagerly": True}, {"jit_compile": True}):
        model = _attention(kind)
        optimizer = tfkfac.KFAC(0.05, damping=0.1, seed=0)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer, loss, **options)
        history = model.fit(tokens[:, :-1], tokens[:, 1:], 16, epochs=3, verbose=0, shuffle=False)
        histories.append(history.history["loss"])
        parameters.append(np.concatenate([w.ravel() for w in model.get_weights()]))
        attention = next(each for each in model.layers if "ttention" in each.name)
        covered = {
            id(variable)
            for block in optimizer.layer_collection
            if isinstance(block, KroneckerBlock)
            for variable in block.variables
        }
        assert {id(v) for v in attention.trainable_variables} <= covered
    assert histories[0][-1] < histories[0][0]
    for found in parameters[1:]:
        np.testing.assert_allclose(found, parameters[0], atol=1e-5)


def test_masked_places_do_not_count_in_attention() -> None:
    """Where the mask reaches the loss, padding has no weight in the query's projection either."""
    tokens = keras.Input((6,), dtype="int32")
    hidden = layers.Embedding(20, 8, mask_zero=True)(tokens)
    attended = layers.MultiHeadAttention(2, 4)(hidden, hidden)
    model = keras.Model(tokens, layers.Dense(20)(attended))
    optimizer = tfkfac.KFAC(seed=0, factor_decay=0.0)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    batch = np.array([[3, 4, 5, 0, 0, 0], [1, 0, 0, 0, 0, 0]])
    rows = model.layers[1](batch[batch > 0]).numpy()
    model.train_on_batch(batch, batch)
    expected = input_factor(np.concatenate([rows, np.ones((4, 1))], axis=1))
    assert relative_error(optimizer.layer_collection["query"].factors["A"], expected) < 1e-5


def test_dense_block_of_the_factors() -> None:
    layer, x = built(CASES["groups"])
    block = block_of(layer)
    block.build(keras.optimizers.SGD().add_variable, lambda: tf.constant(1.0, tf.float64))
    count = tf.constant(float(N), tf.float64)
    weights = [UseWeights(None, count, count)]
    use = [Use(x, layer(x))]
    statistics = block.input_statistics(use, weights, tf.constant(N))
    statistics |= block.output_statistics([layer(x)], weights)
    block.update(statistics, tf.constant(0.0), tf.constant(1.0))
    A, G = (factor.numpy() for factor in block.factors.values())
    assert relative_error(block.to_dense(), dense_block(A, G, 1.0)) < TOLERANCE
