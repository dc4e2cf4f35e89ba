"""The exact Fisher of compiled models equals the Gauss-Newton matrix of what Keras minimises."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfkfac
from tests import ggn
from tests.ggn import BATCH
from tfkfac import losses
from tfkfac.fisher import Exact
from tfkfac.losses import Observation, observe

pytestmark = pytest.mark.usefixtures("float64")

CLASSES = 3
INTEGERS = np.array([1, 0, 2])
REALS = np.array([[0.1, -1.0], [2.0, 0.3], [-0.4, 0.0]])
WEIGHTS = np.array([0.5, 2.0, 0.0])
CROSSENTROPY = keras.losses.SparseCategoricalCrossentropy
SQUARED = keras.losses.MeanSquaredError


def assert_exact(
    model: keras.Model, y: Any, weights: Any = None, link: Any = ggn.identity, divisor: int = 1
) -> None:
    """The claim of this file, for a model that returns logits and is compiled.

    Args:
        model: The model.
        y: Labels.
        weights: Sample weights.
        link: From what the model returns to what the losses judge.
        divisor: N where Keras sums over the batch.
    """
    x = ggn.inputs() if model.input_shape == (None, 2) else SEQUENCES

    def forward() -> list[tf.Tensor]:
        return tf.nest.flatten(model(x))

    def value(logits: list[tf.Tensor]) -> tf.Tensor:
        structured = tf.nest.pack_sequence_as(model.output, logits)
        seen = [ggn.keras_internals.mask_of(output) for output in forward()]
        for z, mask in zip(logits, seen, strict=True):
            ggn.with_mask(z, mask)
        return tf.reduce_sum(model.compute_loss(None, y, link(structured), weights)) / divisor

    variables = model.trainable_variables
    expected = ggn.gauss_newton(forward, value, variables)
    with tf.GradientTape(persistent=True) as tape:
        observations = [observe(call) for call in ggn.calls_of(model, x, y, weights, link)]
    fisher = ggn.full_fisher(Exact(64), observations, tape, variables)
    assert np.abs(expected).max() > 1e-3, "the problem has no curvature to compare"
    np.testing.assert_allclose(fisher, expected, atol=1e-10)


def two_headed() -> keras.Model:
    """Logits of classes, and numbers."""
    x = keras.Input((2,))
    h = keras.layers.Dense(2, activation="tanh")(x)
    heads = [
        keras.layers.Dense(CLASSES, name="classes")(h),
        keras.layers.Dense(2, name="numbers")(h),
    ]
    return keras.Model(x, heads)


@pytest.mark.parametrize(
    ("judges", "divisor"),
    [
        (["sparse_categorical_crossentropy", "mse"], 1),
        ({"numbers": "mean_squared_error", "classes": "sparse_categorical_crossentropy"}, 1),
        ([keras.losses.sparse_categorical_crossentropy, keras.losses.mean_squared_error], 1),
        ([CROSSENTROPY(), SQUARED(reduction="mean_with_sample_weight")], 1),
        ([CROSSENTROPY(reduction="sum"), SQUARED(reduction="sum")], BATCH),
    ],
    ids=["names", "names by output", "functions", "objects", "sums"],
)
@pytest.mark.parametrize(
    ("loss_weights", "weights"),
    [(None, None), ([0.3, 2.0], None), ([0.3, 2.0], [WEIGHTS, WEIGHTS[::-1].copy()])],
    ids=["plain", "losses weighted", "examples weighted"],
)
def test_two_outputs(judges: Any, divisor: int, loss_weights: Any, weights: Any) -> None:
    if isinstance(judges, dict) and loss_weights:
        loss_weights = dict(zip(("classes", "numbers"), loss_weights, strict=True))
    model = two_headed()
    model.compile(loss=judges, loss_weights=loss_weights)
    link = lambda outputs: [ggn.softmax(outputs[0]), outputs[1]]  # noqa: E731
    assert_exact(model, [INTEGERS, REALS], weights, link, divisor)


@pytest.mark.parametrize(
    ("loss", "units", "labels", "link"),
    [
        ("categorical_crossentropy", CLASSES, np.eye(CLASSES)[INTEGERS], ggn.softmax),
        ("binary_crossentropy", 1, INTEGERS > 0, ggn.sigmoid),
        (keras.losses.binary_crossentropy, 2, REALS > 0, ggn.sigmoid),
        ("MeanSquaredError", 2, REALS, ggn.identity),
        (SQUARED, 1, REALS[:, 0], ggn.identity),
    ],
)
def test_losses_as_users_pass_them(loss: Any, units: int, labels: Any, link: Any) -> None:
    model = ggn.network((units,))
    model.compile(loss=loss)
    assert_exact(model, np.asarray(labels, "float64"), WEIGHTS, link)


SEQUENCES = np.random.default_rng(3).normal(size=(BATCH, 2, 2))
SEQUENCES[0, 1] = SEQUENCES[2, 0] = 0.0


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum", "mean_with_sample_weight"])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_masking_layer(reduction: str, weighted: bool) -> None:
    model = keras.Sequential(
        [keras.Input((2, 2)), keras.layers.Masking(), keras.layers.Dense(CLASSES)]
    )
    model.compile(loss=CROSSENTROPY(from_logits=True, reduction=reduction))
    weights = np.array([[0.5, 3.0], [1.0, 2.0], [1.5, 0.7]]) if weighted else None
    labels = np.array([[0, 1], [2, 2], [1, 0]])
    assert_exact(model, labels, weights, divisor=BATCH if reduction == "sum" else 1)


def test_class_weight_in_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Class weights reach the Fisher as Keras' data path hands them to the loss."""
    seen: list[Observation] = []
    monkeypatch.setattr(losses, "observe", lambda call: seen.append(observe(call)) or seen[-1])
    class_weight = {0: 0.5, 1: 3.0, 2: 1.0}
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(CLASSES, use_bias=False)])
    model.compile(tfkfac.KFAC(0.0), CROSSENTROPY(from_logits=True), run_eagerly=True)
    x = ggn.inputs()
    model.fit(x, INTEGERS, batch_size=BATCH, shuffle=False, class_weight=class_weight, verbose=0)

    weights = np.array([class_weight[label] for label in INTEGERS])
    expected = ggn.gauss_newton(
        lambda: [model(x)],
        lambda logits: model.compute_loss(None, INTEGERS, logits[0], weights),
        model.trainable_variables,
    )
    at_logits = Exact(8).sum(seen, None, lambda g: tf.einsum("nk,nl->nkl", g[0], g[0]))
    fisher = np.einsum("ni,nj,nkl->ikjl", x, x, at_logits).reshape(expected.shape) / BATCH
    np.testing.assert_allclose(fisher, expected, atol=1e-10)
