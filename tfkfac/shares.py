"""Which part of a batch a worker has, and what it counts in the whole (mathematics.md §7).

Keras takes the mean over the examples (or whatever a loss divides by) of every worker alone, and
then the mean of these means. That is the mean over the whole batch only if all workers divide by
the same; with an uneven last batch, masks or sample weights they do not. So the loss of worker r is
given the weight ``W·D_r / Σ_r D_r``, D_r being what it was divided by.
"""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from tfkfac.distribution.workers import Workers


@dataclasses.dataclass(frozen=True, eq=False)
class Share:
    """What one worker knows of its part of the batch, for one loss.

    Attributes:
        first_example: How many examples the workers before this one have, ``int64``.
        examples: N, those of all workers, ``int64``.
        part: By what the worker's loss is multiplied, so that the mean over workers is the loss of
            the whole batch (of a sum: so that their sum is).
        weight: By what Keras' own weights c_u are multiplied to be those of the whole batch.
    """

    first_example: tf.Tensor
    examples: tf.Tensor
    part: tf.Tensor
    weight: tf.Tensor


def share_of(
    workers: Workers, examples: tf.Tensor, divisor: tf.Tensor, *, summed: bool
) -> Share | None:
    """Asks all workers for their shares; None if there is only one worker.

    Args:
        workers: Who else is there; the calling worker is one of them.
        examples: The number of examples here.
        divisor: What the loss here was divided by, floating.
        summed: Whether it is a sum, which is divided by nothing.
    """
    if workers.number == 1:
        return None
    numbers = tf.stack([tf.cast(examples, tf.float64), tf.cast(divisor, tf.float64)])
    of_all = tf.stop_gradient(workers.exchange(numbers))
    counts = tf.cast(of_all[:, 0], tf.int64)
    weight = tf.ones([], tf.float64)
    if not summed:
        divided = workers.number / workers.repeats
        weight = divided * tf.math.divide_no_nan(numbers[1], tf.reduce_sum(of_all[:, 1]))
    return Share(
        tf.reduce_sum(counts[: workers.here()]),
        tf.reduce_sum(counts),
        weight * workers.repeats,
        weight,
    )


def with_gradient_of(value: tf.Tensor, scaled: tf.Tensor) -> tf.Tensor:
    """The value, as Keras reports it, with the gradient of what it counts in the whole."""
    return scaled + tf.stop_gradient(value - scaled)
