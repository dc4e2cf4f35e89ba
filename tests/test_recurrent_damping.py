"""How recurrent blocks are damped where λ is "auto": as if they had eigenvalues of tr F / n."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from strategies import mirrored

import tfkfac
from tfkfac.blocks import RecurrentBlock

TOKENS = np.array([[1, 2, 3, 4], [5, 4, 0, 0], [2, 2, 1, 0], [3, 0, 0, 0], [4, 5, 1, 2]])
LABELS = np.array([[0, 1, 2, 0], [1, 1, 0, 0], [2, 0, 0, 0], [1, 0, 0, 0], [0, 2, 1, 1]])
PLACES = 4 + 2 + 3 + 1 + 4


def tagger(*, eager: bool = True, loss_weight: float = 1.0, **arguments: Any) -> keras.Model:
    """A recurrent network of one output a place, padding masked."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((4,), dtype="int32"),
            layers.Embedding(6, 3, mask_zero=True),
            layers.Bidirectional(layers.LSTM(4, return_sequences=True)),
            layers.GRU(3, return_sequences=True),
            layers.Dense(3),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = tfkfac.KFAC(seed=1, **arguments)
    model.compile(optimizer, loss, loss_weights=[loss_weight], run_eagerly=eager)
    return model


def rule(recurrent_minimum: float) -> tfkfac.LevenbergMarquardt:
    return tfkfac.LevenbergMarquardt(recurrent_minimum=recurrent_minimum)


def blocks_of(model: keras.Model) -> list[Any]:
    return list(model.optimizer.layer_collection.curvature_blocks)


def recurrent_block(model: keras.Model) -> RecurrentBlock:
    return next(block for block in blocks_of(model) if isinstance(block, RecurrentBlock))


def trace_of(model: keras.Model) -> float:
    return sum(float(block.trace()) for block in blocks_of(model))


@pytest.mark.parametrize("minimum", [0.0, 0.03, 100.0])
def test_recurrent_blocks_count_for_a_share_of_the_first_trace(minimum: float) -> None:
    model = tagger(damping=rule(minimum), factor_update_every=1)
    model.train_on_batch(TOKENS, LABELS)
    first = trace_of(model)
    mean = first / sum(block.parameters for block in blocks_of(model))
    for _ in range(3):
        model.train_on_batch(TOKENS, LABELS)
    least, raised = minimum * first / PLACES, []
    for block in blocks_of(model):
        counts_for = float(block.mean_eigenvalue())
        if isinstance(block, RecurrentBlock):
            raised.append(counts_for < least)
            counts_for = max(counts_for, least)
        expected = float(model.optimizer.damping) / mean * counts_for
        np.testing.assert_allclose(model.optimizer.damping_of(block), expected, rtol=1e-4)
    assert len(raised) == 6
    # Both sides of max(·, ·) are seen.
    assert {0.0: sum(raised) == 0, 0.03: 0 < sum(raised) < 6, 100.0: all(raised)}[minimum]


def test_inverses_have_this_damping() -> None:
    model = tagger(damping=rule(100.0))
    model.train_on_batch(TOKENS, LABELS)
    block = recurrent_block(model)
    damping = tf.constant(0.1 * 100.0 * trace_of(model) / PLACES)
    expected = block.inverse.compute(block.averages(), damping)
    for ours, theirs in zip(block.inverse.kept(), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4 * np.abs(theirs).max())


def terms_of(model: keras.Model) -> float:
    """n, as the damping of a recurrent block shows it; `recurrent_minimum` is 100."""
    parameters = sum(block.parameters for block in blocks_of(model))
    share = model.optimizer.damping_of(recurrent_block(model)) / model.optimizer.damping
    return 100.0 * parameters / float(share)


def test_places_that_are_masked_do_not_count() -> None:
    model = tagger(damping=rule(100.0))
    model.train_on_batch(TOKENS, LABELS)
    np.testing.assert_allclose(terms_of(model), PLACES, rtol=1e-5)


def test_terms_of_unequal_weight_count_for_less() -> None:
    weights = np.array([[1.0, 2.0, 0.0, 1.0]] * 5)
    model = tagger(damping=rule(100.0))
    model.train_on_batch(TOKENS, LABELS, sample_weight=weights)
    kept = (weights * (TOKENS > 0)).ravel()
    np.testing.assert_allclose(terms_of(model), kept.sum() ** 2 / (kept**2).sum(), rtol=1e-5)


def test_damping_begins_with_the_first_batch_that_has_curvature() -> None:
    model = tagger(damping=rule(100.0), factor_update_every=1)
    model.train_on_batch(TOKENS, LABELS, sample_weight=np.zeros((5, 4)))
    np.testing.assert_allclose(model.optimizer.damping, 0.1)
    model.train_on_batch(TOKENS, LABELS)
    mean = trace_of(model) / sum(block.parameters for block in blocks_of(model))
    assert mean < 0.5
    np.testing.assert_allclose(model.optimizer.damping, 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(terms_of(model), PLACES, rtol=1e-5)


def test_micro_batches_count_together() -> None:
    model = tagger(damping=rule(100.0), gradient_accumulation_steps=2)
    for _ in range(2):
        model.train_on_batch(TOKENS, LABELS)
    np.testing.assert_allclose(terms_of(model), 2 * PLACES, rtol=1e-5)


def test_later_batches_change_nothing() -> None:
    model = tagger(damping=rule(100.0), factor_update_every=1)
    model.train_on_batch(TOKENS, LABELS)
    model.train_on_batch(TOKENS[:2], LABELS[:2])
    np.testing.assert_allclose(terms_of(model), PLACES, rtol=1e-5)


def test_two_replicas_count_their_terms_together() -> None:
    with mirrored(2).scope():
        model = tagger(damping=rule(100.0), eager=False)
        model.fit(tf.data.Dataset.from_tensor_slices((TOKENS[:4], LABELS[:4])).batch(4), verbose=0)
        np.testing.assert_allclose(terms_of(model), PLACES - 4, rtol=1e-5)


@pytest.mark.parametrize(
    "damping", [1e-2, tfkfac.LevenbergMarquardt(relative=False, recurrent_minimum=100.0)]
)
def test_a_damping_of_ones_own_is_that_of_all_blocks(damping: Any) -> None:
    model = tagger(damping=damping)
    model.train_on_batch(TOKENS, LABELS)
    for block in blocks_of(model):
        np.testing.assert_allclose(model.optimizer.damping_of(block), model.optimizer.damping)


def test_a_loss_of_another_scale_has_steps_of_the_same_kind() -> None:
    """λ of every block is in units of F."""
    dampings = []
    for weight in (1.0, 784.0):
        model = tagger(damping=rule(100.0), loss_weight=weight)
        model.train_on_batch(TOKENS, LABELS)
        dampings.append([float(model.optimizer.damping_of(block)) for block in blocks_of(model)])
    np.testing.assert_allclose(dampings[1], 784.0 * np.array(dampings[0]), rtol=1e-4)
