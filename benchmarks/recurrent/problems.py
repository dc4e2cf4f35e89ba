"""Recurrent networks with their data, and the numbers that their optimizers are tuned by."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "examples"))

import copy_task
import ptb_lstm
from recurrent_optimizers import recurrent_optimizers

FIRST_ORDER = ("Adam", "SGD")

Optimizers = Callable[..., Mapping[str, Callable[[float, int], keras.optimizers.Optimizer]]]


@dataclasses.dataclass(frozen=True)
class Problem:
    """A recurrent network with its data.

    Attributes:
        name: For tables.
        updates: Of one training.
        train: Makes a model with an optimizer and trains it, with callbacks, for some epochs;
            returns the loss on data that it was not trained on.
        batches: Updates of an epoch.
        optimizers: Name → function of the tuned number and a seed.
        tried: Name → the numbers that are tried.
    """

    name: str
    updates: int
    train: Callable[[keras.optimizers.Optimizer, Sequence[keras.callbacks.Callback], int], float]
    batches: int
    optimizers: Mapping[str, Callable[[float, int], keras.optimizers.Optimizer]]
    tried: Mapping[str, Sequence[float]]


def penn_treebank(folder: pathlib.Path | None, updates: int) -> Problem:
    """Two LSTM layers of 200 units on words, 20 streams in pieces of 35.

    Args:
        folder: Of the text files; None for the small text of the example.
        updates: Of one training.

    Raises:
        ValueError: The folder has not two texts.
    """
    if folder is not None and len(list(folder.glob("*.txt"))) < 2:
        raise ValueError(
            f"--data {folder}: a folder with two text files (*.txt) is needed; without --data, "
            "Python's own help is read."
        )
    corpus = ptb_lstm.load_corpus(folder and str(folder))
    training, unseen = (
        _dataset(ptb_lstm.Pieces(words, 20, 35)) for words in (corpus.training, corpus.validation)
    )

    def train(optimizer: Any, callbacks: Sequence[Any], epochs: int) -> float:
        sizes = argparse.Namespace(batch_size=20, steps=35, units=200)
        model = ptb_lstm.language_model(corpus, sizes, optimizer)
        streams = ptb_lstm.FreshStreams()
        model.fit(
            training, epochs=epochs, callbacks=[streams, *callbacks], shuffle=False, verbose=0
        )
        return float(model.evaluate(unseen, callbacks=[streams], verbose=0))

    return Problem(
        "ptb",
        updates,
        train,
        len(training),
        _tunable(ptb_lstm.optimizers),
        _tried(kl_clip=(1e-2, 3e-2, 1e-1), adam=(3e-5, 1e-4, 3e-4, 1e-3), sgd=(1.0, 3.0, 10.0)),
    )


def _dataset(pieces: keras.utils.PyDataset) -> tf.data.Dataset:
    """The pieces in memory; between epochs tf.data waits long for its tuner otherwise."""
    inputs, targets = map(np.stack, zip(*(pieces[i] for i in range(len(pieces))), strict=True))
    options = tf.data.Options()
    options.autotune.enabled = False
    return tf.data.Dataset.from_tensor_slices((inputs, targets)).with_options(options)


def copying(length: int, updates: int) -> Problem:
    """An LSTM of 100 units that copies a sequence of symbols.

    Args:
        length: Of the sequence.
        updates: Of one training.
    """
    rng = np.random.default_rng(0)
    inputs, targets = copy_task.sequences(rng, 5000, length)
    unseen = copy_task.sequences(rng, 500, length)

    def train(optimizer: Any, callbacks: Sequence[Any], epochs: int) -> float:
        network = copy_task.copying_network(argparse.Namespace(length=length, units=100), optimizer)
        network.fit(
            inputs, targets, batch_size=100, epochs=epochs, callbacks=list(callbacks), verbose=0
        )
        return float(network.evaluate(*unseen, batch_size=100, verbose=0)[0])

    kl_clips = (1e-3, 3e-3, 1e-2) if length < 30 else (1e-4, 3e-4, 1e-3)
    return Problem(
        f"copy {length}",
        updates,
        train,
        50,
        _tunable(recurrent_optimizers),
        _tried(kl_clip=kl_clips, adam=(1e-3, 3e-3, 1e-2, 3e-2, 1e-1), sgd=(0.1, 0.3, 1.0, 3.0)),
    )


def _tunable(
    optimizers: Optimizers,
) -> dict[str, Callable[[float, int], keras.optimizers.Optimizer]]:
    """Functions of the learning rate (Adam, SGD) or `kl_clip` (KFAC, learning rate 0.3)."""
    names = list(optimizers())

    def bounded(name: str) -> Callable[[float, int], keras.optimizers.Optimizer]:
        return lambda kl_clip, seed: optimizers(kl_clip=kl_clip)[name](0.3, seed)

    return {name: optimizers()[name] if name in FIRST_ORDER else bounded(name) for name in names}


def _tried(
    kl_clip: Sequence[float], adam: Sequence[float], sgd: Sequence[float]
) -> dict[str, Sequence[float]]:
    of_first_order = {"Adam": adam, "SGD": sgd}
    return {name: of_first_order.get(name, kl_clip) for name in recurrent_optimizers()}
