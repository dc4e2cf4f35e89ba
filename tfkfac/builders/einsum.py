"""EinsumDense, of which Keras' attention layers are made."""

from __future__ import annotations

from typing import Any

import keras

from tfkfac.blocks import Block, EinsumDenseBlock
from tfkfac.blocks.einsum import Equation
from tfkfac.registry import (
    NotCoveredError,
    if_trained,
    register,
    require_plain_variables,
    require_trained,
)


@register(keras.layers.EinsumDense)
def einsum_dense(layer: Any, **options: Any) -> Block:
    """Every equation that is the same matrix product at every place.

    A bias that does not have just the kernel's own output axes is left to the fallback.

    Raises:
        NotCoveredError: The equation is not one of these.
    """
    require_plain_variables(layer)
    require_trained(layer, layer.kernel)
    equation = Equation.parse(layer.equation, layer.input_spec.ndim)
    if not equation.has_structure:
        raise NotCoveredError(f"its equation {layer.equation} is no matrix product")
    if not equation.keeps_examples_first:
        raise NotCoveredError(f"its equation {layer.equation} moves the axis of examples")
    bias = if_trained(layer, layer.bias)
    if bias is not None and not equation.fits_bias(bias.shape, layer.kernel.shape):
        bias = None
    return EinsumDenseBlock(layer, layer.kernel, bias, equation=equation, **options)
