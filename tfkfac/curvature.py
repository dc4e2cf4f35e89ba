"""The curvature that one batch shows: statistics of every block."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import tensorflow as tf

from tfkfac.blocks import CurvatureBlock, DiagonalBlock
from tfkfac.fisher import Estimator
from tfkfac.observation import Observation
from tfkfac.predictive import Noise
from tfkfac.record import Record
from tfkfac.use_weights import use_weights
from tfkfac.variable_slice import whole_of

Statistics = list[tuple[CurvatureBlock, dict[str, tf.Tensor]]]
"""Blocks that were seen, with the name → value of their statistics."""


def batch_statistics(
    blocks: Iterable[CurvatureBlock],
    record: Record,
    observations: Sequence[Observation],
    estimator: Estimator,
    noise: Noise,
    variables: Sequence[Any] = (),
) -> Statistics:
    """A, G and |T| of the blocks that the forward pass used, with one extra backward pass.

    Args:
        blocks: The model's blocks.
        record: What the forward pass left behind.
        observations: The losses and what they predict.
        estimator: What is sent backwards.
        noise: For sampling estimators.
        variables: The variables that have a gradient.

    Raises:
        ValueError: No path leads back to a layer whose variables have a gradient.
    """
    trained = {id(variable) for variable in variables}
    seen = seen_blocks(blocks, record)
    weights = [
        [use_weights(use, block, observations) for use in record.uses_of(block)] for block in seen
    ]
    targets = [observation.predictive.target for observation in observations]
    batch = observations[0].batch

    def output_statistics(injected: list[tf.Tensor]) -> list[dict[str, tf.Tensor]]:
        gradients = record.backpropagate(targets, injected, seen)
        back_to_front = _in_turn(
            functools.partial(
                block.pass_statistics,
                record.uses_of(block),
                _reached(block, record, gradients[id(block)], trained),
                weights_of_block,
                batch,
            )
            for block, weights_of_block in reversed(list(zip(seen, weights, strict=True)))
        )  # as the pass comes by: a gradient that waits for the first layer's is kept
        return back_to_front[::-1]

    inputs = _in_turn(
        functools.partial(block.input_statistics, record.uses_of(block), weights_of_block, batch)
        for block, weights_of_block in zip(seen, weights, strict=True)
    )
    outputs = estimator.sum(observations, noise, output_statistics)
    return [
        (block, of_inputs | of_outputs)
        for block, of_inputs, of_outputs in zip(seen, inputs, outputs, strict=True)
    ]


def seen_blocks(blocks: Iterable[CurvatureBlock], record: Record) -> list[CurvatureBlock]:
    """The blocks of which the forward pass shows something."""
    return [b for b in blocks if isinstance(b, DiagonalBlock) or record.uses_of(b)]


def _reached(
    block: CurvatureBlock, record: Record, gradients: list[Any], trained: set[int]
) -> list[Any]:
    """Zeros for uses that have no part in the loss."""
    if isinstance(block, DiagonalBlock):
        return gradients
    hidden = all(gradient is None for gradient in gradients)
    if hidden and any(id(whole_of(variable)) in trained for variable in block.variables):
        raise ValueError(
            f"Layer {block.name!r} is trained, but no path leads from the losses back to its "
            "pre-activations, so KFAC has no statistics of it. Is it called inside "
            "tf.recompute_grad or another function with a gradient of its own, or trained by a "
            f"regulariser alone? Leave it out: KFAC(skip=({block.name!r},))."
        )
    return [
        tf.zeros_like(use.preactivations) if gradient is None else gradient
        for use, gradient in zip(record.uses_of(block), gradients, strict=True)
    ]


def _in_turn(computations: Iterable[Callable[[], Any]]) -> list[Any]:
    """Results of computations that a graph must not run side by side: their temporaries add up."""
    results: list[Any] = []
    for compute in computations:
        with tf.control_dependencies(tf.nest.flatten(results[-1:])):
            results.append(compute())
    return results


def require_seen(
    blocks: Iterable[CurvatureBlock], record: Record, variables: Sequence[Any]
) -> None:
    """Every block with a gradient must have been seen in the forward pass, diagonals excepted.

    Args:
        blocks: The model's blocks.
        record: What the forward pass left behind.
        variables: The variables that have a gradient.

    Raises:
        ValueError: Naming the layer and the remedy.
    """
    trained = {id(variable) for variable in variables}
    for block in blocks:
        hidden = block.name in record.unreachable
        has_gradient = any(id(whole_of(variable)) in trained for variable in block.variables)
        if isinstance(block, DiagonalBlock) or not has_gradient:
            continue
        if record.uses_of(block) and not hidden:
            continue
        why = "was not seen in the forward pass"
        if hidden:
            why = "runs inside an inner graph (a tf.function, a loop or a branch)"
        raise ValueError(
            f"Layer {block.name!r} {why}, so KFAC has no statistics of it. Call layers in the "
            "model's own `call`, without a tf.function around them, and build the model before "
            f"training (model(x)); or leave the layer out: KFAC(skip=({block.name!r},))."
        )
