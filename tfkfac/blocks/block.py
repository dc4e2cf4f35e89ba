"""What every block offers, whether it keeps curvature or not."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tfkfac.averages import AddVariable


class Kept(NamedTuple):
    """Which variables of a block there are on a worker.

    Attributes:
        averages: Whether its averages are.
        inverse: Whether what it preconditions with is.
    """

    averages: bool = True
    inverse: bool = True


ALL = Kept()
"""What one worker keeps."""


class Block(abc.ABC):
    """The curvature of the parameters of one layer.

    Attributes:
        layers: The Keras layers of which the block is the curvature.
        variables: The trainable variables it covers, in the order of its gradients.
        reason: Why the block is no better than it is, or None (shown in the summary).
        without_examples: Whether ``method="ekfac"`` was asked for, of a family of blocks that
            cannot tell examples apart: then it is "eigen".
    """

    label: str
    reason: str | None = None
    without_examples: bool = False

    def __init__(self, layers: Sequence[Any], variables: Sequence[Any]) -> None:
        self.layers = list(layers)
        self.variables = list(variables)

    @property
    def name(self) -> str:
        """The name of the (first) layer."""
        return str(self.layers[0].name)

    @property
    def factors(self) -> dict[str, tf.Tensor]:
        """Name → curvature factor as it stands (empty for a block without curvature)."""
        return {}

    @property
    def factor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of each factor."""
        return {}

    @property
    def cut_to_diagonal(self) -> list[str]:
        """Names of the factors of which only the diagonal is kept, for their size."""
        return []

    @property
    def factor_size(self) -> int:
        """Numbers in one copy of the factors."""
        return 0

    @property
    def state_size(self) -> int:
        """Numbers kept by the block: averages and inverses."""
        return 0

    @property
    def bytes_each(self) -> int:
        """Bytes of one number of the state."""
        return 4

    @property
    def parameters(self) -> int:
        """The number of parameters covered."""
        sizes = [tf.TensorShape(variable.shape).num_elements() for variable in self.variables]
        return sum(int(size or 0) for size in sizes)

    def build(
        self,
        add_variable: AddVariable,
        damping: Callable[[], tf.Tensor],
        kept: Kept = ALL,
    ) -> None:
        """Makes the block's variables.

        Args:
            add_variable: The optimizer's.
            damping: Returns the damping in force, λ.
            kept: Which of them there are here, and not on other workers only.
        """
        del add_variable, damping, kept

    @abc.abstractmethod
    def precondition(
        self, gradients: Sequence[tf.Tensor], damping: float | tf.Tensor | None = None
    ) -> list[tf.Tensor]:
        """``(F + λI)⁻¹ g`` for this block's F.

        Args:
            gradients: One tensor for each of `variables`.
            damping: λ, and the inverse is made anew from the factors as they stand (0 is allowed,
                for analysis). None applies the inverses that training uses.

        Returns:
            One tensor for each of `variables`.
        """

    def direction(self, gradients: Sequence[tf.Tensor], damping: tf.Tensor) -> list[tf.Tensor]:
        """What a step takes: `precondition` as training uses it.

        Args:
            gradients: One tensor for each of `variables`.
            damping: The damping in force, λ, which is read once for all blocks.

        Returns:
            One tensor for each of `variables`.
        """
        del damping
        return self.precondition(gradients)

    def to_dense(self) -> tf.Tensor:
        """The Fisher block F as a matrix; only for small networks.

        Rows and columns run over the entries of the gradient matrix of the block, row by row.

        Raises:
            ValueError: The block keeps no curvature.
        """
        raise ValueError(
            f"{self.name}: this block ({self.label}) keeps no curvature, so it has no dense form."
        )
