"""The weight N·c_u of each unit, against numbers worked out by hand, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfkfac
from tests import ggn
from tfkfac.fisher import Exact
from tfkfac.noise import PhiloxNoise
from tfkfac.observation import LossCall, Observation, observe
from tfkfac.predictive import Categorical

ROWS = 4


def squared(**arguments: Any) -> keras.losses.Loss:
    return keras.losses.MeanSquaredError(**arguments)


def sparse(**arguments: Any) -> keras.losses.Loss:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, **arguments)


def binary(**arguments: Any) -> keras.losses.Loss:
    return keras.losses.BinaryCrossentropy(from_logits=True, **arguments)


def weights_of(
    loss: keras.losses.Loss,
    labels: Any,
    outputs: tuple[int, ...],
    *,
    mask: Any = None,
    sample_weight: Any = None,
    loss_weight: Any = None,
) -> np.ndarray:
    """N·c_u of each scalar of the target."""
    y_pred = ggn.with_mask(tf.zeros(outputs), mask)
    observation = observe(LossCall(loss, np.array(labels), y_pred, sample_weight, loss_weight))
    ones = tf.ones_like(observation.predictive.target)
    return np.square(observation.inject(ones))


SEQUENCE = {"labels": [[0, 1], [2, 0]], "outputs": (2, 2, 3)}
"""Two examples of two steps and three classes or numbers."""
NUMBERS = {"labels": np.zeros((2, 4)), "outputs": (2, 4)}
STEPS = [[True, False], [True, True]]


@pytest.mark.parametrize(
    ("make", "reduction", "arguments", "expected"),
    [
        # A mean over D = 4 scalars of each of N = 2 examples: c = 1/8.
        (squared, "sum_over_batch_size", NUMBERS, 1 / 4),
        (binary, "mean", NUMBERS, 1 / 4),
        # Sums are divided by N.
        (squared, "sum", NUMBERS, 1 / 4),
        (binary, None, NUMBERS, 1 / 4),
        (squared, "none", NUMBERS, 1 / 4),
        # Sample weights 1 and 3: a mean divides by N, a weighted mean by 4.
        (squared, "mean", NUMBERS | {"sample_weight": [1.0, 3.0]}, [[1 / 4], [3 / 4]]),
        (squared, "sum", NUMBERS | {"sample_weight": [1.0, 3.0]}, [[1 / 4], [3 / 4]]),
        (
            squared,
            "mean_with_sample_weight",
            NUMBERS | {"sample_weight": [1.0, 3.0]},
            [[1 / 8], [3 / 8]],
        ),
        # One label and one output an example, in all the shapes that Keras accepts.
        (squared, "mean", {"labels": [0.0, 0.0], "outputs": (2, 1)}, 1.0),
        (binary, "mean", {"labels": [[0.0], [0.0]], "outputs": (2,)}, 1.0),
        (squared, "mean", {"labels": [0.0, 0.0], "outputs": (2,)}, 1.0),
        (squared, "sum", {"labels": [0.0, 0.0], "outputs": (2,)}, 1 / 2),
        (squared, "mean", {"labels": [[0.0, 0.0]] * 2, "outputs": (2, 2, 1)}, 1 / 2),
        # Classes are no mean: c = 1/(N·T) for T = 2 steps.
        (sparse, "mean", SEQUENCE, 1 / 2),
        (sparse, "sum", SEQUENCE, 1.0),
        # Three of the four steps count.
        (sparse, "mean", SEQUENCE | {"mask": STEPS}, [[[2 / 3], [0.0]], [[2 / 3], [2 / 3]]]),
        (sparse, "sum", SEQUENCE | {"mask": STEPS}, [[[1.0], [0.0]], [[1.0], [1.0]]]),
        (
            sparse,
            "mean",
            SEQUENCE | {"mask": STEPS, "sample_weight": [[3.0, 5.0], [6.0, 0.0]]},
            [[[2.0], [0.0]], [[4.0], [0.0]]],
        ),
        (
            sparse,
            "mean_with_sample_weight",
            SEQUENCE | {"mask": STEPS, "sample_weight": [[3.0, 5.0], [6.0, 0.0]]},
            [[[2 / 3], [0.0]], [[4 / 3], [0.0]]],
        ),
        (sparse, "mean", SEQUENCE | {"mask": np.zeros((2, 2), bool)}, 0.0),
        # The factor of the loss.
        (squared, "mean", NUMBERS | {"loss_weight": 0.5}, 1 / 8),
        (squared, "mean", NUMBERS | {"loss_weight": tf.constant(0.5)}, 1 / 8),
    ],
)
def test_by_hand(make: Any, reduction: Any, arguments: Any, expected: Any) -> None:
    found = weights_of(make(reduction=reduction), **arguments)
    np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), rtol=1e-6)


def test_ignored_classes_by_hand() -> None:
    """Three of four steps count, as under a mask."""
    found = weights_of(sparse(ignore_class=2), **SEQUENCE)
    np.testing.assert_allclose(found[..., 0], [[2 / 3, 2 / 3], [0.0, 2 / 3]], rtol=1e-6)


def test_what_is_noted_beside_the_weights() -> None:
    y_pred = tf.zeros([3, 2])
    plain = observe(LossCall(squared(), y_pred, y_pred))
    assert (int(plain.batch), plain.weighted, plain.summed) == (3, False, False)
    summed = observe(LossCall(squared(reduction="sum"), y_pred, y_pred, [1.0, 2.0, 3.0]))
    assert (int(summed.batch), summed.weighted, summed.summed) == (3, True, True)


def test_golden_categorical_fisher() -> None:
    """maths.md §8: logits 1, 2, 3 have F = diag p − p pᵀ."""
    p = np.array([0.0900305732, 0.2447284711, 0.6652409558])
    predictive = Categorical(tf.constant([[1.0, 2.0, 3.0]], tf.float64))
    columns = np.stack([predictive.root_column(tf.constant(i))[0] for i in range(3)], axis=1)
    np.testing.assert_allclose(columns @ columns.T, np.diag(p) - np.outer(p, p), atol=1e-9)


def test_golden_squared_fisher() -> None:
    """maths.md §1: Keras' mean over D entries has the output Fisher (2/D)·I an example."""
    outputs = tf.zeros([1, 5], tf.float64)
    observation = observe(LossCall(squared(dtype="float64"), outputs, outputs))
    noise = PhiloxNoise(0, tf.constant(0))
    fisher = Exact(8).sum([observation], noise, lambda g: tf.matmul(g[0], g[0], transpose_a=True))
    np.testing.assert_allclose(fisher, 2.0 / 5.0 * np.eye(5), atol=1e-12)


# --- in training ---------------------------------------------------------------------------


def dense(units: int = 1, **arguments: Any) -> keras.Model:
    """One layer, on two features."""
    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(units, **arguments)])


def two_headed() -> keras.Model:
    x = keras.Input((2,))
    return keras.Model(x, [keras.layers.Dense(1, name="a")(x), keras.layers.Dense(1, name="b")(x)])


def step(model: keras.Model, y: Any, **arguments: Any) -> None:
    """One step of `fit` on a whole batch."""
    model.fit(np.ones((ROWS, 2)), y, batch_size=ROWS, verbose=0, **arguments)


@pytest.mark.parametrize("run_eagerly", [False, True])
@pytest.mark.parametrize(
    "weights",
    [{"sample_weight": np.array([1.0, -1.0, 1.0, 1.0])}, {"class_weight": {0: 1.0, 1: -0.5}}],
    ids=["sample", "class"],
)
def test_negative_weights_raise(weights: Any, run_eagerly: bool) -> None:
    model = dense()
    model.compile(tfkfac.KFAC(), binary(), run_eagerly=run_eagerly)
    with pytest.raises(Exception, match="weight is negative"):
        step(model, np.array([0, 1, 0, 1]), **weights)


@pytest.mark.parametrize("loss_weight", [-0.5, tf.constant(-0.5)], ids=["number", "tensor"])
def test_negative_loss_weights_raise(loss_weight: Any) -> None:
    y = tf.zeros([2, 2])
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match="weight is negative"):
        observe(LossCall(squared(), y, y, loss_weight=loss_weight))


def test_sums_and_means_do_not_mix() -> None:
    model = two_headed()
    model.compile(tfkfac.KFAC(), [squared(), squared(reduction="sum")])
    with pytest.raises(ValueError, match="Give all losses the same reduction"):
        step(model, [np.ones((ROWS, 1))] * 2)


def test_sums_train_as_means() -> None:
    """A loss that sums over the batch takes the same steps as the mean."""
    kernels = []
    for reduction in ("sum", "sum_over_batch_size"):
        model = dense(kernel_initializer="ones")
        optimizer = tfkfac.KFAC(seed=0, fisher="exact", kl_clip=None)
        model.compile(optimizer, squared(reduction=reduction), run_eagerly=True)
        step(model, np.arange(ROWS), shuffle=False)
        kernels.append(model.get_weights()[0])
    np.testing.assert_allclose(*kernels, rtol=1e-6)


OUTPUTS: dict[str, Callable[[], keras.Model]] = {
    "[N]": lambda: keras.Sequential([dense(), keras.layers.Reshape(())]),
    "[N, 1]": lambda: dense(),
}


@pytest.mark.parametrize("fisher", ["mc", "exact", "empirical"])
@pytest.mark.parametrize("loss", [squared, binary])
@pytest.mark.parametrize("shape", OUTPUTS)
def test_one_number_an_example_trains(shape: str, loss: Any, fisher: str) -> None:
    """Labels ``[N]`` with sample weights, the commonest of all data."""
    model = OUTPUTS[shape]()
    model.compile(tfkfac.KFAC(1e-2, fisher=fisher), loss(), run_eagerly=True)
    before = model.get_weights()[0]
    step(model, np.array([0, 1, 0, 1]), sample_weight=np.array([1.0, 2.0, 0.0, 1.0]))
    after = model.get_weights()[0]
    assert np.isfinite(after).all()
    assert (after != before).any()


@pytest.mark.usefixtures("float64")
def test_a_loss_weight_keeps_its_digits() -> None:
    outputs = tf.zeros([2, 2], tf.float64)
    observation: Observation = observe(LossCall(squared(), outputs, outputs, None, 0.1))
    np.testing.assert_allclose(observation.weights, 0.1, rtol=1e-15)


def test_observing_works_at_the_root_of_a_graph() -> None:
    """In a hand-written loop nothing opens a name scope around the optimizer's."""

    @tf.function
    def weights(y: tf.Tensor) -> tf.Tensor:
        return observe(LossCall(squared(), y, y)).weights

    np.testing.assert_allclose(weights(tf.zeros([2, 3])), 1.0)
