"""Convolutions: every output location is a use of the kernel on one patch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfkfac.blocks import shifted_moments
from tfkfac.blocks.chunks import Chunks
from tfkfac.blocks.kronecker import KroneckerBlock
from tfkfac.blocks.use import UseWeights
from tfkfac.blocks.window import Window
from tfkfac.factor_forms import DENSE


class ConvBlock(KroneckerBlock):
    """Kronecker factors for convolutions (Grosse & Martens 2016), patches ``[*window, cin]``.

    With groups each group is a convolution of its own, with its own pair of factors; a depthwise
    convolution has a group for each channel.

    Args:
        layer: The Keras layer.
        kernel: ``[*size, cin / groups, cout]``; ``[*size, cout, cin]`` of a transposed convolution,
            ``[*size, cin, cout / cin]`` of a depthwise one.
        bias: ``[cout]`` or None.
        window: The geometry.
        groups: Number of groups.
        depthwise: Whether every channel is a group, and the kernel of the form above.
        of_inputs: From the layer's input to that of this convolution, where the layer has done
            something else before.
        of_gradients: From the gradient at the layer's pre-activations (channels last) to that at
            this convolution's, where something linear comes behind.
        **options: As for `KroneckerBlock`: `method`, `max_factor_size`.
    """

    tells_examples_apart = True

    def __init__(
        self,
        layer: Any,
        kernel: Any,
        bias: Any,
        *,
        window: Window,
        groups: int = 1,
        depthwise: bool = False,
        of_inputs: Callable[[tf.Tensor], tf.Tensor] | None = None,
        of_gradients: Callable[[tf.Tensor], tf.Tensor] | None = None,
        **options: Any,
    ) -> None:
        *size, second_last, last = kernel.shape
        channels, filters = second_last, last // groups
        if window.transposed:
            channels, filters = last, second_last
        elif depthwise:
            channels, filters, groups = 1, last, second_last
        super().__init__(
            layer,
            kernel,
            bias,
            input_dim=math.prod(size) * channels,
            output_dim=filters,
            groups=groups,
            **options,
        )
        self.label = f"Conv{window.rank}D"
        self.window = window
        self.channel_axis = 1 if window.channels_first else -1
        self._kernel_shape = tuple(kernel.shape)
        self._channels = channels
        self._of_inputs = of_inputs
        self._of_gradients = of_gradients

    def cast_inputs(self, inputs: Any) -> tf.Tensor:
        """What this convolution is applied to."""
        return super().cast_inputs(self._of_inputs(inputs) if self._of_inputs else inputs)

    def input_moment(self, inputs: tf.Tensor, weights: UseWeights) -> tf.Tensor:
        """Without patches where that is less work, else chunk by chunk, so that they stay small."""
        images = self.window.channels_last(inputs)
        padded = self.window.pad(images)
        if weights.omega is None and self._takes_shifted_moments(images.shape):
            moment = shifted_moments.second_moment(
                images, self.window, lambda part: self._chunked_moment(part, None)[0]
            )
            if not self.has_bias:
                return moment
            sums = shifted_moments.sums(padded, self.window.over_padded)
        else:
            moment, sums = self._chunked_moment(padded, weights.omega)
        if not self.has_bias:
            return moment
        return self.input_form.border(moment, sums, tf.broadcast_to(weights.total, sums.shape[:-1]))

    @property
    def moment_share(self) -> float:
        """Less than 1 with shifted moments, as far as Keras knows the size of the images."""
        try:
            shape = tf.TensorShape(self.layers[0].input.shape)
        except (AttributeError, ValueError):
            return 1.0
        if self.window.channels_first:
            shape = tf.TensorShape([shape[0], *shape[2:], shape[1]])
        if not self._takes_shifted_moments(shape):
            return 1.0
        return shifted_moments.share_of_operations(self.window, shape)

    def _takes_shifted_moments(self, images: tf.TensorShape) -> bool:
        plain = self.groups == 1 and self.input_form is DENSE
        return plain and shifted_moments.is_worthwhile(self.window, images)

    def _chunked_moment(
        self, padded: tf.Tensor, omega: tf.Tensor | None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Σ ω a aᵀ and Σ ω a over the patches of padded images."""
        patch = self.groups * (self.input_dim - self.has_bias)
        chunks = Chunks.of(padded, self.window.over_padded, patch, self.dtype)
        if omega is None and not chunks.are_exact:
            omega = tf.ones([1] * (self.window.rank + 1), self.dtype)
        if omega is not None:
            places = [tf.shape(padded)[0], *chunks.places]
            omega = chunks.pad_weights(tf.broadcast_to(omega, places)[..., None])
        images = chunks.pad_images(padded)

        def moment_of_chunk(index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            rows = self.patch_rows(chunks.images(images, index))
            root = None if omega is None else tf.sqrt(chunks.weights(omega, index))
            if root is not None:
                rows *= root
            sums = tf.reduce_sum(rows if root is None else rows * root, axis=-2)
            return self.input_form.second_moment(rows), sums

        stack = () if self.groups == 1 else (self.groups,)
        dim = self.input_dim - self.has_bias
        shapes = self.input_form.shape(stack, dim), (*stack, dim)
        moment, sums = chunks.sum(moment_of_chunk, shapes, self.dtype)
        return moment, sums

    def patch_rows(self, padded: tf.Tensor) -> tf.Tensor:
        """Patches of padded images as rows, ``[places, *size·cin]`` (stacked by group)."""
        window = self.window.over_padded
        patches = tf.concat(window.patches(padded, reverse=self.window.transposed), axis=-1)
        offsets = math.prod(window.size)
        rows = tf.reshape(patches, [-1, offsets * self._channels * self.groups])
        if self.groups == 1:
            return rows
        rows = tf.reshape(rows, [-1, offsets, self.groups, self._channels])
        rows = tf.transpose(rows, [2, 0, 1, 3])
        return tf.reshape(rows, [self.groups, -1, offsets * self._channels])

    def input_rows(self, inputs: tf.Tensor) -> tf.Tensor:
        """Patches of images in the layer's own format."""
        return self.patch_rows(self.window.pad(self.window.channels_last(inputs)))

    def output_rows(self, gradients: tf.Tensor) -> tf.Tensor:
        """Every location is a row; the channels of a group are contiguous."""
        gradients = self.window.channels_last(gradients)
        if self._of_gradients is not None:
            gradients = tf.cast(self._of_gradients(gradients), self.dtype)
        rows = tf.reshape(gradients, [-1, self.groups * self.output_dim])
        return self._split_groups(rows)

    def kernel_to_matrix(self, kernel: tf.Tensor) -> tf.Tensor:
        """``[*size·cin / groups, cout / groups]`` (stacked by group)."""
        if self.window.transposed:
            kernel = tf.linalg.matrix_transpose(kernel)
        return self._split_groups(tf.reshape(kernel, [-1, self.groups * self.output_dim]))

    def matrix_to_kernel(self, matrix: tf.Tensor) -> tf.Tensor:
        """The reverse."""
        if self.groups > 1:
            matrix = tf.transpose(matrix, [1, 0, 2])
        if self.window.transposed:
            *size, filters, channels = self._kernel_shape
            return tf.linalg.matrix_transpose(tf.reshape(matrix, [*size, channels, filters]))
        return tf.reshape(matrix, self._kernel_shape)

    def _split_groups(self, rows: tf.Tensor) -> tf.Tensor:
        """``[n, groups·out]`` → ``[groups, n, out]``; unchanged without groups."""
        if self.groups == 1:
            return rows
        return tf.transpose(tf.reshape(rows, [-1, self.groups, self.output_dim]), [1, 0, 2])
