"""Losses: which are supported, how one is registered, and the weight of each unit."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfkfac
from tfkfac import losses
from tfkfac.fisher import Exact
from tfkfac.given_distributions import Registered, Unknown
from tfkfac.losses import predictive_of
from tfkfac.noise import PhiloxNoise
from tfkfac.observation import LossCall, observe
from tfkfac.predictive import Bernoulli, Categorical, Normal

ROWS = 8


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(losses, "_DISTRIBUTIONS", dict(losses._DISTRIBUTIONS))


def dense(units: int, shape: tuple[int, ...] | None = None) -> keras.Model:
    """One layer, on two features."""
    layers = [keras.Input((2,)), keras.layers.Dense(units, name="dense")]
    return keras.Sequential(layers if shape is None else [*layers, keras.layers.Reshape(shape)])


def fit(model: keras.Model, y: Any, **arguments: Any) -> None:
    """Two steps."""
    x = np.random.default_rng(0).normal(size=(len(y), 2)).astype("float32")
    model.fit(x, y, batch_size=len(y), epochs=2, verbose=0, shuffle=False, **arguments)


def cubic(y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
    """A loss that tfkfac has never heard of."""
    return keras.ops.mean(keras.ops.abs(y_true - y_pred) ** 3, axis=-1)


class Cubic(keras.losses.Loss):
    """Another."""

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        return cubic(y_true, y_pred)


class Asymmetric(keras.losses.MeanSquaredError):
    """Another, which only looks like one that is known."""

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        return keras.ops.mean(keras.ops.softplus(y_pred - y_true), axis=-1)


class NamedDifferently(keras.losses.MeanSquaredError):
    """A squared loss with a constructor of its own."""

    def __init__(self) -> None:
        super().__init__(name="renamed")


# --- which losses are supported ------------------------------------------------------------


@pytest.mark.parametrize(
    "loss",
    [
        None,
        "mse",
        "MSE",
        "mean_squared_error",
        "MeanSquaredError",
        "bce",
        "binary_crossentropy",
        "categorical_crossentropy",
        "SparseCategoricalCrossentropy",
        "crossentropy",
        keras.losses.mean_squared_error,
        keras.losses.sparse_categorical_crossentropy,
        keras.losses.BinaryCrossentropy,
        keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1),
        NamedDifferently(),
        ["mse", None, keras.losses.binary_crossentropy],
        {"a": {"b": "mse", "c": [keras.losses.BinaryCrossentropy()]}, "d": None},
    ],
)
def test_supported(loss: Any) -> None:
    losses.require_supported(loss)


@pytest.mark.parametrize(
    ("loss", "name"),
    [
        ("poisson", "poisson"),
        (keras.losses.Huber(), "huber"),
        (keras.losses.Huber, "huber"),
        (cubic, "cubic"),
        (Cubic(), "cubic"),
        (Asymmetric(), "mean_squared_error"),
        (["mse", "hinge"], "hinge"),
        ({"a": "mse", "b": {"c": "kl_divergence"}}, "kl_divergence"),
    ],
)
def test_refused_with_both_ways_out(loss: Any, name: str) -> None:
    with pytest.raises(ValueError, match=name) as refusal:
        losses.require_supported(loss)
    assert "tfkfac.losses.register(" in str(refusal.value)
    assert "fisher='empirical'" in str(refusal.value)


@pytest.mark.parametrize("loss", ["mae", "mean_absolute_error", keras.losses.MeanAbsoluteError()])
def test_absolute_error_is_refused_with_the_reason(loss: Any) -> None:
    with pytest.raises(ValueError, match="Laplace") as refusal:
        losses.require_supported(loss)
    assert "second derivative is zero" in str(refusal.value)
    assert "register" in str(refusal.value)
    assert "fisher='empirical'" in str(refusal.value)


@pytest.mark.parametrize("loss", ["mae", Cubic(), {"dense": cubic}])
def test_refused_at_compile(loss: Any) -> None:
    with pytest.raises(ValueError, match=r"tfkfac\.losses\.register"):
        dense(2).compile(tfkfac.KFAC(), loss)


@pytest.mark.parametrize("loss", ["mae", Cubic(), cubic])
def test_any_loss_trains_on_the_empirical_fisher(loss: Any) -> None:
    model = dense(2)
    model.compile(tfkfac.KFAC(1e-3, fisher="empirical"), loss, run_eagerly=True)
    before = model.get_weights()[0]
    fit(model, np.ones((ROWS, 2)))
    assert np.isfinite(model.get_weights()[0]).all()
    assert np.abs(model.get_weights()[0] - before).max() > 0


@pytest.mark.parametrize(
    ("loss", "kind"),
    [
        (keras.losses.CategoricalCrossentropy(), Categorical),
        (keras.losses.SparseCategoricalCrossentropy(), Categorical),
        (keras.losses.BinaryCrossentropy(), Bernoulli),
        (keras.losses.MeanSquaredError(), Normal),
        (NamedDifferently(), Normal),
        (keras.losses.MeanAbsoluteError(), Unknown),
        (Asymmetric(), Unknown),
    ],
)
def test_the_distribution_of_a_loss(loss: Any, kind: type) -> None:
    assert type(predictive_of(loss, tf.constant([[0.2, 0.8]]))) is kind


def test_an_unknown_loss_says_so_when_it_is_sampled() -> None:
    predictive = predictive_of(Cubic(), tf.zeros([2, 2]))
    with pytest.raises(ValueError, match="cubic"):
        predictive.sampled_gradient(None)
    with pytest.raises(ValueError, match="cubic"):
        predictive.root_column(tf.constant(0))
    with pytest.raises(ValueError, match="cubic"):
        _ = predictive.distribution


# --- registering ---------------------------------------------------------------------------


def poisson_nll(y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
    """−log p up to a constant, of a log-rate, as a mean over the last axis."""
    return keras.ops.mean(keras.ops.exp(y_pred) - y_true * y_pred, axis=-1)


class PoissonLoss(keras.losses.Loss):
    """The same as a class."""

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        return poisson_nll(y_true, y_pred)


class Twin(keras.losses.Loss):
    """The squared loss, which tfkfac cannot tell it is."""

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        return keras.losses.mean_squared_error(y_true, y_pred)


class LogRatePoisson(tfp.distributions.Poisson):
    """A distribution whose class alone leads from y_pred to it."""

    def __init__(self, log_rate: tf.Tensor) -> None:
        super().__init__(log_rate=log_rate)


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(
    ("key", "loss", "distribution", "fisher"),
    [
        (poisson_nll, poisson_nll, lambda y: tfp.distributions.Poisson(log_rate=y), np.exp),
        (PoissonLoss, PoissonLoss(), LogRatePoisson, np.exp),
        (
            keras.losses.mean_absolute_error,
            "mae",
            lambda y: tfp.distributions.Laplace(y, 1.0),
            np.ones_like,
        ),
    ],
    ids=["function", "class", "absolute error"],
)
def test_a_registered_distribution_in_training(
    key: Any, loss: Any, distribution: Any, fisher: Any
) -> None:
    """G is the distribution's Fisher, by the ½ of the mean over two outputs."""
    losses.register(key, distribution)
    model = dense(2)
    model.layers[0].kernel.assign(tf.zeros([2, 2]))
    model.layers[0].bias.assign([0.5, -1.0])
    optimizer = tfkfac.KFAC(learning_rate=0.0, seed=1)
    model.compile(optimizer, loss)
    fit(model, np.ones((20_000, 2)))
    expected = np.diag(fisher([0.5, -1.0])) / 2.0
    np.testing.assert_allclose(
        optimizer.layer_collection["dense"].factors["G"], expected, atol=0.03
    )


@pytest.mark.usefixtures("registry", "float64")
def test_a_registered_twin_weighs_as_the_original() -> None:
    losses.register(Twin, lambda y: tfp.distributions.Normal(y, tf.cast(0.5**0.5, y.dtype)))
    outputs, labels = tf.random.normal([3, 4, 2], dtype=tf.float64), tf.zeros([3, 4, 2])
    weights = np.arange(12.0).reshape(3, 4)
    pair = [
        observe(LossCall(loss, labels, outputs, weights))
        for loss in (Twin(), keras.losses.MeanSquaredError())
    ]
    assert isinstance(pair[0].predictive, Registered)
    np.testing.assert_allclose(pair[0].root_weights, pair[1].root_weights)
    gradients = [o.inject(o.predictive.label_gradient(tf.zeros_like(outputs))) for o in pair]
    np.testing.assert_allclose(*gradients, atol=1e-12)


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_labels_of_a_registered_loss(shape: tuple[int, ...]) -> None:
    """Labels are cast, squeezed and expanded as Keras' losses do: integers too."""
    losses.register(PoissonLoss, lambda y: tfp.distributions.Poisson(log_rate=y))
    outputs, labels = np.array([[0.1], [-0.4], [1.0]], "float32"), np.array([0, 2, 1])
    predictive = predictive_of(PoissonLoss(), tf.constant(outputs))
    gradient = predictive.label_gradient(tf.constant(labels.reshape(shape)))
    np.testing.assert_allclose(gradient, np.exp(outputs) - labels[:, None], rtol=1e-5)


@pytest.mark.usefixtures("registry")
def test_a_registered_distribution_has_no_exact_fisher() -> None:
    losses.register(Cubic, tfp.distributions.Poisson)
    observation = observe(LossCall(Cubic(), tf.ones([2, 2]), tf.ones([2, 2])))
    with pytest.raises(ValueError, match="fisher='mc'"):
        Exact(8).sum([observation], PhiloxNoise(0, tf.constant(0)), lambda gradients: gradients)


@pytest.mark.parametrize(
    ("loss", "distribution", "named"),
    [
        ("mae", tfp.distributions.Laplace, "loss"),
        (keras.losses.MeanAbsoluteError(), tfp.distributions.Laplace, "loss"),
        (cubic, "laplace", "distribution"),
    ],
)
def test_what_cannot_be_registered(loss: Any, distribution: Any, named: str) -> None:
    with pytest.raises(ValueError, match=f"`{named}`"):
        losses.register(loss, distribution)
