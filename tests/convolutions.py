"""Convolutions as lists of patches, independent of tfkfac, and blocks to compare with them."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from reference import Array, input_factor, relative_error, split_groups, with_ones

from tfkfac.blocks import ConvBlock, Use
from tfkfac.blocks.use import UseWeights
from tfkfac.blocks.window import Window


@dataclasses.dataclass(frozen=True)
class Convolution:
    """A 2-D convolution, as a list of patches; images are ``[N, height, width, channels]``."""

    size: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: str = "valid"
    groups: int = 1
    channels_first: bool = False

    def output_shape(self, images: Array) -> tuple[int, int]:
        """Height and width of the output, from TensorFlow's documentation of padding."""
        height, width = (self._axis(images.shape[axis + 1], axis)[0] for axis in range(2))
        return height, width

    def patches(self, images: Array) -> Array:
        """``[N, height, width, kh, kw, channels]``, zeros where a patch leaves the image."""
        heights, widths = self.output_shape(images)
        patches = np.zeros((len(images), heights, widths, *self.size, images.shape[3]))
        for n, y, x, i, j in itertools.product(*map(range, patches.shape[:5])):
            row, column = self._position(images, 0, y, i), self._position(images, 1, x, j)
            if 0 <= row < images.shape[1] and 0 <= column < images.shape[2]:
                patches[n, y, x, i, j] = images[n, row, column]
        return patches

    def rows(self, images: Array, bias: bool) -> Array:
        """``[groups, places, kh·kw·channels/groups (+1)]`` of images in the layer's own format."""
        images = images.transpose(0, 2, 3, 1) if self.channels_first else images
        patches = np.stack(np.split(self.patches(images), self.groups, axis=-1))
        places = int(np.prod(patches.shape[1:4]))
        return with_ones(patches.reshape(self.groups, places, -1), bias)

    def gradient_rows(self, gradients: Array) -> Array:
        """``[groups, places, filters/groups]`` of gradients in the layer's own format."""
        gradients = gradients.transpose(0, 2, 3, 1) if self.channels_first else gradients
        return split_groups(gradients.reshape(-1, gradients.shape[-1]), self.groups)

    def _position(self, images: Array, axis: int, place: int, tap: int) -> int:
        before = self._axis(images.shape[axis + 1], axis)[1]
        return place * self.strides[axis] + tap * self.dilation[axis] - before

    def _axis(self, length: int, axis: int) -> tuple[int, int]:
        """Output locations along an axis, and the padding before it."""
        extent = (self.size[axis] - 1) * self.dilation[axis] + 1
        if self.padding == "valid":
            return int(np.ceil((length - extent + 1) / self.strides[axis])), 0
        places = int(np.ceil(length / self.strides[axis]))
        return places, max((places - 1) * self.strides[axis] + extent - length, 0) // 2


@dataclasses.dataclass(frozen=True)
class Case:
    """A convolution and the sizes of what it is applied to."""

    geometry: Convolution
    batch: int = 2
    image: tuple[int, int] = (5, 6)
    channels: int = 2
    filters: int = 2
    bias: bool = True
    weights: str = "none"

    def block(self, method: str = "cholesky") -> ConvBlock:
        g = self.geometry
        kernel = keras.Variable(
            np.zeros((*g.size, self.channels // g.groups, self.filters)), dtype="float64"
        )
        bias = keras.Variable(np.zeros(self.filters), dtype="float64") if self.bias else None
        window = Window(g.size, g.strides, g.dilation, g.padding, g.channels_first)
        return ConvBlock(
            keras.layers.Layer(), kernel, bias, window=window, groups=g.groups, method=method
        )

    def images(self, rng: np.random.Generator) -> Array:
        return self._format(rng.normal(size=(self.batch, *self.image, self.channels)))

    def gradients(self, rng: np.random.Generator) -> Array:
        return self._format(rng.normal(size=(self.batch, *self.places, self.filters)))

    def omega(self, rng: np.random.Generator) -> Array | None:
        shapes = {"places": (self.batch, *self.places), "examples": (self.batch, 1, 1)}
        return None if self.weights == "none" else rng.uniform(0.1, 2, size=shapes[self.weights])

    @property
    def places(self) -> tuple[int, int]:
        return self.geometry.output_shape(np.zeros((1, *self.image, 1)))

    def _format(self, images: Array) -> Array:
        return images.transpose(0, 3, 1, 2) if self.geometry.channels_first else images


def statistics(block: ConvBlock, images: tf.Tensor, omega: Any, places: Any) -> tf.Tensor:
    """Ā of one use; `places` are the height and width of the output."""
    batch = tf.shape(images)[0]
    count = tf.cast(batch * places[0] * places[1], tf.float64)
    total = count
    if omega is not None:
        total = tf.reduce_sum(tf.broadcast_to(omega, [batch, *places]))
    use = Use(images, tf.constant(0.0))
    return block.input_statistics([use], [UseWeights(omega, total, count)], batch)["A"]


def input_error(case: Case, found: Any, images: Array, omega: Any) -> float:
    """How far Ā is from the transcription."""
    spread = None if omega is None else np.broadcast_to(omega, (case.batch, *case.places))
    rows = case.geometry.rows(images, case.bias)
    expected = np.stack([input_factor(group, spread) for group in rows])
    return relative_error(np.tril(found).reshape(expected.shape), np.tril(expected))
