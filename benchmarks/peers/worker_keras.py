"""Trains with tfkfac, or with an optimizer of Keras, as the parent asks (`serving`)."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tfkfac
from benchmarks.peers.problems import PROBLEMS, named_variables
from benchmarks.peers.serving import Archive, Trainer, serve
from benchmarks.zoo.data import Examples
from benchmarks.zoo.optimizers import optimizer as first_order


class KerasTrainer(Trainer):
    """The train step of a Keras model, as Keras compiles it, fed from memory.

    Args:
        problem: Its name.
        optimizer: "kfac", "kfac-default" or the name of one of Keras' own.
        options: Of the optimizer.
        archive: Weights and data.
    """

    def __init__(
        self, problem: str, optimizer: str, options: Mapping[str, Any], archive: Archive
    ) -> None:
        self.versions = {name: metadata.version(name) for name in ("tensorflow", "keras")}
        training = PROBLEMS[problem].training
        empty = np.zeros((0, *archive.shape))
        self._model = training.network(Examples(empty, empty, archive.classes))
        for name, variable in named_variables(self._model).items():
            variable.assign(archive.weights[name])
        made = _optimizer(optimizer, options, self._model)
        self._model.compile(made, training.loss(), loss_weights=training.loss_weight)

    def place(self, inputs: np.ndarray, targets: np.ndarray) -> Any:
        """Tensors."""
        return tf.constant(inputs), tf.constant(targets)

    def step(self, batch: Any) -> float:
        """One call of the step that `fit` calls."""
        return float(self._model.train_on_batch(*batch, return_dict=True)["loss"])


def _optimizer(
    name: str, options: Mapping[str, Any], model: keras.Model
) -> keras.optimizers.Optimizer:
    if name == "kfac-default":
        return tfkfac.KFAC(seed=0)
    if name != "kfac":
        return first_order(name, options["learning_rate"], model)
    given = dict(options)
    given.pop("first_damping", None)
    if given.pop("automatic"):
        given |= dict.fromkeys(("learning_rate", "momentum", "damping"), "auto")
    else:
        given["kl_clip"] = None  # As the peers have it.
    return tfkfac.KFAC(**given, method="cholesky", seed=0)


if __name__ == "__main__":
    serve(KerasTrainer, wake=lambda: tf.zeros([]) + 1.0)
