"""Training steps taken apart: forward and backward pass, update."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import keras
import models
import numpy as np
import tensorflow as tf

import tfkfac

Arrays = list[np.ndarray]
Data = tuple[np.ndarray, np.ndarray]


def attached(
    optimizer: tfkfac.KFAC, factory: Callable[[], keras.Model] = models.sequential
) -> keras.Model:
    """A compiled model with its weights, in eager mode; the same weights each time."""
    keras.utils.set_random_seed(0)
    model = factory()
    model(models.data_of(factory)[0])
    model.compile(optimizer, models.crossentropy(), run_eagerly=True)
    return model


def gradients(model: keras.Model, data: Data | None = None) -> list[tf.Tensor]:
    """The gradients of a forward pass that the model's optimizer, if any, has recorded."""
    x, y = models.vectors() if data is None else data
    with tf.GradientTape() as tape:
        loss = model.compute_loss(x, y, model(x, training=True))
    return tape.gradient(loss, model.trainable_variables)


def apply(
    model: keras.Model, gradients: Sequence[tf.Tensor], optimizer: tfkfac.KFAC | None = None
) -> None:
    """An update by the model's own optimizer, or another."""
    (optimizer or model.optimizer).apply(gradients, model.trainable_variables)


def train(model: keras.Model, steps: int = 3) -> Arrays:
    """The weights after some steps on one batch."""
    for _ in range(steps):
        apply(model, gradients(model))
    return model.get_weights()
