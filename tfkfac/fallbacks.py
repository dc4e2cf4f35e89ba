"""The variables that no block of a layer's own covers, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from tfkfac import keras_internals, recurrent_pass
from tfkfac.blocks import Block, DiagonalBlock, PlainGradient
from tfkfac.variable_slice import VariableSlice, whole_of

SKIPPED = "skipped by the user"


def within_loops(layers: Sequence[Any]) -> dict[int, str]:
    """id of a layer inside a cell → the name of the recurrent layer whose steps call it.

    The loop over the steps hides their inputs and pre-activations.
    """
    return {
        id(inner): layer.name
        for layer in layers
        if isinstance(layer, keras.layers.RNN)
        for inner in keras_internals.flatten_layers(layer.cell)
    }


def without_conflicts(blocks: Sequence[Block], reasons: dict[int, str]) -> list[Block]:
    """Drops blocks that claim a variable together with another: it is used in two places.

    The blocks of one layer may share it out among them.
    """
    owners: dict[Any, list[Block]] = {}
    for block in blocks:
        for variable in block.variables:
            owners.setdefault(id(whole_of(variable)), []).append(block)
    shared = {
        id(block)
        for key, claims in owners.items()
        if len(claims) > 1 and not _is_shared_out(key, claims)
        for block in claims
    }
    for block in blocks:
        if id(block) in shared:
            reasons[id(block.layers[0])] = "shares a variable with another layer"
    return [block for block in blocks if id(block) not in shared]


def _is_shared_out(key: int, claims: Sequence[Block]) -> bool:
    """Whether blocks of one layer claim different parts of the variable with this id."""
    claimed = [v for block in claims for v in block.variables if id(whole_of(v)) == key]
    parts = all(isinstance(v, VariableSlice) for v in claimed)
    return parts and len({id(block.layers[-1]) for block in claims}) == 1


def fallback_blocks(
    model: Any, layers: Sequence[Any], blocks: Sequence[Block], reasons: dict[int, str]
) -> list[Block]:
    """Diagonals for every trainable variable that no block covers, a block a layer.

    What the user has skipped follows the plain gradient.
    """
    covered = {id(whole_of(variable)) for block in blocks for variable in block.variables}
    left = {id(v): v for v in model.trainable_variables if id(v) not in covered}
    owners = {id(v): model for v in left.values()}
    cells = {
        id(cell)
        for layer in layers
        if isinstance(layer, keras.layers.RNN)
        for cell in (layer.cell, *recurrent_pass.cells_of(layer))
    }
    for layer in layers:  # parents come before their children: the innermost layer wins
        if id(layer) in cells:
            continue  # a cell is no layer of its own
        owners.update({id(v): layer for v in layer.trainable_variables if id(v) in left})
    grouped: dict[int, tuple[Any, list[Any]]] = {}
    for key, variable in left.items():
        grouped.setdefault(id(owners[key]), (owners[key], []))[1].append(variable)
    with_block = {id(layer) for block in blocks for layer in block.layers}
    found: list[Block] = []
    for layer, variables in grouped.values():
        own = "its own variables"
        if id(layer) in with_block:
            own = "only its " + ", ".join(variable.name for variable in variables)
        reason = reasons.get(id(layer), own)
        kind = PlainGradient if reason == SKIPPED else DiagonalBlock
        found.append(kind([layer], variables, reason))
    return found
