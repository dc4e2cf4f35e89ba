"""How masks and sample weights reach the places at which a layer is used (mathematics.md §2)."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from tfkfac.blocks import CurvatureBlock, Use
from tfkfac.blocks.block import UseWeights
from tfkfac.losses import Observation


def use_weights(use: Use, block: CurvatureBlock, observations: Sequence[Observation]) -> UseWeights:
    """ω of every place of a use.

    ω is N·c_u of the unit at the same place where outputs and uses line up (a time step, say),
    else of the place's example, and 1 without weights; masked places do not count.

    Args:
        use: A use of the block's layer.
        block: The block.
        observations: The losses of the step.
    """
    rank = use.preactivations.shape.rank
    channels = {axis % rank for axis in block.channel_axes}
    places_axes = [axis for axis in range(rank) if axis not in channels]
    places_shape = tf.gather(tf.shape(use.preactivations), places_axes)
    static = tf.TensorShape([use.preactivations.shape[axis] for axis in places_axes])
    mask = _mask_at_places(use.mask, static, block.dtype)
    omega = _omega_at_places(observations, static, places_shape, block.dtype)
    count = tf.cast(tf.reduce_prod(places_shape), block.dtype)
    if mask is None and omega is None:
        return UseWeights(None, count, count)
    places = count if mask is None else _sum_over(mask, places_shape)
    if mask is not None:
        omega = mask if omega is None else omega * mask
    return UseWeights(omega, _sum_over(omega, places_shape), places)


def _omega_at_places(
    observations: Sequence[Observation], static: tf.TensorShape, shape: tf.Tensor, dtype: str
) -> tf.Tensor | None:
    """N·c_u, broadcastable to the places, or None if no weights are in use."""
    if not any(observation.weighted for observation in observations):
        return None
    weights = [
        tf.cast(weight if weight.shape.rank else tf.fill([observation.batch], weight), dtype)
        for observation in observations
        for weight in (observation.weights,)
    ]
    if all(_line_up(weight.shape, static) for weight in weights):
        return _repeat_examples(tf.add_n(weights), shape[0])
    examples = tf.add_n(
        [tf.reduce_sum(weight, axis=list(range(1, weight.shape.rank))) for weight in weights]
    )
    repeated = _repeat_examples(examples, shape[0])
    return tf.reshape(repeated, [-1] + [1] * (static.rank - 1))


def _repeat_examples(weights: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """Repeats ``[N, ...]`` to ``[count, ...]`` for layers with several rows an example."""
    shape = tf.shape(weights)
    folds = count // shape[0]
    repeated = tf.broadcast_to(
        weights[:, None], tf.concat([shape[:1], folds[None], shape[1:]], axis=0)
    )
    return tf.reshape(repeated, tf.concat([count[None], shape[1:]], axis=0))


def _mask_at_places(mask: tf.Tensor | None, static: tf.TensorShape, dtype: str) -> tf.Tensor | None:
    """A layer's input mask as numbers, broadcastable to its places."""
    if mask is None or not _line_up(mask.shape, static[: mask.shape.rank]):
        return None
    weights = tf.cast(mask, dtype)
    while weights.shape.rank < static.rank:
        weights = weights[..., None]
    return weights


def _line_up(shape: tf.TensorShape, places: tf.TensorShape) -> bool:
    """Whether two shapes agree axis by axis, as far as they are known."""
    return bool(shape.rank == places.rank and shape.is_compatible_with(places))


def _sum_over(values: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
    """The sum after broadcasting to `shape`."""
    return tf.reduce_sum(tf.broadcast_to(values, shape))
