"""Embeddings: frequencies of tokens, and gradients that hold only some rows."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from reference import fill, positive, relative_error

import tfkfac
from tfkfac import indexed_slices, optimizer
from tfkfac.blocks import EmbeddingBlock

VOCABULARY, WIDTH = 50, 3


def make(method: str = "cholesky") -> EmbeddingBlock:
    layer = layers.Embedding(6, 4)
    layer.build()
    return EmbeddingBlock(layer, layer.embeddings, method=method)


def slices(rng: np.random.Generator, indices: list[int]) -> tf.IndexedSlices:
    values = tf.constant(rng.normal(size=(len(indices), 4)), tf.float32)
    return tf.IndexedSlices(values, tf.constant(indices), tf.constant([6, 4]))


@pytest.mark.parametrize("damping", [None, 0.3])
@pytest.mark.parametrize("method", ["cholesky", "eigen"])
def test_rows_are_preconditioned_as_the_whole_gradient_is(method: str, damping: Any) -> None:
    rng = np.random.default_rng(0)
    block = fill(make(method), rng.uniform(size=6), positive(rng, 4), 2.0, damping=0.1)
    block.refresh(tf.constant(0.1))
    gradient = slices(rng, [4, 1, 4])
    (rows,) = block.precondition([gradient], damping)
    (whole,) = block.precondition([tf.convert_to_tensor(gradient)], damping)
    assert isinstance(rows, tf.IndexedSlices)
    assert relative_error(tf.convert_to_tensor(rows), whole) < 1e-5


@pytest.mark.parametrize("method", ["cholesky", "eigen"])
def test_precondition_is_the_dense_inverse(method: str) -> None:
    rng = np.random.default_rng(0)
    frequencies, G, uses, damping = rng.uniform(size=6), positive(rng, 4), 2.0, 0.3
    block = fill(make(method), frequencies, G, uses)
    gradient = rng.normal(size=(6, 4))
    (found,) = block.precondition([tf.constant(gradient, tf.float32)], damping)
    A = np.diag(frequencies)
    if method == "eigen":
        damped = uses * np.kron(A, G) + damping * np.eye(24)
    else:
        root = np.sqrt(damping / uses)
        balance = np.sqrt(frequencies.mean() / (np.trace(G) / 4))
        damped = uses * np.kron(A + balance * root * np.eye(6), G + root / balance * np.eye(4))
    expected = np.linalg.solve(damped, gradient.reshape(-1)).reshape(6, 4)
    assert relative_error(found, expected) < 1e-5


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("indices", [[4, 1, 4, 0, 1, 4], [2], [0, 0], [5, 4, 3]])
def test_rows_of_equal_index_are_added(indices: list[int], jit: bool) -> None:
    gradient = slices(np.random.default_rng(0), indices)

    @tf.function(jit_compile=jit)
    def both(values: tf.Tensor, rows: tf.Tensor) -> Any:
        unique = indexed_slices.unique(tf.IndexedSlices(values, rows, tf.constant([6, 4])))
        return unique.values, unique.indices

    values, rows = both(gradient.values, gradient.indices)
    whole = tf.convert_to_tensor(gradient)
    found = tf.IndexedSlices(values, rows, tf.constant([6, 4]))
    np.testing.assert_allclose(tf.convert_to_tensor(found), whole, rtol=1e-6)
    used = [row for row, value in zip(rows.numpy(), values.numpy(), strict=True) if value.any()]
    assert sorted(used) == sorted(set(indices))
    np.testing.assert_allclose(indexed_slices.dot(found, found), tf.reduce_sum(whole**2), rtol=1e-5)


def _model(**arguments: Any) -> keras.Model:
    tokens = keras.Input((4,), dtype="int32")
    embedded = layers.Embedding(VOCABULARY, WIDTH, name="tokens", **arguments)(tokens)
    return keras.Model(tokens, layers.Dense(2)(layers.GlobalAveragePooling1D()(embedded)))


def _batch() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 9, size=(8, 4)), rng.integers(0, 2, size=8)


def _train(**arguments: Any) -> keras.Model:
    keras.utils.set_random_seed(0)
    model = _model()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    kfac = tfkfac.KFAC(seed=0, kl_clip=1e-2, **arguments)
    model.compile(kfac, loss)
    x, y = _batch()
    model.fit(x, y, batch_size=8, epochs=3, verbose=0)
    return model


@pytest.mark.parametrize(
    "arguments", [{}, {"clipnorm": 0.1}, {"weight_decay": 0.01}, {"momentum": 0.0}]
)
def test_training_with_some_rows_is_training_with_all(
    arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sparse = _train(**arguments).get_weights()
    monkeypatch.setattr(optimizer.indexed_slices, "unique", tf.convert_to_tensor)
    for found, expected in zip(sparse, _train(**arguments).get_weights(), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_gradient_of_an_embedding_is_never_made_dense() -> None:
    """No product, sum or scatter of the step has the size of the embeddings, but the state has."""
    model = _train()
    x, y = map(tf.constant, _batch())
    step = tf.function(model.train_step).get_concrete_function((x, y))
    harmless = {"ReadVariableOp", "Mul", "Identity", "Placeholder", "AssignVariableOp"}
    graphs = [step.graph, *(f.graph for f in step.graph._functions.values() if hasattr(f, "graph"))]
    dense = {
        operation.type
        for graph in graphs
        for operation in graph.get_operations()
        for output in operation.outputs
        if output.shape.rank == 2 and output.shape.as_list() == [VOCABULARY, WIDTH]
    }
    assert dense and dense <= harmless


def test_padding_is_no_token() -> None:
    model = _model(mask_zero=True)
    kfac = tfkfac.KFAC(seed=0, factor_decay=0.0)
    model.compile(kfac, "mse")
    tokens = np.array([[3, 3, 0, 0], [1, 0, 0, 0]])
    model.train_on_batch(tokens, np.zeros((2, 2)))
    block = kfac.layer_collection["tokens"]
    frequencies = np.zeros(VOCABULARY)
    frequencies[[3, 1]] = [2 / 3, 1 / 3]
    np.testing.assert_allclose(block.factors["A"], frequencies, rtol=1e-6)
    assert block.uses == 3 / 2
