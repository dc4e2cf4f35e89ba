"""Handwritten digits and a network for them, for the examples on several devices."""

from __future__ import annotations

import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

Split = tuple[np.ndarray, np.ndarray]
"""Images [n, height, width, 1] in [0, 1], and labels [n]."""


def load_images(path: str | None) -> tuple[Split, Split]:
    """Loads a training and a test set.

    Args:
        path: Of MNIST's ``mnist.npz``; None for the digits of 8×8 pixels in scikit-learn.
    """
    if path is not None:
        with np.load(path) as data:
            train, test = (
                (data[f"x_{part}"][..., None].astype("float32") / 255.0, data[f"y_{part}"])
                for part in ("train", "test")
            )
        return train, test
    digits = load_digits()
    images = digits.images[..., None].astype("float32") / 16.0
    x_train, x_test, y_train, y_test = train_test_split(
        images, digits.target, test_size=0.25, stratify=digits.target, random_state=0
    )
    return (x_train, y_train), (x_test, y_test)


def convolutional_network(shape: tuple[int, ...]) -> keras.Model:
    """A small network for images of a shape."""
    return keras.Sequential(
        [
            keras.Input(shape),
            keras.layers.Conv2D(16, 3, activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(32, 2, activation="relu"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(10),
        ]
    )
