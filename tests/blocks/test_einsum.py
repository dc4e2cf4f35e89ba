"""Einsum layers as rows and matrices, exact in linear networks."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers
from reference import fill, ggn_of_variables, positive, relative_error

import tfkfac
from tfkfac.blocks import DenseBlock, DiagonalBlock, EinsumDenseBlock, Use
from tfkfac.blocks.einsum import Equation
from tfkfac.blocks.use import UseWeights
from tfkfac.observation import LossCall, observe
from tfkfac.use_weights import use_weights

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
    "attention output of two axes": ("abcde,def->abcf", (2, 2, 2, 3), (None, None, 4), "f"),
    "group of keys": ("bkm,mvh->bkvh", (5, 3), (None, 2, 4), "vh"),
    "groups beside places": ("abcd,bce->abde", (2, 3, 4), (2, None, 2), None),
    "one head": ("abc,cde->abde", (5, 3), (None, 1, 4), "e"),
    "bias of one step": ("abc,cd->abd", (1, 3), (1, 4), "bd"),
    "scale": ("ab,b->ab", (3,), (3,), "b"),
    "outer product": ("ab,bc->abc", (3,), (3, 4), "bc"),
    "one column": ("ab,b->a", (3,), (), None),
    "ellipsis behind": ("ab...,bc->ac...", (3, 5), (4,), "c"),
    "ellipsis and groups": ("...xy,xyz->...xz", (5, 3, 2), (3, 4), "xz"),
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
    if layer.bias is not None and not block.has_bias:
        outputs = tf.einsum(layer.equation, x, layer.kernel.value)
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
        [next(letters) for _ in range(draw(st.integers(0, 2)))] for _ in range(4)
    )
    groups = groups or ([] if contracted or made else [next(letters)])
    sizes = {label: draw(st.integers(1, 3)) for label in places + groups + contracted + made}
    inputs = draw(st.permutations(places + groups + contracted))
    kernel = draw(st.permutations(groups + contracted + made))
    outputs = draw(st.permutations(places + groups + made))
    bias = draw(st.permutations(groups + made))
    bias = draw(st.sampled_from([None, "".join(bias) or None]))
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


def transcribed(
    equation: str, x: np.ndarray, g: np.ndarray, omega: np.ndarray, ones: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Σ ω a aᵀ / Σ ω and Σ g gᵀ / places, ``[groups, d, d]``, from the letters alone."""
    elided = "pqr"[: x.ndim - len(equation.split(",")[0].replace("...", ""))]
    a_letters, k_letters, s_letters = equation.replace("...", elided).replace("->", ",").split(",")
    places = "".join(k for k in s_letters if k not in k_letters)
    groups = "".join(k for k in k_letters if k in a_letters and k in s_letters)

    def moment(values: np.ndarray, letters: str, weights: np.ndarray, ones: bool) -> np.ndarray:
        own = "".join(k for k in k_letters if k in letters and k not in groups)
        other = letters.translate(str.maketrans(own, own.upper()))
        subscripts = f"{letters},{other},{places}->{groups}{own}{own.upper()}"
        size = np.prod([values.shape[letters.index(k)] for k in own], dtype=int)
        second = np.einsum(subscripts, values, values, weights).reshape(-1, size, size)
        if not ones:
            return second
        first = np.einsum(f"{letters},{places}->{groups}{own}", values, weights)
        first = first.reshape(-1, size, 1)
        corner = np.full((len(first), 1, 1), weights.sum())
        return np.block([[second, first], [np.swapaxes(first, 1, 2), corner]])

    A = moment(x, a_letters, omega, ones) / omega.sum()
    return A, moment(g, s_letters, np.ones_like(omega), False) / omega.size


@pytest.mark.parametrize("weighted", [False, True])
@every_case
def test_factors_equal_the_transcription(case: Case, weighted: bool) -> None:
    layer, x = built(case)
    block = block_of(layer)
    outputs = layer(x)
    places = [n for axis, n in enumerate(outputs.shape) if axis not in block.channel_axes]
    rng = np.random.default_rng(2)
    omega = rng.uniform(0.1, 2, size=places) if weighted else np.ones(places)
    count = tf.constant(float(omega.size), tf.float64)
    weights = [
        UseWeights(tf.constant(omega) if weighted else None, tf.constant(omega.sum()), count)
    ]
    g = rng.normal(size=outputs.shape)
    found = block.input_statistics([Use(x, outputs)], weights, tf.constant(N))
    found |= block.output_statistics([tf.constant(g)], weights)
    expected = transcribed(case[0], x.numpy(), g, omega, block.has_bias)
    for name, factor in zip("AG", expected, strict=True):
        assert relative_error(np.tril(found[name]).reshape(factor.shape), np.tril(factor)) < 1e-12
    assert found["uses"] == omega.size / N


def test_equation_of_a_dense_layer_is_a_dense_layer() -> None:
    layer, x = built(CASES["dense, ellipsis"])
    dense = layers.Dense(4, dtype="float64")
    dense(x)
    rng = np.random.default_rng(2)
    A, G, gradients = (
        positive(rng, 4),
        positive(rng, 4),
        [rng.normal(size=(3, 4)), rng.normal(size=4)],
    )
    omega = tf.constant(rng.uniform(size=(N, 1)))
    weights = [UseWeights(omega, tf.reduce_sum(omega) * 5, tf.constant(10.0, tf.float64))]
    found, expected = [], []
    for block, results in (
        (block_of(layer), found),
        (DenseBlock(dense, dense.kernel, dense.bias), expected),
    ):
        results += block.input_statistics([Use(x, layer(x))], weights, tf.constant(N)).values()
        results += block.output_statistics([layer(x)], weights).values()
        fill(block, A, G, 5.0)
        results += [block.to_dense(), *block.precondition(gradients, damping=0.1)]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("equation", "shape", "outputs", "reason"),
    [
        ("abc,bd->ad", (2, 3), (4,), "is no matrix product"),
        ("abc,cd->ad", (2, 3), (4,), "is no matrix product"),
        ("abb,bc->ac", (3, 3), (4,), "is no matrix product"),
        ("abc,cd->bad", (2, 3), (None, 4), "moves the axis of examples"),
    ],
    ids=["input summed", "places summed", "diagonal", "examples second"],
)
def test_equation_without_structure_falls_back(
    equation: str, shape: tuple[int, ...], outputs: tuple[int, ...], reason: str
) -> None:
    stack = [keras.Input(shape), layers.EinsumDense(equation, outputs, name="odd")]
    (block,) = tfkfac.LayerCollection.scan(keras.Sequential(stack)).blocks
    assert isinstance(block, DiagonalBlock)
    assert block.reason == f"its equation {equation} {reason}"


@pytest.mark.parametrize("equation", ["ab,bcd->ac", "ab,ab->ab", "ab,bc->acc", "ab,bb->a"])
def test_what_keras_refuses_has_no_structure_either(equation: str) -> None:
    assert not Equation.parse(equation, 2).has_structure


def test_a_layer_that_falls_back_trains_under_weights() -> None:
    """Its rows are not of N examples."""
    hidden = layers.EinsumDense("abc,cd->bad", (None, 5), name="odd")(keras.Input((3, 4)))
    turned = layers.Lambda(lambda t: tf.transpose(t, [1, 0, 2]))(hidden)
    model = keras.Model(hidden._keras_history.operation.input, layers.Dense(2)(turned))
    model.compile(tfkfac.KFAC(seed=0), "mse")
    x, y, weights = np.ones((5, 3, 4)), np.ones((5, 3, 2)), np.arange(5.0)[:, None]
    before = model.get_weights()[0]
    model.train_on_batch(x, y, sample_weight=weights)
    assert np.isfinite(model.get_weights()[0]).all()
    assert np.abs(model.get_weights()[0] - before).max() > 0


def test_bias_of_other_axes_falls_back_alone() -> None:
    layer = layers.EinsumDense("abc,cde->abde", (5, 2, 4), bias_axes="e", name="odd")
    model = keras.Sequential([keras.Input((5, 3)), layer])
    blocks = tfkfac.LayerCollection.scan(model).blocks
    assert [type(block) for block in blocks] == [EinsumDenseBlock, DiagonalBlock]
    assert blocks[1].variables == [layer.bias]


@pytest.mark.parametrize(
    ("case", "joins"),
    [
        (("abc,bd->adc", (3, 4), (5, 4), "d"), True),
        (("abc,bd->adc", (3, 5), (5, 5), "d"), False),
        (("abc,cde->abde", (5, 3), (None, 2, 1), "de"), True),
        (("abc,cde->abde", (2, 3), (None, 2, 1), "de"), False),
        (("abc,cde->abde", (5, 3), (None, 1, 5), "de"), True),
    ],
    ids=["apart", "the last axis alike", "one channel", "as many steps as heads", "the last axis"],
)
def test_bias_that_keras_adds_along_another_axis_falls_back(case: Case, joins: bool) -> None:
    """A fault of ``keras.ops.add``: should this fail, Keras has mended it."""
    layer, x = built(case)
    along = np.einsum(case[0], x, layer.kernel) + layer.bias.numpy()
    assert (relative_error(layer(x), along) < TOLERANCE) == joins
    assert block_of(layer).has_bias == joins


def compare_with_exact(model: Any, names: Any, weights: Any, *y_shape: int) -> None:
    """Blocks of one step against the exact ones; between groups those have more."""
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(size=variable.shape))
    x, y = rng.normal(size=(4, 3, 4)), rng.normal(size=(4, *y_shape))
    loss = keras.losses.MeanSquaredError()
    optimizer = tfkfac.KFAC(fisher="exact", factor_decay=0.0, seed=0)
    expected = {  # kernel [in.., out..] row by row, then the bias: the order of the block's matrix
        name: ggn_of_variables(
            model, model.get_layer(name).trainable_variables, x, y, loss, weights
        )
        for name in names
    }
    model.compile(optimizer, loss, run_eagerly=True)
    model.train_on_batch(x, y, sample_weight=weights)
    for name, exact in expected.items():
        block = optimizer.layer_collection[name]
        side = len(exact) // block.groups
        exact = exact * np.kron(np.eye(block.groups), np.ones((side, side)))
        assert relative_error(block.to_dense(), exact) < 1e-9, name


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("weights", [None, (4, 1), (4, 3)], ids=["none", "examples", "steps"])
def test_exact_in_a_linear_network(weights: tuple[int, int] | None) -> None:
    """Heads are split and joined again; squared loss; every example is used at every place."""
    stack = [
        layers.Dense(3, name="first"),
        layers.EinsumDense("abc,cde->abde", (None, 2, 3), bias_axes="de", name="query"),
        layers.EinsumDense("abcd,cde->abe", (None, 2), bias_axes="e", name="output"),
        layers.EinsumDense("...x,xy->...y", (3,), name="wide"),
        layers.Dense(2, name="last"),
    ]
    model = keras.Sequential([keras.Input((3, 4)), *stack])
    omega = weights and np.random.default_rng(1).uniform(0, 4, size=weights)
    compare_with_exact(model, [layer.name for layer in stack], omega, 3, 2)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("weighted", [False, True])
def test_groups_are_exact_in_a_linear_network(weighted: bool) -> None:
    """The blocks on the diagonal are; those between groups are left out."""
    stack = [
        layers.EinsumDense("abc,bcd->abd", (3, 2), name="groups"),
        layers.Flatten(),
        layers.Dense(2, name="last"),
    ]
    model = keras.Sequential([keras.Input((3, 4)), *stack])
    weights = np.array([0.5, 3.0, 0.0, 1.0]) if weighted else None
    compare_with_exact(model, ["groups", "last"], weights, 2)


# --- masks and weights -------------------------------------------------------------------------

MASK = np.array([[True, True, False], [True, False, False]])


@pytest.mark.parametrize(
    ("equation", "outputs", "expected"),
    [
        ("abcd,de->abce", (None, None, 2), MASK[:, :, None]),
        ("abcd,de->acbe", (3, 3, 2), MASK[:, None, :]),
        ("abcd,bde->ace", (None, 2), True),
        ("abcd,bde->abce", (3, None, 2), True),
    ],
    ids=["first places", "places turned", "contracted", "groups"],
)
def test_masks_go_with_the_axis_that_they_are_of(
    equation: str, outputs: tuple[int, ...], expected: Any
) -> None:
    """All axes are of one size, so that a shape alone says nothing."""
    layer, x = built((equation, (3, 3, 4), outputs, None))
    block = block_of(layer)
    weights = use_weights(Use(x, layer(x), tf.constant(MASK)), block, [])
    places = [n for axis, n in enumerate(layer(x).shape) if axis not in block.channel_axes]
    expected = np.broadcast_to(expected, places)
    found = 1.0 if weights.omega is None else weights.omega
    np.testing.assert_array_equal(np.broadcast_to(found, places), expected)
    assert weights.places == weights.total == expected.sum()


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(("length", "masked"), [(3, 3), (5, 5), (5, 3), (2, 3)])
def test_lengths_that_are_known_in_the_step_only(length: int, masked: int, jit: bool) -> None:
    """Keys of an encoder, and a loss of the decoder: both of unknown length, perhaps another."""
    block = block_of(built(CASES["query"])[0])
    rng = np.random.default_rng(0)
    loss = keras.losses.MeanSquaredError(dtype="float64")

    def found(s: tf.Tensor, mask: tf.Tensor, y: tf.Tensor, omega: tf.Tensor) -> list[tf.Tensor]:
        observation = observe(LossCall(loss, y, y, omega, None))
        weights = use_weights(Use(s, s, mask), block, [observation])
        places = tf.shape(s)[:2]
        return [tf.broadcast_to(weights.omega, places), weights.total, weights.places]

    arguments = [
        tf.constant(rng.normal(size=(N, length, 2, 4))),
        tf.constant(np.arange(masked) < [[1], [masked - 1]]),
        tf.constant(rng.normal(size=(N, 3, 2))),
        tf.constant(rng.uniform(size=(N, 3))),
    ]
    unknown = [tf.TensorSpec([None] * a.shape.rank, a.dtype) for a in arguments]
    traced = tf.function(found, input_signature=unknown, jit_compile=jit)
    for one, other in zip(traced(*arguments), found(*arguments), strict=True):
        assert relative_error(one, other) < 1e-12


@pytest.mark.parametrize(
    ("rows", "expected"), [(2, [1.0, 3.0]), (6, [1.0, 1, 1, 3, 3, 3]), (3, [2.0, 2, 2])]
)
def test_rows_that_are_not_the_examples(rows: int, expected: list[float]) -> None:
    """Several rows an example are repeated; rows of no example in particular get the mean."""
    block = block_of(built(("ab,bc->ac", (3,), (4,), None))[0])
    y, omega = tf.zeros([N, 2], tf.float64), tf.constant([1.0, 3.0], tf.float64)
    loss = keras.losses.MeanSquaredError(dtype="float64")
    s = tf.zeros([rows, 4], tf.float64)
    weights = use_weights(Use(s, s), block, [observe(LossCall(loss, y, y, omega, None))])
    np.testing.assert_allclose(weights.omega, expected)
    assert weights.total == sum(expected)
