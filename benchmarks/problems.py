"""Networks and batches whose cost is measured; the numbers in them do not matter."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import keras
import numpy as np


@dataclasses.dataclass(frozen=True)
class Problem:
    """A network with a batch of synthetic data.

    Attributes:
        name: For tables.
        batch_size: Examples in a batch.
        network: Makes the model.
        batch: Makes (inputs, targets) for a number of examples.
        loss: Makes the loss.
    """

    name: str
    batch_size: int
    network: Callable[[], keras.Model]
    batch: Callable[[int], tuple[np.ndarray, np.ndarray]]
    loss: Callable[[], keras.losses.Loss]


def _autoencoder() -> keras.Model:
    sizes = [1000, 500, 250, 30, 250, 500, 1000]
    hidden = [keras.layers.Dense(n, activation=None if n == 30 else "tanh") for n in sizes]
    return keras.Sequential([keras.Input((784,)), *hidden, keras.layers.Dense(784)])


def _images_in_unit_interval(count: int) -> tuple[np.ndarray, np.ndarray]:
    images = np.random.default_rng(0).uniform(size=(count, 784)).astype("float32")
    return images, images


def _convnet() -> keras.Model:
    layers = [
        keras.layers.Conv2D(filters, 3, strides=strides, padding="same", activation="relu")
        for filters, strides in ((32, 1), (64, 2), (128, 2))
    ]
    return keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            *layers,
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(10),
        ]
    )


def _labelled_images(count: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    images = random.normal(size=(count, 32, 32, 3)).astype("float32")
    return images, random.integers(10, size=count)


PROBLEMS = {
    problem.name: problem
    for problem in (
        Problem(
            "autoencoder",
            1000,
            _autoencoder,
            _images_in_unit_interval,
            lambda: keras.losses.BinaryCrossentropy(from_logits=True),
        ),
        Problem(
            "convnet",
            128,
            _convnet,
            _labelled_images,
            lambda: keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        ),
    )
}
