"""Small models, and data for them: one factory for each way to write a Keras model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

import tfkfac

FEATURES = 4
CLASSES = 3
IMAGE = (5, 5, 2)


def vectors(count: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and integer labels for the models of vectors."""
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(count, FEATURES)).astype("float32")
    return inputs, generator.integers(CLASSES, size=count)


def images(count: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and integer labels for the convolutional model."""
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(count, *IMAGE)).astype("float32")
    return inputs, generator.integers(CLASSES, size=count)


def data_of(factory: Callable[[], keras.Model]) -> tuple[np.ndarray, np.ndarray]:
    """The data that the models of a factory take."""
    return images() if factory is convolutional else vectors()


def crossentropy(**arguments: Any) -> keras.losses.Loss:
    """The loss of all models here, at their logits."""
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, **arguments)


def kfac(**arguments: Any) -> tfkfac.KFAC:
    """An optimizer whose steps are damped so well that rounding errors do not grow."""
    defaults = {
        "learning_rate": 0.05,
        "damping": 0.1,
        "kl_clip": None,
        "factor_update_every": 1,
        "inverse_update_every": 10,
        "seed": 1,
    }
    return tfkfac.KFAC(**{**defaults, **arguments})


def sequential() -> keras.Sequential:
    """Two dense layers."""
    return keras.Sequential(
        [
            keras.Input((FEATURES,)),
            keras.layers.Dense(5, activation="tanh", name="hidden"),
            keras.layers.Dense(CLASSES, name="logits"),
        ]
    )


def linear() -> keras.Sequential:
    """One dense layer without bias: the smallest model that has a block."""
    return keras.Sequential(
        [keras.Input((FEATURES,)), keras.layers.Dense(CLASSES, use_bias=False, name="logits")]
    )


def functional() -> keras.Model:
    """A skip connection."""
    inputs = keras.Input((FEATURES,))
    hidden = keras.layers.Dense(FEATURES, activation="relu", name="hidden")(inputs)
    merged = keras.layers.Add(name="sum")([inputs, hidden])
    return keras.Model(inputs, keras.layers.Dense(CLASSES, name="logits")(merged))


@keras.saving.register_keras_serializable(package="tests")
class WithTraining(keras.Model):
    """Subclassed; `call` has the argument `training`; weights come with the first call."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.hidden = keras.layers.Dense(5, activation="tanh", name="hidden")
        self.dropout = keras.layers.Dropout(0.1, seed=0)
        self.logits = keras.layers.Dense(CLASSES, name="logits")

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return self.logits(self.dropout(self.hidden(inputs), training=training))


@keras.saving.register_keras_serializable(package="tests")
class WithoutTraining(keras.Model):
    """Subclassed; `call` has inputs only; weights come with the first call."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.hidden = keras.layers.Dense(5, activation="tanh", name="hidden")
        self.logits = keras.layers.Dense(CLASSES, name="logits")

    def call(self, inputs: Any) -> Any:
        return self.logits(self.hidden(inputs))


@keras.saving.register_keras_serializable(package="tests")
class LayersFromBuild(keras.Model):
    """Subclassed; the layers themselves come with the first call."""

    def build(self, input_shape: Any) -> None:
        self.hidden = keras.layers.Dense(input_shape[-1] + 1, activation="tanh", name="hidden")
        self.logits = keras.layers.Dense(CLASSES, name="logits")
        super().build(input_shape)

    def call(self, inputs: Any) -> Any:
        return self.logits(self.hidden(inputs))


def nested() -> keras.Model:
    """A Functional model of a Sequential of a subclassed model."""
    inputs = keras.Input((FEATURES,))
    inner = keras.Sequential(
        [keras.Input((FEATURES,)), keras.layers.Dense(FEATURES, name="first"), WithoutTraining()],
        name="inner",
    )
    return keras.Model(inputs, keras.layers.Dense(CLASSES, name="last")(inner(inputs)))


def siamese() -> keras.Model:
    """One dense layer used twice, on halves of the input."""
    inputs = keras.Input((FEATURES,))
    shared = keras.layers.Dense(3, activation="tanh", name="shared")
    halves = [inputs[:, :2], inputs[:, 2:]]
    merged = keras.layers.Concatenate(name="both")([shared(half) for half in halves])
    return keras.Model(inputs, keras.layers.Dense(CLASSES, name="logits")(merged))


def convolutional() -> keras.Sequential:
    """Two convolutions and a dense layer."""
    return keras.Sequential(
        [
            keras.Input(IMAGE),
            keras.layers.Conv2D(3, 3, activation="relu", padding="same", name="conv_1"),
            keras.layers.Conv2D(2, 2, strides=2, activation="relu", name="conv_2"),
            keras.layers.Flatten(name="flatten"),
            keras.layers.Dense(CLASSES, name="logits"),
        ]
    )


def two_inputs_two_outputs(*, as_dict: bool) -> keras.Model:
    """Outputs "kind" (logits) and "size" (a number), as a dictionary or as a list."""
    left, right = keras.Input((2,), name="left"), keras.Input((3,), name="right")
    merged = keras.layers.Concatenate(name="both")([left, right])
    hidden = keras.layers.Dense(4, activation="tanh", name="hidden")(merged)
    kind = keras.layers.Dense(CLASSES, activation="softmax", name="kind")(hidden)
    size = keras.layers.Dense(1, name="size")(hidden)
    outputs = {"kind": kind, "size": size} if as_dict else [kind, size]
    return keras.Model([left, right], outputs)
