"""Dense layers."""

from __future__ import annotations

from typing import Any

import keras

from tfkfac.blocks import Block, DenseBlock
from tfkfac.registry import if_trained, register, require_plain_variables, require_trained


@register(keras.layers.Dense)
def dense(layer: Any, **options: Any) -> Block:
    """A Dense layer, on inputs of any rank."""
    require_plain_variables(layer)
    require_trained(layer, layer.kernel)
    return DenseBlock(layer, layer.kernel, if_trained(layer, layer.bias), **options)
