"""What every curvature block offers, and what it is shown of a layer."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfkfac.factors import AddVariable


@dataclasses.dataclass(frozen=True, eq=False)
class Use:
    """One use of a layer in a forward pass (a shared layer has several).

    Attributes:
        inputs: a, as the layer received it (examples first).
        preactivations: s, the layer's output before its activation.
        mask: Keras mask of the inputs (True = counts), of the shape of the leading axes of
            `inputs`, or None.
    """

    inputs: tf.Tensor
    preactivations: tf.Tensor
    mask: tf.Tensor | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class UseWeights:
    """How much the places of one use count (mathematics.md §2).

    Attributes:
        omega: ω, broadcastable to the places of the use (pre-activations without their channel
            axis), or None where every place counts 1.
        total: Σω, scalar.
        places: The number of valid places, scalar.
    """

    omega: tf.Tensor | None
    total: tf.Tensor
    places: tf.Tensor


class Block(abc.ABC):
    """The curvature of the parameters of one layer.

    Attributes:
        layers: The Keras layers of which the block is the curvature.
        variables: The trainable variables it covers, in the order of its gradients.
        reason: Why the block is no better than it is, or None (shown in the summary).
    """

    label: str
    reason: str | None = None

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

    def build(self, add_variable: AddVariable, damping: Callable[[], tf.Tensor]) -> None:
        """Makes the block's variables.

        Args:
            add_variable: The optimizer's.
            damping: Returns the damping in force, λ.
        """
        del add_variable, damping

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

    def to_dense(self) -> tf.Tensor:
        """The Fisher block F as a matrix; only for small networks.

        Rows and columns run over the entries of the gradient matrix of the block, row by row.

        Raises:
            ValueError: The block keeps no curvature.
        """
        raise ValueError(
            f"{self.name}: this block ({self.label}) keeps no curvature, so it has no dense form."
        )
