"""The exact Fisher equals the generalised Gauss-Newton matrix of the loss as Keras reduces it."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import ggn
from tests.ggn import BATCH, Problem
from tfkfac.fisher import Exact
from tfkfac.observation import LossCall, observe

pytestmark = pytest.mark.usefixtures("float64")

CLASSES, STEPS = 3, 2
REDUCTIONS = ["sum_over_batch_size", "sum", "mean_with_sample_weight", None]  # "mean" is the first

categorical = keras.losses.CategoricalCrossentropy
sparse = keras.losses.SparseCategoricalCrossentropy
binary = keras.losses.BinaryCrossentropy
squared = keras.losses.MeanSquaredError

_random = np.random.default_rng(1)
INTEGERS = _random.integers(CLASSES, size=BATCH)
ONE_HOT = np.eye(CLASSES)[INTEGERS]
SOFT = _random.dirichlet(np.ones(CLASSES), size=BATCH)
STEP_INTEGERS = _random.integers(CLASSES, size=(BATCH, STEPS))
STEP_ONE_HOT = np.eye(CLASSES)[STEP_INTEGERS]
BITS = _random.integers(2, size=(BATCH, CLASSES)).astype(float)
STEP_BITS = _random.integers(2, size=(BATCH, STEPS, CLASSES)).astype(float)
REALS = _random.normal(size=(BATCH, CLASSES))
STEP_REALS = _random.normal(size=(BATCH, STEPS, CLASSES))

EXAMPLE_WEIGHTS = np.array([0.5, 2.0, 0.0])
STEP_WEIGHTS = np.array([[0.3, 1.0], [0.0, 2.5], [1.0, 1.7]])
MASK = np.array([[True, True], [True, False], [False, False]])


def assert_exact(problem: Problem) -> None:
    """The claim of this file."""
    model = ggn.network(problem.shape)
    expected = ggn.gauss_newton(model, lambda logits: problem.value(*logits))
    fisher = ggn.fisher(model, lambda logits: [problem.call(*logits)], Exact(64))
    assert np.abs(expected).max() > 1e-3, "the problem has no curvature to compare"
    np.testing.assert_allclose(fisher, expected, rtol=1e-10, atol=1e-10)
    u, v = np.random.default_rng(3).normal(size=(2, len(expected)))
    form = ggn.form(model, lambda logits: [problem.call(*logits)], u, v)
    np.testing.assert_allclose(form, u @ expected @ v, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("make", "arguments", "labels", "link"),
    [
        (categorical, {"from_logits": True}, ONE_HOT, ggn.identity),
        (categorical, {"from_logits": True}, SOFT, ggn.identity),
        (categorical, {"from_logits": True, "label_smoothing": 0.1}, ONE_HOT, ggn.identity),
        (categorical, {}, ONE_HOT, ggn.softmax),
        (categorical, {}, SOFT, ggn.hidden_softmax),
        (categorical, {"label_smoothing": 0.1}, ONE_HOT, ggn.hidden_softmax),
        (categorical, {}, ONE_HOT, ggn.shrunk_softmax),
        (categorical, {}, ONE_HOT, ggn.stretched_softmax),
        (sparse, {"from_logits": True}, INTEGERS, ggn.identity),
        (sparse, {"from_logits": True}, INTEGERS[:, None], ggn.identity),
        (sparse, {}, INTEGERS, ggn.softmax),
        (sparse, {}, INTEGERS, ggn.hidden_softmax),
        (sparse, {}, INTEGERS, ggn.shrunk_softmax),
        (sparse, {"from_logits": True, "ignore_class": INTEGERS[0]}, INTEGERS, ggn.identity),
        (sparse, {"ignore_class": INTEGERS[0]}, INTEGERS, ggn.softmax),
        (sparse, {"ignore_class": -1}, np.array([1, -1, 2]), ggn.hidden_softmax),
        (binary, {"from_logits": True}, BITS, ggn.identity),
        (binary, {"from_logits": True, "label_smoothing": 0.2}, BITS, ggn.identity),
        (binary, {}, BITS, ggn.sigmoid),
        (binary, {}, SOFT, ggn.hidden_sigmoid),
        (binary, {"label_smoothing": 0.2}, BITS, ggn.hidden_sigmoid),
        (squared, {}, REALS, ggn.identity),
    ],
)
def test_every_loss(make: Any, arguments: Any, labels: Any, link: ggn.Link) -> None:
    assert_exact(Problem(make(**arguments), (CLASSES,), labels, link))


@pytest.mark.parametrize("weights", [None, EXAMPLE_WEIGHTS], ids=["plain", "weighted"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(
    ("make", "labels", "link"),
    [
        (categorical, SOFT, ggn.hidden_softmax),
        (sparse, INTEGERS, ggn.softmax),
        (binary, BITS, ggn.sigmoid),
        (squared, REALS, ggn.identity),
    ],
)
def test_every_reduction(
    make: Any, labels: Any, link: ggn.Link, reduction: str | None, weights: Any
) -> None:
    loss = make(reduction=reduction)
    assert_exact(Problem(loss, (CLASSES,), labels, link, sample_weight=weights))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("mask", [None, MASK], ids=["unmasked", "masked"])
@pytest.mark.parametrize(
    "weights",
    [None, EXAMPLE_WEIGHTS[:, None], STEP_WEIGHTS],
    ids=["plain", "examples weighted", "steps weighted"],
)
@pytest.mark.parametrize(
    ("make", "labels", "link"),
    [(sparse, STEP_INTEGERS, ggn.softmax), (squared, STEP_REALS, ggn.identity)],
)
def test_every_reduction_of_sequences(
    make: Any, labels: Any, link: ggn.Link, weights: Any, mask: Any, reduction: str | None
) -> None:
    loss = make(reduction=reduction)
    assert_exact(Problem(loss, (STEPS, CLASSES), labels, link, weights, mask))


@pytest.mark.parametrize(
    ("make", "arguments", "labels", "link"),
    [
        (categorical, {"from_logits": True}, STEP_ONE_HOT, ggn.identity),
        (categorical, {}, STEP_ONE_HOT, ggn.hidden_softmax),
        (binary, {"from_logits": True}, STEP_BITS, ggn.identity),
        (binary, {}, STEP_BITS, ggn.hidden_sigmoid),
        (sparse, {"from_logits": True, "ignore_class": 1}, STEP_INTEGERS, ggn.identity),
        (sparse, {"ignore_class": 1}, STEP_INTEGERS[..., None], ggn.softmax),
    ],
)
@pytest.mark.parametrize("mask", [None, MASK], ids=["unmasked", "masked"])
def test_every_loss_of_sequences(
    make: Any, arguments: Any, labels: Any, link: ggn.Link, mask: Any
) -> None:
    assert_exact(Problem(make(**arguments), (STEPS, CLASSES), labels, link, STEP_WEIGHTS, mask))


@pytest.mark.parametrize(
    ("make", "arguments", "weights"),
    [
        (categorical, {}, None),
        (categorical, {}, STEP_WEIGHTS),
        (categorical, {"label_smoothing": 0.1}, None),
        (binary, {}, None),
        (binary, {}, STEP_WEIGHTS),
    ],
)
@pytest.mark.parametrize("classes", [STEPS, CLASSES], ids=["square", "oblong"])
def test_another_axis(make: Any, arguments: Any, weights: Any, classes: int) -> None:
    labels = np.swapaxes(np.eye(classes)[STEP_INTEGERS % classes], 1, 2)
    loss = make(from_logits=True, axis=1, **arguments)
    assert_exact(Problem(loss, (classes, STEPS), labels, sample_weight=weights))


@pytest.mark.parametrize(
    ("shape", "labels_shape", "weights"),
    [
        ((), (BATCH,), None),
        ((), (BATCH,), EXAMPLE_WEIGHTS),
        ((), (BATCH, 1), EXAMPLE_WEIGHTS),
        ((1,), (BATCH,), EXAMPLE_WEIGHTS),
        ((1,), (BATCH, 1), EXAMPLE_WEIGHTS),
        ((STEPS, 1), (BATCH, STEPS), EXAMPLE_WEIGHTS),
        ((STEPS, 1), (BATCH, STEPS, 1), STEP_WEIGHTS),
        ((STEPS, 2, 2), (BATCH, STEPS, 2, 2), EXAMPLE_WEIGHTS[:, None, None]),
    ],
)
@pytest.mark.parametrize(
    ("make", "link", "reduction"),
    [
        (squared, ggn.identity, "mean"),
        (squared, ggn.identity, "sum"),
        (binary, ggn.hidden_sigmoid, "mean"),
        (binary, ggn.sigmoid, None),
    ],
)
def test_outputs_of_any_rank(
    shape: tuple[int, ...],
    labels_shape: tuple[int, ...],
    weights: Any,
    make: Any,
    link: ggn.Link,
    reduction: str | None,
) -> None:
    labels = np.random.default_rng(2).integers(2, size=labels_shape)
    assert_exact(Problem(make(reduction=reduction), shape, labels, link, weights))


@pytest.mark.parametrize(
    ("make", "activation"),
    [(sparse, tf.nn.softmax), (categorical, tf.nn.softmax), (binary, tf.sigmoid)],
)
def test_logits_are_found_in_a_graph(make: Any, activation: Any) -> None:
    """There Keras finds them by the type of the operation, without an attribute."""

    @tf.function
    def target_and_fisher(logits: tf.Tensor) -> tf.Tensor:
        labels = INTEGERS if make is sparse else ONE_HOT
        observation = observe(LossCall(make(), labels, activation(logits)))
        assert observation.predictive.target is logits
        return Exact(8).sum(
            [observation], ggn.some_noise(), lambda g: tf.einsum("nk,nl->nkl", g[0], g[0])
        )

    logits = tf.constant(REALS)
    p = activation(logits).numpy()
    if make is binary:
        expected = np.einsum("nk,kl->nkl", p * (1.0 - p), np.eye(CLASSES)) / CLASSES
    else:
        expected = np.einsum("nk,kl->nkl", p, np.eye(CLASSES)) - np.einsum("nk,nl->nkl", p, p)
    np.testing.assert_allclose(target_and_fisher(logits), expected, atol=1e-12)


@pytest.mark.parametrize(("make", "link"), [(sparse, ggn.softmax), (binary, ggn.sigmoid)])
def test_saturated_outputs_keep_their_curvature(make: Any, link: ggn.Link) -> None:
    """Where logits are found no probability is clipped: F is small there, and not 0."""
    logits = tf.constant([[-20.0, 0.0, 0.0]], tf.float64)
    observation = observe(LossCall(make(), [0] if make is sparse else [[0.0] * 3], link(logits)))
    assert observation.predictive.target is logits
    fisher = Exact(8).sum([observation], ggn.some_noise(), lambda g: tf.square(g[0][0, 0])).numpy()
    p = link(logits)[0, 0].numpy()
    np.testing.assert_allclose(fisher, p * (1 - p) / (3 if make is binary else 1), rtol=1e-9)
