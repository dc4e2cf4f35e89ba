"""Convolutions."""

from __future__ import annotations

from typing import Any

import keras

from tfkfac.blocks import Block, Conv2DBlock
from tfkfac.blocks.conv import Window
from tfkfac.registry import if_trained, register, require_plain_variables, require_trained


@register(keras.layers.Conv2D)
def conv2d(layer: Any, **options: Any) -> Block:
    """Strides, dilation, padding, groups and both data formats."""
    require_plain_variables(layer)
    require_trained(layer, layer.kernel)
    window = Window(
        size=tuple(layer.kernel_size),
        strides=tuple(layer.strides),
        dilation=tuple(layer.dilation_rate),
        padding=layer.padding,
        channels_first=layer.data_format == "channels_first",
    )
    bias = if_trained(layer, layer.bias)
    return Conv2DBlock(layer, layer.kernel, bias, window=window, groups=layer.groups, **options)
