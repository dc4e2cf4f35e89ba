"""How masks and sample weights reach the places at which a layer is used (mathematics.md §2)."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from tfkfac.blocks import CurvatureBlock, Use
from tfkfac.blocks.use import UseWeights
from tfkfac.observation import Observation


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
    mask = _mask_at_places(block.mask_of_places(use), static, places_shape, block.dtype)
    omega = _omega_at_places(observations, static, places_shape, block.dtype)
    count = tf.cast(tf.reduce_prod(places_shape), block.dtype)
    of_examples = _are_examples(use, observations)
    if mask is None and omega is None:
        return UseWeights(None, count, count, of_examples)
    places = count if mask is None else _sum_over(mask, places_shape)
    if mask is not None:
        omega = mask if omega is None else omega * mask
    return UseWeights(omega, _sum_over(omega, places_shape), places, of_examples)


def _are_examples(use: Use, observations: Sequence[Observation]) -> bool | None:
    """Whether the rows of a use are those of examples, as far as static shapes tell."""
    rows = use.preactivations.shape[0]
    batch = observations[0].predictive.target.shape[0] if observations else None
    if rows is None:
        return None
    return False if batch is None else rows % max(batch, 1) == 0


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
    if not all(_line_up(weight.shape, static) for weight in weights):
        return _omega_of_examples(weights, static.rank, shape[0])
    fitted = [_fit(weight, static, shape) for weight in weights]
    omega = _repeat_examples(tf.add_n([weight for weight, _ in fitted]), shape[0])
    unsure = [same for _, same in fitted if same is not None]
    if not unsure:
        return omega
    examples = _omega_of_examples(weights, static.rank, shape[0])
    return tf.where(tf.reduce_all(unsure), omega, examples)


def _omega_of_examples(weights: Sequence[tf.Tensor], rank: int, count: tf.Tensor) -> tf.Tensor:
    """The weights of whole examples, ``[count, 1, ...]``."""
    examples = tf.add_n(
        [tf.reduce_sum(weight, axis=list(range(1, weight.shape.rank))) for weight in weights]
    )
    return tf.reshape(_repeat_examples(examples, count), [-1] + [1] * (rank - 1))


def _repeat_examples(weights: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """Repeats ``[N, ...]`` to ``[count, ...]`` for layers with several rows an example.

    Rows that are no multiple of N belong to no example in particular (something learned, without
    examples, or with another axis first): they all get the mean weight.
    """
    shape = tf.shape(weights)
    folds = (count + shape[0] - 1) // shape[0]
    repeated = tf.broadcast_to(
        weights[:, None], tf.concat([shape[:1], folds[None], shape[1:]], axis=0)
    )
    rows = tf.reshape(repeated, tf.concat([(shape[0] * folds)[None], shape[1:]], axis=0))[:count]
    mean = tf.reduce_mean(weights, axis=0, keepdims=True)
    return tf.where(tf.equal(shape[0] * folds, count), rows, mean)


def _mask_at_places(
    mask: tf.Tensor | None, static: tf.TensorShape, shape: tf.Tensor, dtype: str
) -> tf.Tensor | None:
    """A layer's input mask as numbers, broadcastable to its places."""
    if mask is None or not _line_up(mask.shape, static[: mask.shape.rank]):
        return None
    weights, same = _fit(tf.cast(mask, dtype), static[: mask.shape.rank], shape)
    if same is not None:
        weights = tf.where(same, weights, tf.ones_like(weights))
    while weights.shape.rank < static.rank:
        weights = weights[..., None]
    return weights


def _fit(
    values: tf.Tensor, static: tf.TensorShape, shape: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor | None]:
    """Values that line up with places as far as is known, cut to their size of all axes but one.

    Lengths that nobody knows before the step runs, such as those of the two sentences of a
    translation, may turn out to differ. No branches: both would have to compile.

    Args:
        values: ``[n, ...]``.
        static: What is known of the shape of the places, of the rank of the values.
        shape: The shape of the places.

    Returns:
        ``[n, *shape[1:]]``, and whether nothing had to be done for that (None: it is known).
    """
    if values.shape[1:].is_fully_defined() and static[1:].is_fully_defined():
        return values, None
    sizes = tf.shape(values)
    same = tf.reduce_all(tf.equal(sizes[1:], shape[1 : values.shape.rank]))
    for axis in range(1, values.shape.rank):
        indices = tf.minimum(tf.range(shape[axis]), sizes[axis] - 1)
        values = tf.gather(values, indices, axis=axis)
    return values, same


def _line_up(shape: tf.TensorShape, places: tf.TensorShape) -> bool:
    """Whether two shapes agree axis by axis, as far as they are known."""
    return bool(shape.rank == places.rank and shape.is_compatible_with(places))


def _sum_over(values: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
    """The sum after broadcasting to `shape`."""
    return tf.reduce_sum(tf.broadcast_to(values, shape))
