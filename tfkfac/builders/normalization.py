"""Layers that scale and shift single units: normalisation layers, and PReLU's slopes."""

from __future__ import annotations

import functools
from typing import Any

import keras
import tensorflow as tf

from tfkfac import keras_internals
from tfkfac.blocks import Block, ScaleShiftBlock, Use
from tfkfac.registry import NotCoveredError, if_trained, register, require_plain_variables


@register(keras.layers.BatchNormalization)
def batch_normalization(layer: Any, **options: Any) -> Block:
    """Statistics of the batch or the moving ones, as the layer was called."""
    if getattr(layer, "renorm", False):
        raise NotCoveredError("renorm")
    return _block(layer, "gamma", "beta", _batch_normalized)


@register(keras.layers.LayerNormalization)
def layer_normalization(layer: Any, **options: Any) -> Block:
    """Over one or several axes, with or without the mean (`rms_scaling`)."""
    return _block(layer, "gamma", "beta", _layer_normalized)


@register(keras.layers.RMSNormalization)
def rms_normalization(layer: Any, **options: Any) -> Block:
    """A scale only."""
    return _block(layer, "scale", None, _rms_normalized)


@register(keras.layers.GroupNormalization)
def group_normalization(layer: Any, **options: Any) -> Block:
    """Over groups of channels."""
    return _block(layer, "gamma", "beta", _group_normalized)


@register(keras.layers.PReLU)
def prelu(layer: Any, **options: Any) -> Block:
    """``max(x, 0) + α·min(x, 0)``: α scales min(x, 0), unit by unit."""
    require_plain_variables(layer)
    shared = {axis - 1 for axis in layer.shared_axes or ()}
    axes = [axis + 1 for axis in range(len(layer.alpha.shape)) if axis not in shared]
    return _scale_shift(layer, layer.alpha, None, lambda layer, use: _negative_part(use), axes)


def _block(layer: Any, scale: str, shift: str | None, normalized: Any) -> Block:
    require_plain_variables(layer)
    axes = layer.axis if isinstance(layer.axis, list | tuple) else [layer.axis]
    return _scale_shift(
        layer,
        getattr(layer, scale),
        getattr(layer, shift) if shift else None,
        normalized,
        list(axes),
    )


def _scale_shift(layer: Any, scale: Any, shift: Any, normalized: Any, axes: list[int]) -> Block:
    scale, shift = if_trained(layer, scale), if_trained(layer, shift)
    if scale is None and shift is None:
        raise NotCoveredError("nothing to train")
    of_use = functools.partial(normalized, layer)
    return ScaleShiftBlock(layer, scale, shift, normalized=of_use, unit_axes=axes)


def _batch_normalized(layer: Any, use: Use) -> tf.Tensor:
    """x̂ with the statistics that the layer used."""
    inputs = _full_precision(use.inputs)
    if use.arguments.get("training") and layer.trainable:
        mean, variance = keras_internals.batch_moments(layer, inputs, use.mask)
    else:
        mean, variance = (
            tf.cast(tf.convert_to_tensor(moment), inputs.dtype)
            for moment in (layer.moving_mean, layer.moving_variance)
        )
    return keras.ops.batch_normalization(
        inputs, mean, variance, axis=layer.axis, epsilon=layer.epsilon
    )


def _layer_normalized(layer: Any, use: Use) -> tf.Tensor:
    """Keras' formula; its `rms_scaling` divides by the deviation without taking off the mean."""
    inputs = _full_precision(use.inputs)
    mean, variance = tf.nn.moments(inputs, layer.axis, keepdims=True)
    centred = inputs if layer.rms_scaling else inputs - mean
    return centred * tf.math.rsqrt(variance + layer.epsilon)


def _rms_normalized(layer: Any, use: Use) -> tf.Tensor:
    inputs = _full_precision(use.inputs)
    return keras.ops.rms_normalization(inputs, scale=1.0, axis=layer.axis, epsilon=layer.epsilon)


def _group_normalized(layer: Any, use: Use) -> tf.Tensor:
    inputs = _full_precision(use.inputs)
    axis = layer.axis % inputs.shape.rank
    shape = tf.shape(inputs)
    grouped = tf.concat(
        [shape[:axis], [layer.groups, shape[axis] // layer.groups], shape[axis + 1 :]], axis=0
    )
    groups = tf.reshape(inputs, grouped)
    axes = [each for each in range(1, inputs.shape.rank + 1) if each != axis]
    mean, variance = tf.nn.moments(groups, axes, keepdims=True)
    return tf.reshape((groups - mean) * tf.math.rsqrt(variance + layer.epsilon), shape)


def _negative_part(use: Use) -> tf.Tensor:
    return tf.minimum(_full_precision(use.inputs), 0.0)


def _full_precision(inputs: tf.Tensor) -> tf.Tensor:
    """Half precision cast up, as the layers do themselves."""
    return tf.cast(inputs, tf.float32) if inputs.dtype.size < 4 else inputs
