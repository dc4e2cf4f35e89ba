"""The fallback: a variable without curvature follows its gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfkfac.blocks.block import Block


class PlainGradient(Block):
    """F is taken as the identity, undamped: the preconditioned gradient is the gradient.

    Args:
        layers: The layers that own the variables.
        variables: The variables.
        reason: Why no curvature is kept.
    """

    label = "gradient"

    def __init__(self, layers: Sequence[Any], variables: Sequence[Any], reason: str) -> None:
        super().__init__(layers, variables)
        self.reason = reason

    def precondition(
        self, gradients: Sequence[tf.Tensor], damping: float | tf.Tensor | None = None
    ) -> list[tf.Tensor]:
        """The gradients themselves."""
        del damping
        return list(gradients)
