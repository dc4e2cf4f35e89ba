"""Convolutions of every kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfkfac.blocks import Block, ConvBlock
from tfkfac.blocks.window import Window
from tfkfac.registry import (
    NotCoveredError,
    if_trained,
    register,
    require_plain_variables,
    require_trained,
)


@register(keras.layers.Conv1D)
@register(keras.layers.Conv2D)
@register(keras.layers.Conv3D)
def convolution(layer: Any, **options: Any) -> Block:
    """Strides, dilation, padding (causal too), groups and both data formats."""
    require_plain_variables(layer)
    require_trained(layer, layer.kernel)
    bias = if_trained(layer, layer.bias)
    window = _window(layer)
    return ConvBlock(layer, layer.kernel, bias, window=window, groups=layer.groups, **options)


@register(keras.layers.Conv1DTranspose)
@register(keras.layers.Conv2DTranspose)
@register(keras.layers.Conv3DTranspose)
def transposed_convolution(layer: Any, **options: Any) -> Block:
    """Strides, dilation, padding, output padding and both data formats."""
    require_plain_variables(layer)
    require_trained(layer, layer.kernel)
    extra = layer.output_padding
    if isinstance(extra, int):
        extra = (extra,) * len(layer.kernel_size)
    window = _window(layer, transposed=True, output_padding=extra)
    return ConvBlock(layer, layer.kernel, if_trained(layer, layer.bias), window=window, **options)


@register(keras.layers.DepthwiseConv1D)
@register(keras.layers.DepthwiseConv2D)
def depthwise_convolution(layer: Any, **options: Any) -> Block:
    """A group for each channel."""
    require_plain_variables(layer)
    require_trained(layer, layer.kernel)
    bias = if_trained(layer, layer.bias)
    return ConvBlock(layer, layer.kernel, bias, window=_window(layer), depthwise=True, **options)


@register(keras.layers.SeparableConv1D)
@register(keras.layers.SeparableConv2D)
def separable_convolution(layer: Any, **options: Any) -> list[Block]:
    """Two blocks. The layer's one operation hides what is between them; it is recovered.

    The input of the pointwise convolution is computed again, and the gradient at the output of the
    depthwise one is ``g·Pᵀ``, since the pointwise one, P, is linear.
    """
    require_plain_variables(layer)
    window = _window(layer)
    point = Window((1,) * window.rank, channels_first=window.channels_first)
    bias = if_trained(layer, layer.bias)
    blocks: list[Block] = []
    if if_trained(layer, layer.pointwise_kernel) is not None:
        blocks.append(
            ConvBlock(
                layer,
                layer.pointwise_kernel,
                bias,
                window=point,
                of_inputs=_depthwise_part(layer),
                **options,
            )
        )
    if if_trained(layer, layer.depthwise_kernel) is not None:
        blocks.append(
            ConvBlock(
                layer,
                layer.depthwise_kernel,
                None,
                window=window,
                depthwise=True,
                of_gradients=_back_through_pointwise_part(layer),
                **options,
            )
        )
    if not blocks:
        raise NotCoveredError("its kernels are frozen")
    return blocks


def _window(layer: Any, **arguments: Any) -> Window:
    return Window(
        size=tuple(layer.kernel_size),
        strides=tuple(layer.strides),
        dilation=tuple(layer.dilation_rate),
        padding=layer.padding,
        channels_first=layer.data_format == "channels_first",
        **arguments,
    )


def _depthwise_part(layer: Any) -> Callable[[tf.Tensor], tf.Tensor]:
    def of_inputs(inputs: tf.Tensor) -> tf.Tensor:
        return keras.ops.depthwise_conv(
            inputs,
            tf.cast(tf.convert_to_tensor(layer.depthwise_kernel), inputs.dtype),
            strides=layer.strides,
            padding=layer.padding,
            dilation_rate=layer.dilation_rate,
            data_format=layer.data_format,
        )

    return of_inputs


def _back_through_pointwise_part(layer: Any) -> Callable[[tf.Tensor], tf.Tensor]:
    def of_gradients(gradients: tf.Tensor) -> tf.Tensor:
        kernel = tf.convert_to_tensor(layer.pointwise_kernel)
        matrix = tf.reshape(kernel, kernel.shape[-2:])
        return tf.matmul(gradients, tf.cast(matrix, gradients.dtype), transpose_b=True)

    return of_gradients
