"""The problems of the zoo: a network, a loss, real data, and a budget."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping

import keras
import numpy as np

from benchmarks.zoo import data, networks
from benchmarks.zoo.data import Examples


@dataclasses.dataclass(frozen=True)
class Problem:
    """A network with its training data.

    Attributes:
        name: For tables.
        file: Of the data, in the folder of all data; None where none is needed.
        examples: Reads the data from a folder.
        network: Makes the model for this data.
        loss: Makes the loss.
        batch_size: Examples of an update.
        updates: Of one training, at most.
        seconds: In training steps, at most.
        smoothing: Updates over whose losses the mean is taken.
        loss_weight: Factor of the loss.
        centres: First-order optimizer → the middle of the learning rates that are tried (a power of
            ten), where the usual one does not suit.
        clipnorm: First-order gradients are clipped to this norm; None does not clip.
    """

    name: str
    file: str | None
    examples: Callable[[pathlib.Path | None], Examples]
    network: Callable[[Examples], keras.Model]
    loss: Callable[[], keras.losses.Loss]
    batch_size: int
    updates: int
    seconds: float = 30.0
    smoothing: int = 25
    loss_weight: float | None = None
    centres: Mapping[str, float] = dataclasses.field(default_factory=dict)
    clipnorm: float | None = None


def _classes() -> keras.losses.Loss:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _digits(_: pathlib.Path | None) -> Examples:
    return Examples(*data.digits())


def _flat_digits(_: pathlib.Path | None) -> Examples:
    images, labels = data.digits()
    return Examples(images.reshape(-1, 64), labels)


def _mnist(folder: pathlib.Path | None) -> Examples:
    images, labels = data.mnist(folder)
    return Examples(images[..., None], labels)


def _reconstructed(folder: pathlib.Path | None) -> Examples:
    images = data.mnist(folder)[0].reshape(-1, 784)
    return Examples(images, images)


def _rotated(folder: pathlib.Path | None) -> Examples:
    images, angles = data.rotated(data.mnist(folder)[0][:20_000])
    return Examples(images.reshape(-1, 784), angles)


def _cifar(folder: pathlib.Path | None) -> Examples:
    return Examples(*data.cifar10(folder, 20_000))


def _flat_cifar(folder: pathlib.Path | None) -> Examples:
    images, labels = data.cifar10(folder, 20_000)
    return Examples(images.reshape(-1, 3072), labels)


STREAMS, STEPS = 20, 35
"""Of the words: streams side by side, in pieces of so many words."""


def _words(folder: pathlib.Path | None) -> Examples:
    corpus = networks.ptb_lstm.load_corpus(str(data.require_file(folder, "ptb")))
    pieces = networks.ptb_lstm.Pieces(corpus.training, STREAMS, STEPS)
    inputs, targets = zip(*(pieces[i] for i in range(len(pieces))), strict=True)
    inputs, targets = (np.concatenate(each).astype("int32") for each in (inputs, targets))
    return Examples(inputs, targets, corpus.vocabulary, streams=True)


LENGTH = 10
"""Symbols to copy."""


def _copies(_: pathlib.Path | None) -> Examples:
    rng = np.random.default_rng(0)
    return Examples(*networks.copy_task.sequences(rng, 5000, LENGTH))


CONTEXT = 64
"""Characters that the transformer reads."""

AUTOENCODER = (784, 1000, 500, 250, 30, 250, 500, 1000, 784)


PROBLEMS = {
    problem.name: problem
    for problem in (
        Problem(
            "digits-mlp",
            None,
            _flat_digits,
            lambda _: networks.dense([64, 100, 10], "tanh"),
            _classes,
            batch_size=256,
            updates=1000,
            seconds=10,
            smoothing=7,  # One pass over the data.
        ),
        Problem(
            "digits-convnet",
            None,
            _digits,
            lambda _: networks.small_convnet(),
            _classes,
            batch_size=256,
            updates=1000,
            seconds=20,
            smoothing=7,
        ),
        Problem(
            "mnist-autoencoder",
            "mnist.npz",
            _reconstructed,
            lambda _: networks.dense(AUTOENCODER, "tanh", code=30),
            lambda: keras.losses.BinaryCrossentropy(from_logits=True),
            batch_size=1000,
            updates=1000,
            smoothing=10,
            loss_weight=784.0,  # Keras takes the mean over the pixels; this is the sum over them.
            centres={"SGD": 1e-3},
        ),
        Problem(
            "mnist-rotation",
            "mnist.npz",
            _rotated,
            lambda _: networks.dense([784, 500, 750, 500, 250, 100, 1], "tanh"),
            keras.losses.MeanSquaredError,
            batch_size=500,
            updates=2000,
            centres={"SGD": 1e-2},
        ),
        Problem(
            "mnist-convnet",
            "mnist.npz",
            _mnist,
            lambda _: networks.normalised_convnet(),
            _classes,
            batch_size=256,
            updates=2000,
        ),
        Problem(
            "cifar-mlp",
            "cifar10.npz",
            _flat_cifar,
            lambda _: networks.dense([3072, 3000, 2000, 1500, 1000, 250, 10], "relu"),
            _classes,
            batch_size=500,
            updates=1000,
            smoothing=5,
            centres={"Adam": 1e-4, "AdamW": 1e-4, "Muon": 1e-3},
        ),
        Problem(
            "cifar-resnet20",
            "cifar10.npz",
            _cifar,
            lambda _: networks.resnet20(),
            _classes,
            batch_size=128,
            updates=1000,
            smoothing=10,
        ),
        Problem(
            "ptb-lstm",
            "ptb",
            _words,
            lambda examples: networks.word_lstm(examples.classes, STREAMS, STEPS),
            _classes,
            batch_size=STREAMS,
            updates=1000,
            centres={"SGD": 1.0},
            clipnorm=1.0,
        ),
        Problem(
            "copy-task",
            None,
            _copies,
            lambda _: networks.copying_lstm(LENGTH),
            _classes,
            batch_size=100,
            updates=2000,
            centres={"SGD": 1.0, "Adam": 1e-2, "AdamW": 1e-2},
            clipnorm=1.0,
        ),
        Problem(
            "gpt-ptb",
            "ptb",
            lambda folder: data.characters(folder, CONTEXT, 1_000_000),
            lambda examples: networks.causal_transformer(examples.classes, CONTEXT),
            _classes,
            batch_size=64,
            updates=1000,
            clipnorm=1.0,
        ),
    )
}
