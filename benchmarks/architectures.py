"""Architectures that Keras users train: ``keras.applications``, and small ones of other kinds.

Every entry makes a model of few classes on small inputs, and one batch of data for it.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

CLASSES = 10
VOCABULARY, CONTEXT = 60, 12


@dataclasses.dataclass(frozen=True)
class Entry:
    """One architecture.

    Attributes:
        name: Of the architecture.
        family: Of which kind it is.
        make: Returns the model, built and not compiled.
        batch: Returns inputs and targets.
        loss: What `compile` takes; None for models that have a loss of their own.
        kl_clip: Of KFAC, for the coverage.
    """

    name: str
    family: str
    make: Callable[[], keras.Model]
    batch: Callable[[], tuple[Any, Any]]
    loss: Any = None
    kl_clip: float = 1e-3


def applications() -> list[Entry]:
    """Every architecture in ``keras.applications``, on its smallest square images."""
    makers = {
        name: maker for name, maker in vars(keras.applications).items() if inspect.isfunction(maker)
    }
    return [_application(name, maker) for name, maker in sorted(makers.items())]


def _application(name: str, maker: Callable[..., keras.Model]) -> Entry:
    family = next((known for known in _FAMILIES if name.startswith(known)), name)
    if family == "ResNet" and name.endswith("V2"):
        family = "ResNetV2"
    side = next((size for prefix, size in _SMALLEST.items() if name.startswith(prefix)), 32)

    def make() -> keras.Model:
        return maker(weights=None, input_shape=(side, side, 3), classes=CLASSES)

    loss, kl_clip = "sparse_categorical_crossentropy", _KL_CLIP.get(family, 1e-3)
    return Entry(name, family, make, lambda: _images(side), loss, kl_clip)


_FAMILIES = (
    "ConvNeXt",
    "DenseNet",
    "EfficientNetV2",
    "EfficientNet",
    "MobileNetV3",
    "NASNet",
    "ResNet",
    "VGG",
)

_SMALLEST = {"Inception": 75, "Xception": 71}
"""Sides of the smallest images that Keras allows, where they are not 32."""

_KL_CLIP = {"ConvNeXt": 1e-5}
"""Families that jump within their first steps else: scales that begin at 10⁻⁶ grow quickly."""


def others() -> list[Entry]:
    """Transformers, a U-Net, a siamese net, an auto-encoder with a train_step, several tasks."""
    crossentropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return [
        Entry("ViT-like", "transformer", vision_transformer, lambda: _images(16), crossentropy),
        Entry("GPT-like", "transformer", language_model, _tokens, crossentropy),
        Entry("U-Net", "segmentation", u_net, _segmentation, crossentropy),
        Entry("siamese", "siamese", siamese, _pairs, "binary_crossentropy"),
        Entry("VAE", "generative", VariationalAutoencoder.example, _digits),
        Entry(
            "multi-task",
            "multi-task",
            multi_task,
            _tasks,
            {"label": crossentropy, "value": "mse"},
        ),
    ]


def vision_transformer() -> keras.Model:
    """Patches, a class token, learnt positions, two pre-norm blocks."""
    images = keras.Input((16, 16, 3))
    patches = layers.Conv2D(32, 4, strides=4)(images)
    tokens = ClassToken()(layers.Reshape((16, 32))(patches))
    tokens = LearntPositions()(tokens)
    for _ in range(2):
        normal = layers.LayerNormalization()(tokens)
        tokens += layers.MultiHeadAttention(4, 8)(normal, normal)
        normal = layers.LayerNormalization()(tokens)
        tokens += layers.Dense(32)(layers.Dense(64, activation="gelu")(normal))
    return keras.Model(images, layers.Dense(CLASSES)(layers.LayerNormalization()(tokens)[:, 0]))


def language_model() -> keras.Model:
    """A causal decoder: tokens and positions, grouped-query attention, RMS normalisation."""
    tokens = keras.Input((CONTEXT,), dtype="int32")
    hidden = LearntPositions()(layers.Embedding(VOCABULARY, 32)(tokens))
    for _ in range(2):
        normal = layers.RMSNormalization()(hidden)
        hidden += layers.GroupQueryAttention(8, 4, 2)(normal, normal, use_causal_mask=True)
        normal = layers.RMSNormalization()(hidden)
        gate = layers.Dense(64, activation="silu", use_bias=False)(normal)
        hidden += layers.Dense(32, use_bias=False)(gate * layers.Dense(64, use_bias=False)(normal))
    return keras.Model(tokens, layers.Dense(VOCABULARY, use_bias=False)(hidden))


def u_net() -> keras.Model:
    """Two levels, transposed convolutions on the way up."""
    images = keras.Input((16, 16, 3))
    first = layers.Conv2D(8, 3, padding="same", activation="relu")(images)
    second = layers.Conv2D(16, 3, 2, padding="same", activation="relu")(first)
    second = layers.BatchNormalization()(second)
    bottom = layers.SeparableConv2D(32, 3, 2, padding="same", activation="relu")(second)
    up = layers.Conv2DTranspose(16, 3, 2, padding="same", activation="relu")(bottom)
    up = layers.Conv2D(16, 3, padding="same", activation="relu")(layers.Concatenate()([up, second]))
    up = layers.Conv2DTranspose(8, 2, 2)(up)
    return keras.Model(images, layers.Conv2D(CLASSES, 1)(layers.Concatenate()([up, first])))


def siamese() -> keras.Model:
    """One tower for two images; are they alike?"""
    tower = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(8, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(16, activation="tanh"),
        ]
    )
    left, right = keras.Input((8, 8, 1)), keras.Input((8, 8, 1))
    difference = layers.Subtract()([tower(left), tower(right)])
    alike = layers.Dense(1, activation="sigmoid")(difference * difference)
    return keras.Model([left, right], alike)


def multi_task() -> keras.Model:
    """A shared body, one head that classifies and one that regresses."""
    images = keras.Input((8, 8, 1))
    body = layers.Conv2D(8, 3, strides=2, activation="relu")(images)
    body = layers.Dense(32, activation="relu")(layers.Flatten()(layers.DepthwiseConv2D(2)(body)))
    heads = {"label": layers.Dense(CLASSES)(body), "value": layers.Dense(2)(body)}
    return keras.Model(images, heads)


@keras.saving.register_keras_serializable(package="architectures")
class ClassToken(layers.Layer):
    """Puts a learnt token before the others."""

    def build(self, input_shape: Any) -> None:
        self.token = self.add_weight(shape=(1, 1, input_shape[-1]), name="token")

    def call(self, inputs: Any) -> Any:
        token = keras.ops.broadcast_to(
            self.token, (keras.ops.shape(inputs)[0], 1, inputs.shape[-1])
        )
        return keras.ops.concatenate([token, inputs], axis=1)


@keras.saving.register_keras_serializable(package="architectures")
class LearntPositions(layers.Layer):
    """Adds a learnt vector to each position."""

    def build(self, input_shape: Any) -> None:
        self.positions = self.add_weight(shape=input_shape[1:], name="positions")

    def call(self, inputs: Any) -> Any:
        return inputs + self.positions


class VariationalAutoencoder(keras.Model):
    """Keras' own example: a train_step that calls encoder and decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                layers.Conv2D(8, 3, strides=2, activation="relu"),
                layers.Flatten(),
                layers.Dense(2 * 4),
            ]
        )
        self.decoder = keras.Sequential(
            [
                keras.Input((4,)),
                layers.Dense(16 * 4, activation="relu"),
                layers.Reshape((4, 4, 4)),
                layers.Conv2DTranspose(1, 4, 2, padding="same"),
            ]
        )
        self.reconstruction = keras.losses.BinaryCrossentropy(from_logits=True)
        self.seeds = keras.random.SeedGenerator(0)

    @classmethod
    def example(cls) -> VariationalAutoencoder:
        """A built one."""
        model = cls()
        model(np.zeros((1, 8, 8, 1), "float32"))
        return model

    def call(self, images: Any) -> Any:
        """Reconstructs without noise."""
        return self.decoder(self.encoder(images)[:, :4])

    def train_step(self, data: Any) -> dict[str, Any]:
        """Reconstruction and the divergence from the prior."""
        import tensorflow as tf

        images = data[0] if isinstance(data, tuple) else data
        with tf.GradientTape() as tape, self.optimizer.record() as record:
            mean, log_variance = tf.split(self.encoder(images, training=True), 2, axis=-1)
            noise = keras.random.normal(tf.shape(mean), seed=self.seeds)
            logits = self.decoder(mean + noise * tf.exp(0.5 * log_variance), training=True)
            divergence = -0.5 * (1 + log_variance - mean**2 - tf.exp(log_variance))
            loss = record.loss(self.reconstruction, images, logits)
            loss += tf.reduce_mean(divergence) / 16
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        return {"loss": loss}


def _images(side: int, count: int = 8) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(count, side, side, 3)).astype("float32")
    return images, np.arange(count) % CLASSES


def _tokens(count: int = 16) -> tuple[Any, Any]:
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, size=(count, CONTEXT + 1))
    return tokens[:, :-1], tokens[:, 1:]


def _segmentation(count: int = 8) -> tuple[Any, Any]:
    images = _images(16, count)[0]
    return images, (images[..., 0] > 0).astype("int32") + (images[..., 1] > 0)


def _digits(count: int = 16) -> tuple[Any, Any]:
    images = np.random.default_rng(0).uniform(size=(count, 8, 8, 1)).astype("float32")
    return images, images


def _pairs(count: int = 16) -> tuple[Any, Any]:
    images = _digits(count)[0]
    alike = np.arange(count) % 2
    others = np.where(alike[:, None, None, None] > 0, images, images[::-1])
    return [images, others], alike[:, None].astype("float32")


def _tasks(count: int = 16) -> tuple[Any, Any]:
    images = _digits(count)[0]
    values = np.stack([images.mean((1, 2, 3)), images.max((1, 2, 3))], axis=-1)
    return images, {"label": np.arange(count) % CLASSES, "value": values}
