"""Statistics of the shares of a batch, such as its micro-batches, made into those of the batch.

Every statistic of a block is a mean, and a share's counts as much as what it is a mean over: Σω
for second moments of inputs, the valid places for those of gradients, the examples for everything
else (`CurvatureBlock.normalisers`). So a share contributes sums, contributions are added, in
accumulators or by an all-reduce, and the sums are divided in the end:

    A = Σ_k N_k·mass_k·A_k / Σ_k N_k·mass_k,   G = Σ_k N_k·|T|_k·G_k / Σ_k N_k·|T|_k,
    |T| = Σ_k N_k·|T|_k / Σ_k N_k,

with N_k the examples of share k, and mass_k = Σω/N_k.

The result equals the statistics of the whole batch, seen at once, where the examples do not
influence each other and the weight of an example does not depend on its batch; sampling estimators
need the same noise too (``PhiloxNoise(first_example=...)``). It does not

- where a loss divides by something of the batch: the sum of the sample weights, or the count of
  what a mask lets through. The √(N·c_u) of mathematics.md §1 is then that of the share, and what
  comes out is the curvature of Σ_k (N_k/N)·h_k, h_k being the loss of share k. With shares of
  equal size that is the mean of their losses, whose gradient Keras' accumulation follows as well.
- where a mask gets lost on its way to the loss, for a share of which all places are masked: what
  the loss sends back to them has no place to count for.
- where batch statistics (BatchNormalization in training mode) or dropout differ.
- for statistics of a square of a sum over examples, of which only the expectation is meant: all of
  `DiagonalBlock`, and in every block what is learned without examples (positions, queries). The
  expectation of F is the same; each share is an independent draw, so pooling makes it no worse.
"""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf

from tfkfac.blocks import CurvatureBlock


def contribution(
    block: CurvatureBlock, statistics: Mapping[str, tf.Tensor], examples: tf.Tensor
) -> dict[str, tf.Tensor]:
    """What a share of a batch adds to the sums over the whole of it.

    Args:
        block: The block.
        statistics: Of the share: name → value, from the forward and from the backward pass.
        examples: N_k, the number of examples of the share, scalar.

    Returns:
        Name → sum, of the shapes of `contribution_shapes`. A statistic that is not finite makes
        its sum so, and `CurvatureBlock.update` will leave the whole batch out.
    """
    count = tf.cast(examples, block.dtype)

    def weight(name: str) -> tf.Tensor:
        normaliser = block.normalisers.get(name)
        if normaliser is None:
            return count
        return tf.math.multiply_no_nan(statistics[normaliser], count)

    return {  # what nothing has a weight in adds nothing
        name: tf.math.multiply_no_nan(statistics[name], weight(name))
        for name in contribution_shapes(block)
    }


def contribution_shapes(block: CurvatureBlock) -> dict[str, tuple[int, ...]]:
    """Name → shape of the sums, of the block's dtype, before anything was seen."""
    return block.statistic_shapes


def pooled(
    block: CurvatureBlock, sums: Mapping[str, tf.Tensor], examples: tf.Tensor
) -> dict[str, tf.Tensor]:
    """The statistics of a whole batch.

    Args:
        block: The block.
        sums: Name → the contributions of all shares, added.
        examples: N, the number of examples of all shares, scalar. Shares that did not use the
            block's layers count too.

    Returns:
        Name → value, as `CurvatureBlock.update` takes them. What nothing was counted for is zero.
    """
    count = tf.cast(examples, block.dtype)

    def whole(name: str) -> tf.Tensor:
        normaliser = block.normalisers.get(name)
        return count if normaliser is None else sums[normaliser]

    return {name: tf.math.divide_no_nan(sums[name], whole(name)) for name in sums}
