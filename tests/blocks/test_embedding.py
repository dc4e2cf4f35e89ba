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
@pytest.mark.parametrize("method", ["cholesky", "eigen", "ekfac"])
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
    "arguments",
    [
        {"clipnorm": 0.1, "weight_decay": 0.01},
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"momentum": 0.0}, marks=pytest.mark.slow),
    ],
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
    harmless = {"ReadVariableOp", "Mul", "Identity", "Placeholder", "AssignVariableOp", "Const"}
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


# --- embeddings that make logits too -----------------------------------------------------------


def _tied(kind: str, **arguments: Any) -> keras.Model:
    """Look-ups, logits, or both of one layer; the weights are the same in every kind."""
    keras.utils.set_random_seed(0)
    reversible = layers.ReversibleEmbedding(6, 4, name="tokens", **arguments)
    if kind == "logits":
        inputs = keras.Input((5, 4))
        hidden = inputs
        reversible.build()
    else:
        inputs = keras.Input((5,), dtype="int32")
        hidden = reversible(inputs)
    hidden = layers.Dense(4, activation="tanh", name="body")(hidden)
    if kind == "look-ups":
        model = keras.Model(inputs, layers.Dense(6, name="head")(hidden))
    else:
        model = keras.Model(inputs, reversible(hidden, reverse=True))
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(6, 4))
    reversible.embeddings.assign(matrix)
    if not reversible.tie_weights:
        reversible.reverse_embeddings.assign(matrix.T)
    body = model.get_layer("body")
    body.kernel.assign(rng.normal(size=body.kernel.shape))
    return model


def _fisher(model: keras.Model, x: np.ndarray) -> dict[str, np.ndarray]:
    """The label of a block → its dense Fisher, after one step that changes nothing."""
    kfac = tfkfac.KFAC(0.0, seed=0, factor_decay=0.0, fisher="exact")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(kfac, loss, run_eagerly=True)
    y = np.random.default_rng(2).integers(0, 6, size=(3, 5))
    model.train_on_batch(x, y, sample_weight=np.array([[1.0], [0.5], [2.0]]))
    layer = model.get_layer("tokens")
    return {b.label: b.to_dense().numpy() for b in kfac.layer_collection if b.layers == [layer]}


needs_reversible = pytest.mark.skipif(
    not hasattr(layers, "ReversibleEmbedding"), reason="this Keras has no ReversibleEmbedding"
)
TOKENS = np.random.default_rng(1).integers(0, 6, size=(3, 5))
HIDDEN = np.random.default_rng(1).normal(size=(3, 5, 4))


@needs_reversible
@pytest.mark.parametrize("kind", ["look-ups", "logits"])
def test_tied_embedding_of_one_kind_of_use_is_that_kind(kind: str) -> None:
    """One product is no approximation then: the same as the block of untied embeddings."""
    x = TOKENS if kind == "look-ups" else HIDDEN
    tied = _fisher(_tied(kind), x)["TiedEmbedding"]
    untied = _fisher(_tied(kind, tie_weights=False), x)
    if kind == "look-ups":
        assert relative_error(tied, untied["Embedding"]) < 1e-4
        return
    # The kernel of the logits is the transpose, and keeps more of their factor than its diagonal.
    whole = untied["Dense"].reshape(4, 6, 4, 6)
    diagonal = np.einsum("ivjv->vij", whole)
    found = np.einsum("vivj->vij", tied.reshape(6, 4, 6, 4))
    assert relative_error(found, diagonal) < 1e-4
    assert np.count_nonzero(tied) <= 6 * 4 * 4


@needs_reversible
def test_tied_embedding_keeps_the_trace_of_both_kinds() -> None:
    tied = _fisher(_tied("both"), TOKENS)["TiedEmbedding"]
    untied = _fisher(_tied("both", tie_weights=False), TOKENS)
    assert set(untied) == {"Embedding", "Dense"}
    expected = sum(np.trace(matrix) for matrix in untied.values())
    assert np.trace(tied) == pytest.approx(expected, rel=1e-4)


@needs_reversible
def test_training_inverts_the_product_of_both_kinds() -> None:
    model = _tied("both")
    kfac = tfkfac.KFAC(0.0, damping=1e-3, seed=0, inverse_update_every=1)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(kfac, loss, run_eagerly=True)
    model.train_on_batch(TOKENS, TOKENS)
    block = next(b for b in kfac.layer_collection if b.label == "TiedEmbedding")
    gradient = [tf.random.stateless_normal([6, 4], [1, 2])]
    (kept,) = block.precondition(gradient)
    (fresh,) = block.precondition(gradient, damping=1e-3)
    assert relative_error(kept, fresh) < 1e-5
    assert float(block.trace()) == pytest.approx(np.trace(block.to_dense()), rel=1e-4)


@needs_reversible
@pytest.mark.parametrize(
    "options", [{}, pytest.param({"jit_compile": True}, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("tie_weights", [True, False])
def test_reversible_embedding_trains(tie_weights: bool, options: dict[str, Any]) -> None:
    model = _tied("both", tie_weights=tie_weights)
    kfac = tfkfac.KFAC(0.1, seed=0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(kfac, loss, **options)
    history = model.fit(TOKENS, TOKENS, batch_size=3, epochs=4, verbose=0).history["loss"]
    assert history[-1] < history[0]
    assert kfac.layer_collection.coverage() == 1.0


@needs_reversible
def test_capped_logits_fall_back() -> None:
    model = _tied("both", logit_soft_cap=3.0)
    (block,) = tfkfac.LayerCollection.scan(model).fallbacks
    assert block.reason == "logit_soft_cap"
