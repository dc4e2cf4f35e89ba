"""Distributions and layers of all kinds, as a user would write them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import models
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from keras import layers

import tfkfac
from tfkfac import losses

tfd = tfp.distributions
N = 64


@pytest.fixture(autouse=True)
def _registries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(losses, "_DISTRIBUTIONS", dict(losses._DISTRIBUTIONS))
    return


def _normal(y: tf.Tensor) -> Any:
    return tfd.Normal(y[..., 0], tf.exp(y[..., 1]))


def _mixture(y: tf.Tensor) -> Any:
    logits, means, deviations = tf.split(y, 3, axis=-1)
    return tfd.MixtureSameFamily(
        tfd.Categorical(logits=logits), tfd.Normal(means, tf.exp(deviations))
    )


def _angle(y: tf.Tensor) -> Any:
    return tfd.VonMises(y[..., 0], tf.nn.softplus(y[..., 1]))


def _count(y: tf.Tensor) -> Any:
    return tfd.Poisson(log_rate=y[..., 0])


DISTRIBUTIONS: dict[str, tuple[Callable[[tf.Tensor], Any], int]] = {
    "heteroscedastic Normal": (_normal, 2),
    "mixture": (_mixture, 6),
    "VonMises": (_angle, 2),
    "Poisson": (_count, 1),
}


def _likelihood(distribution: Callable[[tf.Tensor], Any]) -> Callable[..., Any]:
    def loss(y_true: Any, y_pred: Any) -> Any:
        return -distribution(y_pred).log_prob(tf.reshape(y_true, [-1]))

    losses.register(loss, distribution)
    return loss


def _model(outputs: int) -> keras.Model:
    return keras.Sequential(
        [keras.Input((2,)), layers.Dense(8, "tanh"), layers.Dense(outputs, name="last")]
    )


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_loss_of_a_distribution_falls(name: str) -> None:
    distribution, outputs = DISTRIBUTIONS[name]
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, 2)).astype("float32")
    y = rng.poisson(np.exp(0.5 * x[:, 0])).astype("float32")
    model = _model(outputs)
    model.compile(tfkfac.KFAC(0.1, seed=0), _likelihood(distribution))
    history = model.fit(x, y, batch_size=N, epochs=15, verbose=0).history["loss"]
    assert history[-1] < history[0] - 0.05


@pytest.mark.parametrize("name", ["heteroscedastic Normal", "Poisson"])
def test_output_factor_is_the_fisher_of_the_distribution(name: str) -> None:
    """Normal: diag(1/σ², 2) at (mean, log σ); Poisson: the rate at its logarithm."""
    distribution, outputs = DISTRIBUTIONS[name]
    model = _model(outputs)
    last = model.get_layer("last")
    last.kernel.assign(tf.zeros(last.kernel.shape))
    last.bias.assign([0.3, -0.4][:outputs])
    model.compile(tfkfac.KFAC(0.0, seed=0, factor_decay=0.0), _likelihood(distribution))
    x, y = np.zeros((20_000, 2)), np.zeros(20_000)
    model.train_on_batch(x, y)
    fisher = np.diag([np.exp(0.8), 2.0]) if outputs == 2 else np.array([[np.exp(0.3)]])
    found = model.optimizer.layer_collection["last"].factors["G"]
    np.testing.assert_allclose(found, fisher, atol=0.08)


def _sparse(x: np.ndarray) -> tf.SparseTensor:
    return tf.sparse.from_dense(tf.constant(x))


@pytest.mark.parametrize("options", [{}, {"run_eagerly": True}])
def test_sparse_inputs_are_dense_ones(options: dict[str, Any]) -> None:
    x = np.random.default_rng(0).normal(size=(N, 6)).astype("float32")
    x[x < 0.5] = 0.0
    y = np.arange(N) % 3
    trained = []
    for sparse in (False, True):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((6,), sparse=sparse), layers.Dense(3)])
        model.compile(models.kfac(), models.crossentropy(), **options)
        data = tf.data.Dataset.from_tensors((_sparse(x) if sparse else x, y))
        model.fit(data, epochs=3, verbose=0)
        trained.append(model.get_weights())
    for dense, found in zip(*trained, strict=True):
        np.testing.assert_allclose(found, dense, atol=1e-5)


def test_constraints_are_kept() -> None:
    model = keras.Sequential(
        [
            keras.Input((models.FEATURES,)),
            layers.Dense(8, "tanh", kernel_constraint="non_neg", name="constrained"),
            layers.Dense(models.CLASSES),
        ]
    )
    model.compile(models.kfac(), models.crossentropy())
    before = model.get_layer("constrained").kernel.numpy()
    model.fit(*models.vectors(), batch_size=8, epochs=2, verbose=0)
    after = model.get_layer("constrained").kernel.numpy()
    assert (after >= 0).all() and np.abs(after - np.maximum(before, 0)).max() > 0


@pytest.mark.parametrize("options", [{}, {"run_eagerly": True}, {"jit_compile": True}])
def test_layer_distributed_over_time_is_used_at_every_step(options: dict[str, Any]) -> None:
    """The same factors as of the layer on the whole sequence."""
    x = np.random.default_rng(0).normal(size=(N, 5, 4)).astype("float32")
    y = np.arange(N) % 3
    blocks = []
    for wrapped in (False, True):
        keras.utils.set_random_seed(0)
        inner = layers.Dense(3, activation="tanh", name="inner")
        outer = layers.TimeDistributed(inner) if wrapped else inner
        model = keras.Sequential([keras.Input((5, 4)), outer, layers.Flatten(), layers.Dense(3)])
        model.compile(models.kfac(), models.crossentropy(), **options)
        model.train_on_batch(x, y)
        blocks.append(model.optimizer.layer_collection["inner"])
    whole, distributed = blocks
    assert distributed.uses == whole.uses == 5
    for key in ("A", "G"):
        np.testing.assert_allclose(distributed.factors[key], whole.factors[key], atol=1e-5)


def test_bidirectional_wrapper_has_all_its_variables_under_curvature() -> None:
    model = keras.Sequential(
        [keras.Input((5, 4)), layers.Bidirectional(layers.LSTM(3)), layers.Dense(3)]
    )
    x, y = np.random.default_rng(0).normal(size=(N, 5, 4)), np.arange(N) % 3
    model.compile(models.kfac(), models.crossentropy())
    history = model.fit(x, y, batch_size=N, epochs=4, verbose=0).history["loss"]
    assert model.optimizer.layer_collection.coverage() == 1.0
    assert history[-1] < history[0]


@pytest.mark.parametrize("options", [{}, {"run_eagerly": True}])
def test_rematerialised_activations_change_nothing(options: dict[str, Any]) -> None:
    trained = []
    for mode in (None, "activations"):
        keras.utils.set_random_seed(0)
        with keras.RematScope(mode=mode):
            model = models.functional()
        model.compile(models.kfac(), models.crossentropy(), **options)
        model.fit(*models.vectors(), batch_size=8, epochs=2, shuffle=False, verbose=0)
        trained.append(model.get_weights())
    for plain, found in zip(*trained, strict=True):
        np.testing.assert_allclose(found, plain, atol=1e-6)


def test_rematerialised_layer_falls_back() -> None:
    with keras.RematScope(mode="list_of_layers", layer_names=["hidden"]):
        model = models.functional()
    (block,) = tfkfac.LayerCollection.scan(model).fallbacks
    assert block.name == "hidden" and "rematerialised" in str(block.reason)


def test_predicted_memory_is_what_is_allocated() -> None:
    """All that the optimizer makes, but Keras' own, the momentum and the seeds of the model."""
    inputs = keras.Input((8, 8, 4))
    hidden = layers.SeparableConv2D(6, 3)(layers.BatchNormalization()(inputs))
    hidden = layers.Conv2DTranspose(4, 3, strides=2)(layers.DepthwiseConv2D(3)(hidden))
    hidden = layers.Reshape((-1, 4))(hidden)
    hidden += layers.MultiHeadAttention(2, 4)(hidden, hidden)
    model = keras.Model(inputs, layers.LSTM(3)(hidden))
    optimizer = models.kfac(recurrent="lggm_limit")
    model.compile(optimizer, "mse")
    optimizer.build(model.trainable_variables)
    blocks = optimizer.layer_collection.blocks
    predicted = sum(block.state_size * block.bytes_each for block in blocks)
    made = {id(v): v for block in blocks for v in getattr(block, "state", ())}
    allocated = sum(int(np.prod(v.shape)) * 4 for v in made.values())
    assert predicted == allocated
    counts, momenta = optimizer._counts, len(model.trainable_variables)
    seeds = optimizer._seeds_of_model
    eigenvalues = optimizer._eigenvalues
    assert eigenvalues.shape == (len(optimizer.layer_collection.curvature_blocks),)
    assert len(optimizer._state) == len(made) + len(counts) + len(seeds) + momenta + 1
    assert all(count.shape == () for count in counts)


def test_very_wide_layer_does_not_ask_for_the_memory_of_its_factor() -> None:
    """VGG's first dense layer: A would take 2.5 GB."""
    model = keras.Sequential([keras.Input((25_088,)), layers.Dense(4, name="wide")])
    collection = tfkfac.LayerCollection.scan(model)
    assert collection["wide"].factor_shapes == {"A": (25_089,), "G": (4, 4)}
    model.compile(tfkfac.KFAC(0.1, seed=0), models.crossentropy())
    x, y = np.random.default_rng(0).normal(size=(8, 25_088)), np.arange(8) % 4
    history = model.fit(x, y, batch_size=8, epochs=10, verbose=0).history["loss"]
    assert history[-1] < history[0]
