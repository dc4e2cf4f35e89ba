"""What a block is shown of a layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import tensorflow as tf


@dataclasses.dataclass(frozen=True, eq=False)
class Use:
    """One use of a layer in a forward pass (a shared layer has several).

    Attributes:
        inputs: a, as the layer received it (examples first).
        preactivations: s, the layer's output before its activation.
        mask: Keras mask of the inputs (True = counts), of the shape of the leading axes of
            `inputs`, or None.
        arguments: Name → value of the other arguments with which the layer was called.
        memo: What blocks that see the same use need compute only once.
    """

    inputs: tf.Tensor
    preactivations: tf.Tensor
    mask: tf.Tensor | None = None
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    memo: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class UseWeights:
    """How much the places of one use count (mathematics.md §2).

    Attributes:
        omega: ω, broadcastable to the places of the use (pre-activations without their channel
            axis), or None where every place counts 1.
        total: Σω, scalar.
        places: The number of valid places, scalar.
        of_examples: Whether the first axis of the use runs over the examples (several rows each, or
            one); None where only the step itself can tell.
    """

    omega: tf.Tensor | None
    total: tf.Tensor
    places: tf.Tensor
    of_examples: bool | None = None
