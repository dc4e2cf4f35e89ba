"""EinsumDense, of which Keras' attention layers are made."""

from __future__ import annotations

from collections.abc import Sequence
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

    A bias that does not have just the kernel's own output axes, or that Keras may add along
    another axis, is left to the fallback.

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
    if bias is not None and not (
        equation.fits_bias(bias.shape, layer.kernel.shape)
        and _keras_adds_along_its_axis(bias.shape, _output_shape(layer, equation))
    ):
        bias = None
    return EinsumDenseBlock(layer, layer.kernel, bias, equation=equation, **options)


def _output_shape(layer: Any, equation: Equation) -> list[int | None]:
    """The shape of the outputs, as far as it was known when the layer was built."""
    built_on = (layer.get_build_config() or {}).get("input_shape")
    sizes = dict(zip(equation.inputs, built_on or [None] * len(equation.inputs), strict=True))
    sizes.update(zip(equation.kernel, layer.kernel.shape, strict=True))
    return [sizes[label] for label in equation.outputs]


def _keras_adds_along_its_axis(bias_shape: Sequence[int], outputs: Sequence[int | None]) -> bool:
    """Whether ``keras.ops.add`` puts a bias where it belongs.

    On TensorFlow (Keras 3.15) it takes a bias with a single axis longer than 1 as one of the last
    axis of the outputs if that has the same size, else of axis 1 if that has, whatever its own is.
    """
    long = [axis for axis, size in enumerate(bias_shape) if size != 1]
    if len(long) != 1 or len(outputs) < 2:
        return True
    size, own = bias_shape[long[0]], len(outputs) - len(bias_shape) + long[0]
    taken = [axis for axis in (len(outputs) - 1, 1) if outputs[axis] in (size, None)]
    return not taken or taken[0] == own
