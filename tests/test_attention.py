"""Attention layers, through the einsum layers of which they are made."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers
from reference import input_factor, relative_error

import tfkfac
from tfkfac.blocks import KroneckerBlock


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


@pytest.mark.parametrize(
    "kind",
    ["multi-head", *(pytest.param(k, marks=pytest.mark.slow) for k in ("causal", "grouped"))],
)
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
