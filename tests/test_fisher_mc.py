"""Sampled targets: distributed as the predictive distribution says, and blind to the labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import ggn
from tests.ggn import BATCH, Problem
from tfkfac.fisher import Empirical, Estimator, Exact, MonteCarlo
from tfkfac.losses import predictive_of
from tfkfac.noise import PhiloxNoise
from tfkfac.observation import LossCall, observe
from tfkfac.predictive import Bernoulli, Categorical, Normal, Predictive

pytestmark = pytest.mark.usefixtures("float64")

LOGITS = np.array([0.3, -1.2, 0.9])
PROBABILITIES = np.exp(LOGITS) / np.exp(LOGITS).sum()
CHANCES = 1.0 / (1.0 + np.exp(-LOGITS))

DISTRIBUTIONS: dict[str, tuple[Callable[[tf.Tensor], Predictive], np.ndarray]] = {
    "categorical": (Categorical, np.diag(PROBABILITIES) - np.outer(PROBABILITIES, PROBABILITIES)),
    "bernoulli": (Bernoulli, np.diag(CHANCES * (1.0 - CHANCES))),
    "normal": (Normal, 2.0 * np.eye(3)),
}
"""Name → distribution at `LOGITS`, and its Fisher matrix there in closed form."""


def philox(step: int, seed: int = 7) -> PhiloxNoise:
    return PhiloxNoise(seed, tf.constant(step))


def repeated(draws: int) -> tf.Tensor:
    """A batch of that many examples with the same outputs."""
    return tf.constant(np.tile(LOGITS, (draws, 1)))


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_samples_have_the_moments_of_the_distribution(name: str) -> None:
    """Mean 0 and second moment F (both within five standard errors), as of tfp's own samples."""
    make, fisher = DISTRIBUTIONS[name]
    draws = 40_000
    predictive = make(repeated(draws))
    ours = predictive.sampled_gradient(philox(0))
    theirs = gradient_of_log_prob(predictive, predictive.distribution.sample(seed=(1, 2)))
    for gradients in (ours.numpy(), theirs.numpy()):
        spread = 5.0 * gradients.std(axis=0) / np.sqrt(draws)
        np.testing.assert_array_less(np.abs(gradients.mean(axis=0)), spread)
        products = gradients[:, :, None] * gradients[:, None, :]
        spread = 5.0 * products.std(axis=0) / np.sqrt(draws) + 1e-12
        np.testing.assert_array_less(np.abs(products.mean(axis=0) - fisher), spread)


@pytest.mark.parametrize("classes", [2, 255, 256, 257, 991, 1024])
def test_a_sample_inverts_the_cumulative_distribution(classes: int) -> None:
    """In one stage or two, as NumPy searches it; classes without probability are never drawn."""
    rng = np.random.default_rng(classes)
    logits = np.where(rng.random((5, 40, classes)) < 0.3, -np.inf, 3.0 * rng.normal(size=classes))
    logits[..., 0] = -np.inf
    logits[..., -1] = -9.0  # no row is without a class
    sampled = Categorical(tf.constant(logits)).sampled_gradient(philox(2)).numpy()
    probabilities = tf.nn.softmax(logits).numpy()
    uniform = philox(2).uniform((5, 40), tf.float64).numpy()
    pairs = zip(probabilities.reshape(-1, classes), uniform.ravel(), strict=True)
    expected = [np.searchsorted(p.cumsum(), u * p.sum(), side="right") for p, u in pairs]
    expected = probabilities - np.eye(classes)[np.reshape(expected, (5, 40))]
    np.testing.assert_array_equal(sampled, expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_draws_all_of_many_classes(dtype: str) -> None:
    """Cumulative sums in half precision would stop growing, and leave the last classes out."""
    logits = tf.zeros((60_000, 2000), dtype)
    sampled = Categorical(logits).sampled_gradient(philox(4))
    assert sampled.dtype == dtype
    counts = np.bincount(np.argmin(tf.cast(sampled, tf.float32), axis=-1), minlength=2000)
    assert counts.min() > 0 and counts.max() < 80  # 30 ± 5.5 each


@pytest.mark.parametrize("classes", [3, 300])
@pytest.mark.parametrize("uniform", [0.0, 2.0**-24, 1.0 - 2.0**-24, 1.0])
def test_extreme_draws_have_probability(classes: int, uniform: float) -> None:
    """The first and the last class are impossible here, and extreme numbers do not draw them."""
    logits = np.zeros((2, classes), "float32")
    logits[:, [0, -1]] = -np.inf

    class Constant(PhiloxNoise):
        def uniform(self, shape: Any, dtype: Any) -> tf.Tensor:
            return tf.fill(shape, tf.constant(uniform, dtype))

    sampled = Categorical(tf.constant(logits)).sampled_gradient(Constant(0, tf.constant(0)))
    wanted = np.eye(classes)[1 if uniform < 0.5 else classes - 2]
    np.testing.assert_array_equal(sampled, tf.nn.softmax(logits) - wanted.astype("float32"))


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_a_sample_is_a_gradient_of_the_distribution(name: str) -> None:
    """Each is ∂(−log p(y))/∂logits for a y that the distribution can draw."""
    predictive = DISTRIBUTIONS[name][0](repeated(20))
    sampled = predictive.sampled_gradient(philox(1))
    if name == "categorical":
        targets = tf.argmin(sampled, axis=-1)
    elif name == "bernoulli":
        targets = tf.cast(sampled < 0, tf.float64)
    else:
        targets = predictive.target - sampled / 2.0
    expected = gradient_of_log_prob(predictive, targets)
    np.testing.assert_allclose(sampled, expected, atol=1e-12)
    np.testing.assert_allclose(predictive.label_gradient(targets), expected, atol=1e-12)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_columns_make_up_the_closed_form(name: str) -> None:
    make, fisher = DISTRIBUTIONS[name]
    predictive = make(tf.constant(LOGITS[None]))
    columns = [predictive.root_column(tf.constant(i))[0].numpy() for i in range(3)]
    if name != "categorical":  # A unit is one scalar, so the only column is the whole diagonal.
        columns = list(np.diag(columns[0]))
    np.testing.assert_allclose(sum(np.outer(c, c) for c in columns), fisher, atol=1e-12)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_the_error_falls_with_the_root_of_the_draws(name: str) -> None:
    """100 times the draws, a tenth of the error (root mean square over 40 steps)."""
    make, fisher = DISTRIBUTIONS[name]

    def error(draws: int) -> float:
        squares = []
        for step in range(40):
            g = make(repeated(draws)).sampled_gradient(philox(step)).numpy()
            squares.append(np.square(g.T @ g / draws - fisher).sum())
        return float(np.sqrt(np.mean(squares)))

    assert 7.5 < error(100) / error(10_000) < 13.0


MASK = np.array([[True, True], [True, False], [True, True]])
WEIGHTS = np.array([[0.3, 1.0], [0.1, 2.5], [1.0, 1.7]])
CLASSES = np.array([[0, 1], [2, 0], [1, 1]])
BITS = np.array([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
SOFT = BITS / BITS.sum(axis=1, keepdims=True)

PROBLEMS: dict[str, Callable[[], Problem]] = {
    "classes": lambda: Problem(
        keras.losses.SparseCategoricalCrossentropy(), (2, 3), CLASSES, ggn.softmax, WEIGHTS, MASK
    ),
    "hidden classes": lambda: Problem(
        keras.losses.CategoricalCrossentropy(), (3,), SOFT, ggn.hidden_softmax
    ),
    "bits": lambda: Problem(keras.losses.BinaryCrossentropy(), (3,), BITS, ggn.hidden_sigmoid),
    "sums": lambda: Problem(keras.losses.MeanSquaredError(reduction="sum"), (3,), BITS),
}


class Steps(Estimator):
    """Monte-Carlo estimates of many steps, stacked."""

    def sum(self, observations: Any, noise: Any, backward: Any) -> tf.Tensor:
        one = MonteCarlo()
        return tf.stack([one.sum(observations, philox(step), backward) for step in range(100)])


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_parameters_fisher_converges_to_the_ggn(name: str) -> None:
    """Without bias, and averages of ten steps have 1/√10 of the error of one."""
    problem = PROBLEMS[name]()
    model = ggn.network(problem.shape)
    expected = ggn.gauss_newton(model, lambda z: problem.value(*z))
    samples = fisher_of(problem, Steps())

    def error(steps: int) -> float:
        means = samples.reshape(-1, steps, *expected.shape).mean(axis=1)
        return float(np.sqrt(np.square(means - expected).sum(axis=(1, 2)).mean()))

    assert 2.0 < error(1) / error(10) < 5.0
    assert error(len(samples)) < 2.0 * error(1) / np.sqrt(len(samples))


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("estimator", [MonteCarlo(), Exact(64)], ids=["mc", "exact"])
def test_labels_do_not_enter(name: str, estimator: Estimator) -> None:
    problem = PROBLEMS[name]()
    one, other = (fisher_of(p, estimator, philox(3)) for p in (problem, relabelled(problem)))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", PROBLEMS)
def test_labels_enter_the_empirical_fisher(name: str) -> None:
    problem = PROBLEMS[name]()
    one, other = (fisher_of(p, Empirical()) for p in (problem, relabelled(problem)))
    assert np.abs(one - other).max() > 1e-3


@pytest.mark.parametrize(
    ("make", "arguments", "labels", "link", "shape", "units"),
    [
        ("CategoricalCrossentropy", {}, SOFT, ggn.softmax, (3,), 1),
        ("CategoricalCrossentropy", {"label_smoothing": 0.2}, np.eye(3), ggn.softmax, (3,), 1),
        ("SparseCategoricalCrossentropy", {}, CLASSES[:, 0], ggn.hidden_softmax, (3,), 1),
        ("SparseCategoricalCrossentropy", {}, CLASSES[..., None], ggn.softmax, (2, 3), 2),
        ("BinaryCrossentropy", {}, BITS, ggn.hidden_sigmoid, (3,), 3),
        ("BinaryCrossentropy", {"label_smoothing": 0.2}, BITS, ggn.sigmoid, (3,), 3),
        ("BinaryCrossentropy", {}, BITS[:, 0], ggn.sigmoid, (1,), 1),
        ("BinaryCrossentropy", {}, BITS[:, :1], ggn.sigmoid, (), 1),
        ("MeanSquaredError", {}, BITS, ggn.identity, (3,), 3),
        ("MeanSquaredError", {}, BITS[:, 0], ggn.identity, (1,), 1),
        ("Poisson", {}, BITS, ggn.sigmoid, (3,), 1),
    ],
)
def test_the_empirical_fisher_is_of_the_gradients_of_the_loss(
    make: str, arguments: Any, labels: Any, link: ggn.Link, shape: tuple[int, ...], units: int
) -> None:
    """``(1/N) Σ g gᵀ`` with ``g = √(N·c)·∇(−log p) = N·∇h / √(N·c)``, and N·c = 1/units."""
    problem = Problem(getattr(keras.losses, make)(**arguments), shape, labels, link)
    model = ggn.network(shape)
    points = model.points()
    with tf.GradientTape() as tape:
        tape.watch(points)
        value = problem.value(*points)
    slopes = tf.reshape(tape.gradient(value, points)[0], [BATCH, -1])
    gradients = BATCH * np.sqrt(units) * np.einsum("no,nop->np", slopes, model.jacobians[0])
    expected = gradients.T @ gradients / BATCH
    np.testing.assert_allclose(fisher_of(problem, Empirical()), expected, atol=1e-10)


def test_units_of_an_example_are_drawn_independently() -> None:
    """Time steps do not mix: the second moment across steps is zero."""
    outputs = tf.reshape(tf.tile(tf.constant(LOGITS), [2 * 20_000]), [20_000, 2, 3])
    predictive = predictive_of(
        keras.losses.SparseCategoricalCrossentropy(from_logits=True), outputs
    )
    g = predictive.sampled_gradient(philox(5)).numpy()
    across = np.einsum("nk,nl->kl", g[:, 0], g[:, 1]) / len(g)
    assert np.abs(across).max() < 5.0 * 0.25 / np.sqrt(len(g))


def test_two_losses_are_drawn_independently() -> None:
    """Each loss of a model has its own random numbers."""
    outputs = repeated(50)
    loss = keras.losses.MeanSquaredError()
    observations = [observe(LossCall(loss, outputs, tf.identity(outputs))) for _ in range(2)]
    first, second = MonteCarlo().sum(observations, philox(0), lambda injected: injected)
    assert np.abs(np.corrcoef(np.ravel(first), np.ravel(second))[0, 1]) < 0.4


@pytest.mark.parametrize("shape", [(3,), (2, 3)])
def test_exact_refuses_many_outputs(shape: tuple[int, ...]) -> None:
    problem = Problem(keras.losses.MeanSquaredError(), shape, np.zeros((BATCH, *shape)))
    count = int(np.prod(shape))
    fisher_of(problem, Exact(count))
    with pytest.raises(ValueError, match=f"{count} here, more than max_exact_outputs={count - 1}"):
        fisher_of(problem, Exact(count - 1))


def gradient_of_log_prob(predictive: Predictive, targets: tf.Tensor) -> tf.Tensor:
    """∂(−log p(y))/∂logits by automatic differentiation of the tfp distribution."""
    with tf.GradientTape() as tape:
        tape.watch(predictive.target)
        negative = -tf.reduce_sum(
            type(predictive)(predictive.target).distribution.log_prob(targets)
        )
    return tape.gradient(negative, predictive.target)


def fisher_of(problem: Problem, estimator: Estimator, noise: Any = None) -> np.ndarray:
    model = ggn.network(problem.shape)
    return ggn.fisher(model, lambda z: [problem.call(*z)], estimator, noise)


def relabelled(problem: Problem) -> Problem:
    """The same problem with the labels of the examples exchanged."""
    return Problem(
        problem.loss,
        problem.shape,
        problem.labels[[1, 2, 0]],
        problem.link,
        problem.sample_weight,
        problem.mask,
    )
