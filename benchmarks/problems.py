"""Networks and batches whose cost is measured; the numbers in them do not matter."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

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
        settings: Name → arguments of KFAC; None only observes the model and trains it with SGD.
    """

    name: str
    batch_size: int
    network: Callable[[], keras.Model]
    batch: Callable[[int], tuple[np.ndarray, np.ndarray]]
    loss: Callable[[], keras.losses.Loss]
    settings: Mapping[str, Mapping[str, Any] | None] = dataclasses.field(
        default_factory=lambda: {
            "KFAC 1/10": {"factor_update_every": 1, "inverse_update_every": 10},
            "KFAC 10/20": {"factor_update_every": 10, "inverse_update_every": 20},
        }
    )


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


def _language_model() -> keras.Model:
    """Two LSTM layers on words, as they are trained on the Penn Treebank."""
    words = keras.Input((35,), dtype="int32")
    hidden = keras.layers.Embedding(10_000, 200)(words)
    for _ in range(2):
        hidden = keras.layers.LSTM(200, return_sequences=True)(hidden)
    return keras.Model(words, keras.layers.Dense(10_000)(hidden))


def _words(count: int) -> tuple[np.ndarray, np.ndarray]:
    words = np.random.default_rng(0).integers(10_000, size=(count, 36))
    return words[:, :-1], words[:, 1:]


def _fixed(factors: int, inverses: int) -> dict[str, Any]:
    return {"factor_update_every": factors, "inverse_update_every": inverses}


def _automatic(factors: int, inverses: int) -> dict[str, Any]:
    """Learning rate, momentum and damping: "auto-everything" is all three."""
    names = ("learning_rate", "momentum", "damping", "kl_clip")
    return {**_fixed(factors, inverses), **dict.fromkeys(names, "auto")}


def _recurrent(form: str, factors: int) -> dict[str, Any]:
    return {"recurrent": form, "factor_update_every": factors, "inverse_update_every": 20}


PROBLEMS = {
    problem.name: problem
    for problem in (
        Problem(
            "autoencoder",
            1000,
            _autoencoder,
            _images_in_unit_interval,
            lambda: keras.losses.BinaryCrossentropy(from_logits=True),
            {
                "KFAC 1/10": _fixed(1, 10),
                "KFAC 10/20": _fixed(10, 20),
                "KFAC 1/5": _fixed(1, 5),
                "auto 1/5": _automatic(1, 5),
                "auto 10/20": _automatic(10, 20),
            },
        ),
        Problem(
            "convnet",
            128,
            _convnet,
            _labelled_images,
            lambda: keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        ),
        Problem(
            "lstm",
            20,
            _language_model,
            _words,
            lambda: keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            {
                "attached": None,
                "independent 1/20": _recurrent("independent", 1),
                "independent 10/20": _recurrent("independent", 10),
                "lggm_limit 1/20": _recurrent("lggm_limit", 1),
                "lggm_limit 10/20": _recurrent("lggm_limit", 10),
            },
        ),
    )
}
