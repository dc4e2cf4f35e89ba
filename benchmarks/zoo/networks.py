"""The networks of the zoo, built and not compiled; classifiers return logits.

The layer that makes the outputs comes last: Muon leaves that one to AdamW.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence

import keras
from keras import layers

from benchmarks.architectures import LearntPositions

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "examples"))

import copy_task
import ptb_lstm


def dense(sizes: Sequence[int], activation: str, code: int | None = None) -> keras.Model:
    """A network of dense layers.

    Args:
        sizes: Of the inputs, the hidden layers and the outputs.
        activation: Of the hidden layers.
        code: The hidden layer of this size is linear.
    """
    inputs, *hidden, outputs = sizes
    return keras.Sequential(
        [
            keras.Input((inputs,)),
            *(layers.Dense(n, None if n == code else activation) for n in hidden),
            layers.Dense(outputs),
        ]
    )


def small_convnet() -> keras.Model:
    """Two convolutions and two dense layers for 8×8 images, as in examples/quickstart.py."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(16, 3, padding="same", activation="relu"),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(10),
        ]
    )


def normalised_convnet(filters: Sequence[int] = (16, 32, 64)) -> keras.Model:
    """Convolutions with batch normalisation for 28×28 images; all but the first halve them.

    Args:
        filters: Of each convolution.
    """
    images = keras.Input((28, 28, 1))
    hidden = images
    for place, count in enumerate(filters):
        hidden = _normalised(hidden, count, strides=2 if place else 1)
    hidden = layers.GlobalAveragePooling2D()(hidden)
    return keras.Model(images, layers.Dense(10)(hidden))


def resnet20() -> keras.Model:
    """The residual network of He et al. 2016, §4.2, with 20 layers, for 32×32 images."""
    return residual_network(3)


def residual_network(blocks: int) -> keras.Model:
    """The same with 6n + 2 layers.

    Args:
        blocks: Of each width, n.
    """
    images = keras.Input((32, 32, 3))
    hidden = _normalised(images, 16)
    for filters, first in ((16, 1), (32, 2), (64, 2)):
        for strides in (first, *[1] * (blocks - 1)):
            inner = _normalised(hidden, filters, strides)
            inner = _normalised(inner, filters, activation=None)
            if strides > 1:
                hidden = _normalised(hidden, filters, strides, kernel=1, activation=None)
            hidden = layers.ReLU()(hidden + inner)
    hidden = layers.GlobalAveragePooling2D()(hidden)
    return keras.Model(images, layers.Dense(10)(hidden))


def _normalised(
    inputs: keras.KerasTensor,
    filters: int,
    strides: int = 1,
    kernel: int = 3,
    activation: str | None = "relu",
) -> keras.KerasTensor:
    """Convolution, batch normalisation, activation.

    The averages of the normalisation forget within some ten updates: in runs as short as these,
    Keras' momentum of 0.99 would evaluate the model with statistics of long ago.
    """
    hidden = layers.Conv2D(filters, kernel, strides, padding="same", use_bias=False)(inputs)
    hidden = layers.BatchNormalization(momentum=0.9)(hidden)
    return layers.Activation(activation)(hidden) if activation else hidden


def causal_transformer(
    characters: int, context: int, width: int = 128, blocks: int = 2
) -> keras.Model:
    """A small decoder: learnt positions, pre-norm blocks of attention and a gelu layer."""
    tokens = keras.Input((context,), dtype="int32")
    hidden = layers.Embedding(characters, width)(tokens)
    hidden = LearntPositions(name="position_embedding")(hidden)
    for _ in range(blocks):
        normal = layers.LayerNormalization()(hidden)
        hidden += layers.MultiHeadAttention(4, width // 4)(normal, normal, use_causal_mask=True)
        normal = layers.LayerNormalization()(hidden)
        hidden += layers.Dense(width)(layers.Dense(4 * width, activation="gelu")(normal))
    return keras.Model(tokens, layers.Dense(characters)(layers.LayerNormalization()(hidden)))


def word_lstm(words: int, streams: int, steps: int) -> keras.Model:
    """Two stateful LSTM layers of 200 units, as in examples/ptb_lstm.py."""
    corpus = argparse.Namespace(vocabulary=words)
    sizes = argparse.Namespace(batch_size=streams, steps=steps, units=200)
    return _not_compiled(ptb_lstm.language_model(corpus, sizes, keras.optimizers.SGD()))


def copying_lstm(length: int) -> keras.Model:
    """An LSTM of 100 units that writes down what it read, as in examples/copy_task.py."""
    sizes = argparse.Namespace(length=length, units=100)
    return _not_compiled(copy_task.copying_network(sizes, keras.optimizers.SGD()))


def _not_compiled(model: keras.Model) -> keras.Model:
    """The same layers without the metrics of the example, which Keras would keep for good."""
    return keras.Model(model.inputs[0], model.outputs[0])
