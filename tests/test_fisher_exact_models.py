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
from tfkfac.fisher import Exact
from tfkfac.observation import Observation, observe

pytestmark = pytest.mark.usefixtures("float64")

CLASSES = 3
INTEGERS = np.array([1, 0, 2])
REALS = np.array([[0.1, -1.0], [2.0, 0.3], [-0.4, 0.0]])
WEIGHTS = np.array([0.5, 2.0, 0.0])
CROSSENTROPY = keras.losses.SparseCategoricalCrossentropy
SQUARED = keras.losses.MeanSquaredError


def assert_exact(
    model: keras.Model,
    y: Any,
    weights: Any = None,
    *,
    x: Any = None,
    link: Any = ggn.identity,
    divisor: int = 1,
) -> None:
    """The claim of this file, for a model that returns logits and is compiled.

    Args:
        model: The model.
        y: Labels.
        weights: Sample weights.
        x: Inputs, where they are not `ggn.inputs()`.
        link: From what the model returns to what the losses judge.
        divisor: N where Keras sums over the batch.
    """
    linearised = ggn.Linearised.of(model, ggn.inputs() if x is None else x)

    def outputs(logits: list[tf.Tensor]) -> Any:
        return link(logits if len(logits) > 1 else logits[0])

    expected = ggn.gauss_newton(
        linearised, lambda z: model.compute_loss(None, y, outputs(z), weights) / divisor
    )
    fisher = ggn.fisher(
        linearised, lambda z: ggn.calls_of(model, y, outputs(z), weights), Exact(64)
    )
    assert np.abs(expected).max() > 1e-3, "the problem has no curvature to compare"
    np.testing.assert_allclose(fisher, expected, rtol=1e-10, atol=1e-10)


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
    ("make", "divisor"),
    [
        (lambda: ["sparse_categorical_crossentropy", "mse"], 1),
        (
            lambda: {"numbers": "mean_squared_error", "classes": "sparse_categorical_crossentropy"},
            1,
        ),
        (
            lambda: [keras.losses.sparse_categorical_crossentropy, keras.losses.mean_squared_error],
            1,
        ),
        (lambda: [CROSSENTROPY(), SQUARED(reduction="mean_with_sample_weight")], 1),
        (lambda: [CROSSENTROPY(reduction="sum"), SQUARED(reduction="sum")], BATCH),
    ],
    ids=["names", "names by output", "functions", "objects", "sums"],
)
@pytest.mark.parametrize(
    ("loss_weights", "weights"),
    [(None, None), ([0.3, 2.0], None), ([0.3, 2.0], [WEIGHTS, WEIGHTS[::-1].copy()])],
    ids=["plain", "losses weighted", "examples weighted"],
)
def test_two_outputs(make: Any, divisor: int, loss_weights: Any, weights: Any) -> None:
    judges = make()
    if isinstance(judges, dict) and loss_weights:
        loss_weights = dict(zip(("classes", "numbers"), loss_weights, strict=True))
    model = two_headed()
    model.compile(loss=judges, loss_weights=loss_weights)

    def link(logits: list[tf.Tensor]) -> list[tf.Tensor]:
        return [ggn.softmax(logits[0]), logits[1]]

    assert_exact(model, [INTEGERS, REALS], weights, link=link, divisor=divisor)


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
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(units)])
    model.compile(loss=loss)
    assert_exact(model, np.asarray(labels, "float64"), WEIGHTS, link=link)


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum", "mean_with_sample_weight"])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_masking_layer(reduction: str, weighted: bool) -> None:
    model = keras.Sequential(
        [keras.Input((2, 2)), keras.layers.Masking(), keras.layers.Dense(CLASSES)]
    )
    model.compile(loss=CROSSENTROPY(from_logits=True, reduction=reduction))
    weights = np.array([[0.5, 3.0], [1.0, 2.0], [1.5, 0.7]]) if weighted else None
    labels = np.array([[0, 1], [2, 2], [1, 0]])
    x = np.random.default_rng(3).normal(size=(BATCH, 2, 2))
    x[0, 1] = x[2, 0] = 0.0
    assert_exact(model, labels, weights, x=x, divisor=BATCH if reduction == "sum" else 1)


def test_class_weight_in_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Class weights reach the Fisher as Keras' data path hands them to the loss."""
    seen: list[Observation] = []
    monkeypatch.setattr(
        "tfkfac.gathering.observe", lambda call: seen.append(observe(call)) or seen[-1]
    )
    class_weight = {0: 0.5, 1: 3.0, 2: 1.0}
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(CLASSES, use_bias=False)])
    model.compile(tfkfac.KFAC(0.0), CROSSENTROPY(from_logits=True), run_eagerly=True)
    x = ggn.inputs()
    model.fit(x, INTEGERS, batch_size=BATCH, shuffle=False, class_weight=class_weight, verbose=0)

    weights = np.array([class_weight[label] for label in INTEGERS])
    expected = ggn.gauss_newton(
        ggn.Linearised.of(model, x), lambda z: model.compute_loss(None, INTEGERS, z[0], weights)
    )
    at_logits = Exact(8).sum(seen, ggn.some_noise(), lambda g: tf.einsum("nk,nl->nkl", g[0], g[0]))
    fisher = np.einsum("ni,nj,nkl->ikjl", x, x, at_logits).reshape(expected.shape) / BATCH
    np.testing.assert_allclose(fisher, expected, atol=1e-10)
