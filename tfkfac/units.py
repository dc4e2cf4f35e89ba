"""Gradients in the units of the per-example mean loss (mathematics.md §1)."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from tfkfac import indexed_slices
from tfkfac.observation import Observation


def of_mean_loss(
    gradients: Sequence[tf.Tensor], observations: Sequence[Observation]
) -> list[tf.Tensor]:
    """The gradients of h / N where Keras sums over the batch.

    Args:
        gradients: Of the loss as Keras reduces it.
        observations: The losses of the step.

    Raises:
        ValueError: Some losses are sums and some are means.
    """
    summed = {observation.summed for observation in observations}
    if len(summed) > 1:
        raise ValueError(
            "Some of the model's losses are sums over the batch (reduction='sum' or None) and some "
            "are means, so that the curvature has no unit of its own. Give all losses the same "
            "reduction, and use loss_weights to balance them."
        )
    if not summed.pop():
        return list(gradients)
    return [
        indexed_slices.with_values(
            gradient, share_of_mean(indexed_slices.values_of(gradient), observations[0])
        )
        for gradient in gradients
    ]


def share_of_mean(value: tf.Tensor, observation: Observation) -> tf.Tensor:
    """What is linear in h as Keras reduces it, for h / N where Keras sums over the batch.

    Args:
        value: The loss itself, a gradient, a curvature.
        observation: A loss of the step.
    """
    return value / tf.cast(observation.whole, value.dtype) if observation.summed else value


def per_example(observation: Observation) -> tf.Tensor:
    """``Σ_u c_u``, how many units an example's share of the loss is made of.

    1 for a loss that is a mean over units, D for one that sums D of them; over all workers.
    """
    total = tf.reduce_sum(observation.weights)
    return total / tf.cast(observation.whole, total.dtype)


def weights_and_squares(observations: Sequence[Observation], dtype: tf.DType) -> list[tf.Tensor]:
    """``Σ_u w_u`` and ``Σ_u w_u²`` over the loss values of all losses, w_u = N·c_u."""
    weights = [tf.cast(observation.weights, dtype) for observation in observations]
    return [
        tf.add_n([tf.reduce_sum(each) for each in weights]),
        tf.add_n([tf.reduce_sum(tf.square(each)) for each in weights]),
    ]
