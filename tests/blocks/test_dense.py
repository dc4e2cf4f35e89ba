"""The dense block's factors against NumPy."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import add_variable, fill, input_factor, output_factor, relative_error, with_ones

from tfkfac.blocks import DenseBlock, Use
from tfkfac.blocks.use import UseWeights


def make(inputs: int, outputs: int, *, bias: bool = True, dtype: str = "float64") -> DenseBlock:
    layer = keras.layers.Dense(outputs, use_bias=bias, dtype=dtype)
    layer.build((None, inputs))
    return DenseBlock(layer, layer.kernel, layer.bias)


def weights_of(omega: np.ndarray | None, places: tuple[int, ...]) -> UseWeights:
    """As `use_weights` makes them: ω broadcastable to the places."""
    count = tf.constant(np.float64(np.prod(places)))
    if omega is None:
        return UseWeights(None, count, count)
    total = np.broadcast_to(omega, places).sum()
    return UseWeights(tf.constant(omega), tf.constant(total), count)


def input_statistics(block: DenseBlock, uses: list[tuple[Any, Any]], batch: int) -> Any:
    """Ā (full) and |T| of uses, given as (inputs, ω)."""
    weights = [weights_of(omega, inputs.shape[:-1]) for inputs, omega in uses]
    records = [Use(tf.constant(inputs), tf.constant(0.0)) for inputs, _ in uses]
    statistics = block.input_statistics(records, weights, tf.constant(batch))
    A = statistics["A"].numpy()
    return np.tril(A) + np.tril(A, -1).T, statistics["uses"].numpy()


def test_factors_are_the_golden_ones() -> None:
    X = np.array([[1.0, 2], [3, 4]])
    without, uses = input_statistics(make(2, 1, bias=False), [(X, None)], 2)
    assert np.array_equal(without, [[5, 7], [7, 10]])
    assert uses == 1
    with_bias, _ = input_statistics(make(2, 1), [(X, None)], 2)
    assert np.array_equal(with_bias, [[5, 7, 2], [7, 10, 3], [2, 3, 1]])


@st.composite
def cases(draw: Any) -> dict[str, Any]:
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    omega = draw(st.sampled_from([None, "places", "examples"]))
    return {
        "shape": shape,
        "inputs": draw(st.integers(1, 5)),
        "outputs": draw(st.integers(1, 4)),
        "bias": draw(st.booleans()),
        "omega": omega and (shape if omega == "places" else (shape[0],) + (1,) * (len(shape) - 1)),
    }


@settings(max_examples=30, deadline=None)
@given(cases(), st.integers(0, 99))
def test_factors_equal_the_transcription(case: dict[str, Any], seed: int) -> None:
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(*case["shape"], case["inputs"]))
    g = rng.normal(size=(*case["shape"], case["outputs"]))
    omega = None if case["omega"] is None else rng.uniform(0, 2, size=case["omega"])
    block = make(case["inputs"], case["outputs"], bias=case["bias"])
    A, uses = input_statistics(block, [(a, omega)], case["shape"][0])
    G = block.output_statistics([tf.constant(g)], [weights_of(omega, case["shape"])])["G"]
    rows = with_ones(a.reshape(-1, case["inputs"]), case["bias"])
    spread = None if omega is None else np.broadcast_to(omega, case["shape"])
    assert relative_error(A, input_factor(rows, spread)) < 1e-12
    assert (
        relative_error(np.tril(G), np.tril(output_factor(g.reshape(-1, case["outputs"])))) < 1e-12
    )
    assert uses == np.prod(case["shape"][1:])


def test_wide_layers_have_the_same_factors() -> None:
    """Wide enough for a product by panels, on either side."""
    rng = np.random.default_rng(0)
    a, g, omega = rng.normal(size=(4, 620)), rng.normal(size=(4, 640)), rng.uniform(size=4)
    block = make(620, 640)
    A, _ = input_statistics(block, [(a, omega)], 4)
    G = block.output_statistics([tf.constant(g)], [weights_of(omega, (4,))])["G"].numpy()
    assert relative_error(A, input_factor(with_ones(a, True), omega)) < 1e-12
    assert relative_error(np.tril(G), np.tril(output_factor(g))) < 1e-12


def test_repeated_uses_are_one_average_over_all_places() -> None:
    """A layer called on [3, 2] and on [3] places: |T| = 3, and every place counts the same."""
    rng = np.random.default_rng(1)
    a, g = [rng.normal(size=(3, 2, 4)), rng.normal(size=(3, 4))], rng.normal(size=(9, 2))
    omega = [rng.uniform(size=(3, 1)), rng.uniform(size=3)]
    block = make(4, 2)
    A, uses = input_statistics(block, list(zip(a, omega, strict=True)), 3)
    weights = [weights_of(w, x.shape[:-1]) for x, w in zip(a, omega, strict=True)]
    pieces = [tf.constant(g[:6].reshape(3, 2, 2)), tf.constant(g[6:])]
    G = block.output_statistics(pieces, weights)["G"].numpy()
    rows = with_ones(np.concatenate([x.reshape(-1, 4) for x in a]), True)
    spread = np.concatenate([np.repeat(omega[0], 2), omega[1]])
    assert relative_error(A, input_factor(rows, spread)) < 1e-12
    assert relative_error(np.tril(G), np.tril(output_factor(g))) < 1e-12
    assert uses == 3


def test_masked_places_count_nowhere() -> None:
    """Two of four places are masked: |T| is the mean number of valid ones."""
    rng = np.random.default_rng(2)
    a, g = rng.normal(size=(2, 2, 3)), rng.normal(size=(2, 2, 2))
    mask = np.array([[1.0, 0.0], [1.0, 0.0]])
    weights = UseWeights(
        tf.constant(mask), tf.constant(2.0, tf.float64), tf.constant(2.0, tf.float64)
    )
    block = make(3, 2)
    use = Use(tf.constant(a), tf.constant(0.0))
    statistics = block.input_statistics([use], [weights], tf.constant(2))
    G = block.output_statistics([tf.constant(g * mask[..., None])], [weights])["G"].numpy()
    A = np.tril(statistics["A"])
    assert relative_error(A, np.tril(input_factor(with_ones(a[:, 0], True)))) < 1e-12
    assert relative_error(np.tril(G), np.tril(output_factor(g[:, 0]))) < 1e-12
    assert statistics["uses"] == 1


def test_weights_of_zero_give_zeros_not_nan() -> None:
    A, _ = input_statistics(make(3, 2), [(np.ones((4, 3)), np.zeros(4))], 4)
    assert np.array_equal(A, np.zeros((4, 4)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_inputs_of_any_precision_are_averaged_in_single(dtype: str) -> None:
    """Half precision would overflow at 300²."""
    block = make(2, 1, dtype="float32")
    weights = weights_of(None, (3,))
    weights = UseWeights(None, *[tf.cast(x, tf.float32) for x in (weights.total, weights.places)])
    use = Use(tf.fill([3, 2], tf.constant(300.0, dtype)), tf.constant(0.0))
    A = block.input_statistics([use], [weights], tf.constant(3))["A"]
    assert A.dtype == tf.float32
    assert np.allclose(np.diag(A), [9e4, 9e4, 1])


def test_one_shape_only_is_traced_for_batches_of_any_size() -> None:
    block = make(3, 2)
    block.build(add_variable, lambda: tf.constant(1.0))

    @tf.function(input_signature=[tf.TensorSpec([None, None, 3], tf.float64)], jit_compile=True)
    def statistics(inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        shape = tf.shape(inputs)
        places = tf.cast(shape[0] * shape[1], tf.float64)
        weights = UseWeights(tf.ones([shape[0], 1], tf.float64), places, places)
        return block.input_statistics([Use(inputs, inputs)], [weights], shape[0])

    for shape in [(2, 3, 3), (5, 1, 3)]:
        a = np.random.default_rng(3).normal(size=shape)
        found = statistics(tf.constant(a))
        expected = input_factor(with_ones(a.reshape(-1, 3), True))
        assert relative_error(np.tril(found["A"]), np.tril(expected)) < 1e-12
        assert found["uses"] == shape[1]


def test_gradients_are_matrices_with_the_bias_last() -> None:
    """The gradient of a linear layer is Σ a gᵀ; the block's matrix must be laid out the same."""
    block = make(3, 2)
    layer, rng = block.layers[0], np.random.default_rng(4)
    a, g = rng.normal(size=(5, 3)), rng.normal(size=(5, 2))
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(layer(tf.constant(a)) * g)
    gradients = tape.gradient(value, [variable.value for variable in block.variables])
    assert relative_error(block.to_matrix(gradients), with_ones(a, True).T @ g) < 1e-12


def test_dense_form_is_the_kronecker_product() -> None:
    rng = np.random.default_rng(5)
    A, G = input_factor(rng.normal(size=(9, 4))), output_factor(rng.normal(size=(9, 2)))
    block = fill(make(3, 2), np.tril(A), np.tril(G), 2.5)
    assert relative_error(block.to_dense(), 2.5 * np.kron(A, G)) < 1e-12
