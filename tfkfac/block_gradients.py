"""Gradients of variables, block by block: a block has several, or parts of some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfkfac import indexed_slices
from tfkfac.blocks import Block
from tfkfac.variable_slice import put, take, whole_of


def with_gradients(blocks: Sequence[Block], variables: Sequence[Any]) -> list[Block]:
    """The blocks of some variables.

    Args:
        blocks: All blocks.
        variables: Those that have a gradient.
    """
    given = {id(variable) for variable in variables}
    return [b for b in blocks if any(id(whole_of(v)) in given for v in b.variables)]


def take_apart(
    blocks: Sequence[Block], gradients: Sequence[Any], variables: Sequence[Any]
) -> list[tuple[Block, list[Any]]]:
    """Blocks, each with the gradients of its variables.

    Args:
        blocks: Blocks of some of the variables.
        gradients: One for each of `variables`.
        variables: Trainable variables; one that is missing has a gradient of zero.
    """
    given = {id(v): gradient for v, gradient in zip(variables, gradients, strict=True)}

    def of(variable: Any) -> Any:
        if id(whole_of(variable)) in given:
            return take(variable, given)
        return tf.zeros(variable.shape, variable.dtype)

    return [(block, [of(variable) for variable in block.variables]) for block in blocks]


def put_together(
    blocks: Sequence[Block], directions: Mapping[int, Sequence[Any]], variables: Sequence[Any]
) -> list[Any]:
    """The reverse of `take_apart`.

    Args:
        blocks: The same.
        directions: id of a block → a tensor for each of its variables.
        variables: The variables that are asked for.
    """
    parts = [variable for block in blocks for variable in block.variables]
    wholes = put(parts, [tensor for block in blocks for tensor in directions[id(block)]])
    return [wholes[id(variable)] for variable in variables]


def weighted_dot(
    blocks: Sequence[Block],
    left: Sequence[Any],
    right: Sequence[Any],
    variables: Sequence[Any],
    weights: Sequence[tf.Tensor],
) -> tf.Tensor:
    """``Σ_b w_b·u_bᵀv_b`` over blocks.

    Args:
        blocks: All blocks.
        left: u, a tensor for each of `variables`; or only some of its rows.
        right: v.
        variables: The trainable variables that have a gradient.
        weights: w_b, a scalar for each block.
    """
    of_left, of_right = (
        {id(variable): value for variable, value in zip(variables, values, strict=True)}
        for values in (left, right)
    )
    terms = []
    for block, weight in zip(blocks, weights, strict=True):
        dots = [
            indexed_slices.dot(take(variable, of_left), take(variable, of_right))
            for variable in block.variables
            if id(whole_of(variable)) in of_left
        ]
        if dots:
            total = tf.add_n([tf.cast(dot, dots[0].dtype) for dot in dots])
            terms.append(total * tf.cast(weight, total.dtype))
    return tf.add_n([tf.cast(term, terms[0].dtype) for term in terms])
