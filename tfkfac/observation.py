"""What a training step shows of its losses: distributions, and the weights of their units.

A Keras loss is h = Σ_u c_u·(−log p_u) over units u (mathematics.md §1). The weights c_u hold all
that Keras does with the loss values: its own reduction is differentiated.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import tensorflow as tf

from tfkfac import keras_internals, linalg
from tfkfac.given_distributions import Unknown
from tfkfac.losses import predictive_of
from tfkfac.predictive import Predictive
from tfkfac.shares import Share


@dataclasses.dataclass(frozen=True, eq=False)
class LossCall:
    """One call of a Keras loss, as it was seen in a training step.

    Attributes:
        loss: The loss object.
        labels: y_true.
        outputs: y_pred, the tensor that the model returned.
        sample_weight: As Keras passed it on.
        loss_weight: The factor of this loss in the total loss, or None.
        share: Of the batch, where there are several workers.
    """

    loss: keras.losses.Loss
    labels: Any
    outputs: tf.Tensor
    sample_weight: Any = None
    loss_weight: Any = None
    share: Share | None = None

    @property
    def examples(self) -> tf.Tensor:
        """The number of examples in the outputs."""
        return tf.shape(self.outputs)[0]

    @property
    def summed(self) -> bool:
        """Whether Keras sums over the batch."""
        return self.loss.reduction in ("sum", "none", None)

    def correction(self, value: tf.Tensor) -> tf.Tensor:
        """What makes the total loss of a worker that of its part of the whole batch.

        Args:
            value: Of this loss, before its factor in the total. There are several workers.
        """
        assert self.share is not None
        more = tf.cast(self.share.part - 1.0, value.dtype) * value
        return more if self.loss_weight is None else more * tf.cast(self.loss_weight, more.dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class Observation:
    """A predictive distribution with the weights of its units in the total loss.

    Attributes:
        predictive: The distribution.
        labels: y_true (only ``fisher="empirical"`` looks).
        weights: N·c_u, of the shape of Keras' loss values (before its reduction).
        root_weights: √(N·c_u) of each scalar of the target, broadcastable to it.
        weighted: Whether masks or sample weights make the weights differ.
        batch: The number of examples that this worker has, an integer scalar.
        whole: N, the batch size of the model: that of all workers.
        first_example: Position in the whole batch of the first example here.
        summed: Whether Keras sums over the batch, so that h is the loss divided by N.
    """

    predictive: Predictive
    labels: tf.Tensor
    weights: tf.Tensor
    root_weights: tf.Tensor
    weighted: bool
    batch: tf.Tensor
    whole: tf.Tensor
    first_example: tf.Tensor | int
    summed: bool

    def inject(self, gradient: tf.Tensor) -> tf.Tensor:
        """√(N·c_u) times a gradient at the logits, as a gradient at the target."""
        at_target = self.predictive.to_target(gradient)
        weighted = at_target * tf.cast(self.root_weights, at_target.dtype)
        return tf.cast(weighted, self.predictive.target.dtype)


def observe(call: LossCall) -> Observation:
    """Finds the predictive distribution and the weights of one call of a loss."""
    predictive = predictive_of(call.loss, call.outputs)
    ones, mask = _ones_and_mask(call)
    weights = _reduction_weights(call, ones, mask)
    batch, share = call.examples, call.share
    whole = batch if share is None else share.examples
    if not call.summed:
        weights *= tf.cast(whole, weights.dtype)
        if share is not None:
            weights *= tf.cast(share.weight, weights.dtype)
    if call.loss_weight is not None:
        weights *= _loss_weight(call.loss_weight, weights.dtype)
    weighted = call.sample_weight is not None or mask is not None
    if weighted or tf.is_tensor(call.loss_weight):
        weights = _require_non_negative(weights)
    root_weights = tf.sqrt(_at_target(weights, predictive))
    first = 0 if share is None else share.first_example
    return Observation(
        predictive, call.labels, weights, root_weights, weighted, batch, whole, first, call.summed
    )


def divisor_of(call: LossCall) -> tf.Tensor:
    """What Keras divides the sum of the loss values by, of a loss that is a mean.

    That is their number, without those that a mask leaves out, or the sum of the sample weights.
    """
    ones, mask = _ones_and_mask(call)
    by_weights = call.loss.reduction == "mean_with_sample_weight"
    weights = call.sample_weight if by_weights else None
    total, mean = (  # of no values Keras makes no sum, but returns them
        tf.reduce_sum(_reduced(ones, mask, weights, reduction, call.loss.dtype))
        for reduction in ("sum", call.loss.reduction)
    )
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    return tf.math.divide_no_nan(total, mean * replicas)


_NEGATIVE = (
    "tfkfac: a sample, class or loss weight is negative; a Fisher matrix has no negative weights. "
    "Use weights >= 0."
)


class _ValuesAsTheyAre(keras.losses.Loss):
    """Reduces given loss values exactly as Keras would reduce them."""

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        del y_true
        return y_pred


def _ones_and_mask(call: LossCall) -> tuple[tf.Tensor, tf.Tensor | None]:
    """Ones of the shape of the loss values before their reduction, and the values' mask.

    The values themselves are not used, so in a graph they are not computed where their shape is
    known up to the batch.
    """
    dtype = call.loss.dtype
    outputs = tf.cast(call.outputs, dtype)
    labels = tf.cast(tf.convert_to_tensor(call.labels), dtype)
    values = call.loss.call(labels, outputs)
    masks = [
        mask
        for mask in (keras_internals.mask_of(call.outputs), keras_internals.mask_of(values))
        if mask is not None
    ]
    mask = tf.logical_and(*masks) if len(masks) == 2 else next(iter(masks), None)
    sizes = values.shape.as_list()
    if None in sizes[1:]:
        return tf.ones_like(values), mask
    batch = [tf.shape(outputs)[0] if size is None else size for size in sizes[:1]]
    return tf.ones([*batch, *sizes[1:]], dtype), mask


def _reduction_weights(call: LossCall, ones: tf.Tensor, mask: tf.Tensor | None) -> tf.Tensor:
    """c_u = ∂(reduced loss) / ∂(loss value of u), by differentiating Keras' own reduction."""
    with tf.GradientTape() as tape:
        tape.watch(ones)
        reduced = _reduced(ones, mask, call.sample_weight, call.loss.reduction, call.loss.dtype)
    return tape.gradient(reduced, ones)


def _reduced(
    values: tf.Tensor, mask: tf.Tensor | None, sample_weight: Any, reduction: Any, dtype: Any
) -> tf.Tensor:
    """What Keras' own reduction makes of loss values."""
    keras_internals.set_mask(values, mask)
    reduce = _ValuesAsTheyAre(name="reduction", reduction=reduction, dtype=dtype)
    return reduce(values, values, sample_weight=sample_weight)


def _at_target(weights: tf.Tensor, predictive: Predictive) -> tf.Tensor:
    """N·c_u of each scalar of the target: the mean over D scalars that Keras took is undone.

    Keras' loss values miss an axis of the target (the classes, or the axis of the mean), and
    sometimes a squeezed last axis: axes are put back until the ranks agree.
    """
    if not isinstance(predictive, Unknown):
        units = tf.cast(predictive.units(), weights.dtype)
        weights *= tf.cast(tf.size(weights), weights.dtype) / units
    rank = predictive.target.shape.rank
    if weights.shape.rank == rank - 1:
        return tf.expand_dims(
            weights, predictive.mean_axis if predictive.axis is None else predictive.axis
        )
    while weights.shape.rank < rank:
        weights = weights[..., None]
    return weights


def _loss_weight(weight: Any, dtype: tf.DType) -> tf.Tensor:
    """The factor of a loss."""
    if not tf.is_tensor(weight) and weight < 0:
        raise ValueError(f"{_NEGATIVE} Got the loss weight {weight}.")
    return linalg.scalar(weight, dtype)


def _require_non_negative(weights: tf.Tensor) -> tf.Tensor:
    """Refuses negative weights; what is NaN makes the gradient NaN, and the step is skipped."""
    check = tf.debugging.assert_equal(tf.reduce_any(weights < 0), False, _NEGATIVE)
    with tf.control_dependencies([] if check is None else [check]):
        return tf.identity(weights)
