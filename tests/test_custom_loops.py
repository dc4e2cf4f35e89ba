"""Training steps that Keras' `fit` does not know: a variational autoencoder and a GAN."""

from __future__ import annotations

from typing import Any

import keras
import models
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import tfkfac

PIXELS = 12
LATENT = 2


def _images(count: int = 16) -> np.ndarray:
    generator = np.random.default_rng(0)
    return (generator.random((count, PIXELS)) > generator.random(PIXELS)).astype("float32")


def _assert_all_statistics(optimizer: tfkfac.KFAC, *, blocks: int) -> None:
    """Every Kronecker block has seen inputs and gradients."""
    collection = optimizer.layer_collection
    assert len(collection.kronecker_blocks) == len(collection) == blocks
    for block in collection:
        for factor in block.factors.values():
            assert np.isfinite(factor).all()
            assert np.linalg.norm(factor) > 0


class Sampling(layers.Layer):
    """Uses (z_mean, z_log_var) to sample z."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.seed_generator = keras.random.SeedGenerator(1337)

    def call(self, inputs: Any) -> Any:
        z_mean, z_log_var = inputs
        noise = keras.random.normal(ops.shape(z_mean), seed=self.seed_generator)
        return z_mean + ops.exp(0.5 * z_log_var) * noise


def _encoder() -> keras.Model:
    inputs = keras.Input((PIXELS,))
    hidden = layers.Dense(6, activation="tanh", name="encoded")(inputs)
    z_mean = layers.Dense(LATENT, name="z_mean")(hidden)
    z_log_var = layers.Dense(LATENT, name="z_log_var")(hidden)
    return keras.Model(inputs, [z_mean, z_log_var, Sampling()([z_mean, z_log_var])])


def _decoder() -> keras.Model:
    inputs = keras.Input((LATENT,))
    hidden = layers.Dense(6, activation="tanh", name="decoded")(inputs)
    return keras.Model(inputs, layers.Dense(PIXELS, activation="sigmoid", name="pixels")(hidden))


class VAE(keras.Model):
    """https://keras.io/examples/generative/vae, with the two lines that KFAC asks for."""

    def __init__(self, encoder: keras.Model, decoder: keras.Model, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.encoder = encoder
        self.decoder = decoder
        self.total_loss_tracker = keras.metrics.Mean(name="total_loss")
        self.reconstruction_loss = keras.losses.BinaryCrossentropy()

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        return [self.total_loss_tracker]

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        with tf.GradientTape() as tape:
            with self.optimizer.record() as record:
                z_mean, z_log_var, z = self.encoder(data)
                reconstruction = self.decoder(z)
                reconstruction_loss = record.loss(
                    self.reconstruction_loss, data, reconstruction, weight=PIXELS
                )
            kl_loss = -0.5 * (1 + z_log_var - ops.square(z_mean) - ops.exp(z_log_var))
            total_loss = reconstruction_loss + ops.mean(ops.sum(kl_loss, axis=1))
        grads = tape.gradient(total_loss, self.trainable_weights)
        self.optimizer.apply_gradients(zip(grads, self.trainable_weights, strict=True))
        self.total_loss_tracker.update_state(total_loss)
        return {"loss": self.total_loss_tracker.result()}


@pytest.mark.parametrize("run_eagerly", [False, True])
def test_variational_autoencoder(run_eagerly: bool) -> None:
    vae = VAE(_encoder(), _decoder())
    vae.compile(optimizer=models.kfac(), run_eagerly=run_eagerly)
    history = vae.fit(_images(), batch_size=16, epochs=5, verbose=0).history["loss"]
    assert np.isfinite(history).all()
    assert history[-1] < history[0] - 0.1
    _assert_all_statistics(vae.optimizer, blocks=5)
    inputs = vae.optimizer.layer_collection["encoded"].factors["A"]
    rows = np.concatenate([_images(), np.ones((16, 1))], axis=1)
    np.testing.assert_allclose(inputs, rows.T @ rows / 16, atol=1e-5)


def test_variational_autoencoder_without_record_is_told_of_it() -> None:
    class Forgetful(VAE):
        def train_step(self, data: Any) -> dict[str, tf.Tensor]:
            with tf.GradientTape() as tape:
                _, _, z = self.encoder(data)
                loss = self.reconstruction_loss(data, self.decoder(z))
            gradients = tape.gradient(loss, self.trainable_weights)
            self.optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
            return {"loss": loss}

    vae = Forgetful(_encoder(), _decoder())
    vae.compile(optimizer=models.kfac(), run_eagerly=True)
    with pytest.raises(ValueError, match=r"with optimizer.record\(\) as record"):
        vae.fit(_images(), verbose=0)


@pytest.mark.parametrize("loss", ["binary_crossentropy", keras.losses.binary_crossentropy])
def test_loss_that_is_no_loss_object_is_refused(loss: Any) -> None:
    vae = VAE(_encoder(), _decoder())
    with (
        pytest.raises(ValueError, match=r"`loss` must be a keras.losses.Loss.*binary_crossentropy"),
        models.kfac(model=vae).record() as record,
    ):
        record.loss(loss, _images(), vae.decoder(vae.encoder(_images())[2]))


def _discriminator() -> keras.Sequential:
    return keras.Sequential(
        [
            keras.Input((PIXELS,)),
            layers.Dense(6, activation="leaky_relu", name="judge"),
            layers.Dense(1, name="verdict"),
        ],
        name="discriminator",
    )


def _generator() -> keras.Sequential:
    return keras.Sequential(
        [
            keras.Input((LATENT,)),
            layers.Dense(6, activation="leaky_relu", name="idea"),
            layers.Dense(PIXELS, activation="sigmoid", name="work"),
        ],
        name="generator",
    )


class GAN(keras.Model):
    """https://keras.io/guides/custom_train_step_in_tensorflow, with two lines more a player."""

    def __init__(self, discriminator: keras.Model, generator: keras.Model) -> None:
        super().__init__()
        self.discriminator = discriminator
        self.generator = generator
        self.d_loss_tracker = keras.metrics.Mean(name="d_loss")
        self.g_loss_tracker = keras.metrics.Mean(name="g_loss")
        self.seed_generator = keras.random.SeedGenerator(1337)
        self.built = True

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        return [self.d_loss_tracker, self.g_loss_tracker]

    def compile(  # type: ignore[override]
        self, d_optimizer: tfkfac.KFAC, g_optimizer: tfkfac.KFAC, loss_fn: Any, **arguments: Any
    ) -> None:
        super().compile(**arguments)
        self.d_optimizer = d_optimizer
        self.g_optimizer = g_optimizer
        self.loss_fn = loss_fn
        d_optimizer.attach(self.discriminator)
        g_optimizer.attach(self.generator)

    def train_step(self, real_images: Any) -> dict[str, tf.Tensor]:
        batch_size = ops.shape(real_images)[0]
        latent = keras.random.normal((batch_size, LATENT), seed=self.seed_generator)
        combined = ops.concatenate([self.generator(latent), real_images], axis=0)
        labels = ops.concatenate([ops.ones((batch_size, 1)), ops.zeros((batch_size, 1))], axis=0)
        with tf.GradientTape() as tape, self.d_optimizer.record() as record:
            d_loss = record.loss(self.loss_fn, labels, self.discriminator(combined))
        weights = self.discriminator.trainable_weights
        self.d_optimizer.apply(tape.gradient(d_loss, weights), weights)

        latent = keras.random.normal((batch_size, LATENT), seed=self.seed_generator)
        misleading = ops.zeros((batch_size, 1))
        with tf.GradientTape() as tape, self.g_optimizer.record() as record:
            verdicts = self.discriminator(self.generator(latent))
            g_loss = record.loss(self.loss_fn, misleading, verdicts)
        weights = self.generator.trainable_weights
        self.g_optimizer.apply(tape.gradient(g_loss, weights), weights)

        self.d_loss_tracker.update_state(d_loss)
        self.g_loss_tracker.update_state(g_loss)
        return {metric.name: metric.result() for metric in self.metrics}


@pytest.mark.parametrize("run_eagerly", [False, True])
def test_generative_adversarial_network(run_eagerly: bool) -> None:
    gan = GAN(_discriminator(), _generator())
    before = [player.get_weights() for player in (gan.discriminator, gan.generator)]
    d_optimizer, g_optimizer = models.kfac(), models.kfac(learning_rate=0.02)
    gan.compile(
        d_optimizer=d_optimizer,
        g_optimizer=g_optimizer,
        loss_fn=keras.losses.BinaryCrossentropy(from_logits=True),
        run_eagerly=run_eagerly,
    )
    history = gan.fit(_images(), batch_size=8, epochs=2, verbose=0).history
    for losses in history.values():
        assert np.isfinite(losses).all()
        assert np.ptp(losses) > 1e-4
    for old, player in zip(before, (gan.discriminator, gan.generator), strict=True):
        assert all(np.abs(a - b).max() > 0 for a, b in zip(old, player.get_weights(), strict=True))
    for optimizer in (d_optimizer, g_optimizer):
        _assert_all_statistics(optimizer, blocks=2)
        assert optimizer.iterations == 4


def test_weight_of_a_recorded_loss_scales_loss_and_curvature() -> None:
    def recorded(weight: float) -> tuple[tf.Tensor, list[tf.Tensor]]:
        keras.utils.set_random_seed(0)
        model, x = _generator(), _images()
        optimizer = models.kfac(model=model, fisher="exact", learning_rate=0.0)
        with tf.GradientTape() as tape, optimizer.record() as record:
            outputs = model(x[:, :LATENT])
            loss = record.loss(keras.losses.MeanSquaredError(), x, outputs, weight=weight)
        optimizer.apply(tape.gradient(loss, model.trainable_weights), model.trainable_weights)
        return loss, [block.to_dense() for block in optimizer.layer_collection]

    (plain, fisher), (weighted, weighted_fisher) = recorded(1.0), recorded(3.0)
    np.testing.assert_allclose(weighted, 3.0 * plain, rtol=1e-6)
    for one, other in zip(fisher, weighted_fisher, strict=True):
        np.testing.assert_allclose(other, 3.0 * one, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("in_graph", [False, True])
def test_two_optimizers_share_a_forward_pass(in_graph: bool) -> None:
    """Each takes its own half of an autoencoder; both see the whole of the pass."""
    parts = keras.Sequential(_encoder().layers[:2]), _generator()
    parts[0].add(layers.Dense(LATENT, name="code"))
    first, second = (models.kfac(model=part) for part in parts)
    for part, optimizer in zip(parts, (first, second), strict=True):
        optimizer.build(part.trainable_weights)

    def step(x: Any) -> None:
        with (
            tf.GradientTape(persistent=True) as tape,
            first.record() as record,
            second.record() as other,
        ):
            outputs = parts[1](parts[0](x))
            loss = record.loss(keras.losses.MeanSquaredError(), x, outputs)
            other.loss(keras.losses.MeanSquaredError(), x, outputs)
        for part, optimizer in zip(parts, (first, second), strict=True):
            optimizer.apply(tape.gradient(loss, part.trainable_weights), part.trainable_weights)

    (tf.function(step) if in_graph else step)(tf.constant(_images()))
    for optimizer in (first, second):
        _assert_all_statistics(optimizer, blocks=2)


def test_discriminator_called_twice_in_one_record() -> None:
    """Real and generated images in two calls, with two losses, are one batch of both kinds."""
    real, fake = _images(), 1 - _images()
    loss = keras.losses.BinaryCrossentropy(from_logits=True)

    def factors(calls: list[tuple[np.ndarray, np.ndarray]]) -> list[tf.Tensor]:
        keras.utils.set_random_seed(0)
        model = _discriminator()
        optimizer = models.kfac(model=model, fisher="exact", learning_rate=0.0)
        with tf.GradientTape() as tape, optimizer.record() as record:
            total = sum(
                record.loss(loss, labels, model(x, training=True), weight=1 / len(calls))
                for x, labels in calls
            )
        optimizer.apply(tape.gradient(total, model.trainable_weights), model.trainable_weights)
        return [block.to_dense() for block in optimizer.layer_collection]

    ones, zeros = np.ones((len(real), 1)), np.zeros((len(real), 1))
    together = np.concatenate([real, fake]), np.concatenate([ones, zeros])
    for two, one in zip(factors([(real, ones), (fake, zeros)]), factors([together]), strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-7)
