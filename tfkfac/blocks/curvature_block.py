"""What every block with curvature offers: statistics, their averages, and what is made of them."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfkfac import linalg
from tfkfac.averages import AddVariable, DecayedAverages
from tfkfac.blocks.block import ALL, Block, Kept
from tfkfac.blocks.failure_counts import FailureCounts
from tfkfac.blocks.use import Use, UseWeights


class CurvatureBlock(Block):
    """A block that learns the curvature of its parameters from what is recorded.

    Args:
        layers: The Keras layers.
        variables: The trainable variables.
        statistics: Name of a statistic → shape; their decayed averages are kept.
    """

    channel_axis: int = -1
    """The axis of the pre-activations that is not a place."""

    normalisers: Mapping[str, str] = {}
    """Name of a statistic → the statistic, a mean over examples, that counts what it is a mean
    over; statistics that are not named here are means over examples (see ``tfkfac.pooling``)."""

    def __init__(
        self,
        layers: Sequence[Any],
        variables: Sequence[Any],
        statistics: Mapping[str, tuple[int, ...]],
    ) -> None:
        super().__init__(layers, variables)
        self.dtype = "float64" if str(variables[0].dtype) == "float64" else "float32"
        self.state_name = "_".join(str(variables[0].path).split("/"))
        self._averages = DecayedAverages(self.state_name, statistics, self.dtype)
        self._damping: Callable[[], tf.Tensor] | None = None
        self._failures = FailureCounts(self.state_name, self.dtype)

    @property
    def channel_axes(self) -> tuple[int, ...]:
        """All axes of the pre-activations that are no places."""
        return (self.channel_axis,)

    def mask_of_places(self, use: Use) -> tf.Tensor | None:
        """Which places of a use count, along the leading axes of its places (None: all)."""
        return use.mask

    # --- statistics ------------------------------------------------------------------------

    def accepts(self, use: Use) -> bool:
        """Whether a use of its layers is one of the variables that the block covers."""
        del use
        return True

    def sources(self, uses: Sequence[Use]) -> list[Any]:
        """What the backward pass of the curvature has to reach."""
        return [use.preactivations for use in uses]

    def input_statistics(
        self, uses: Sequence[Use], weights: Sequence[UseWeights], batch: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Statistics of the forward pass alone.

        Args:
            uses: What was recorded.
            weights: How much the places of each use count.
            batch: N, the batch size of the model.
        """
        del uses, weights, batch
        return {}

    @abc.abstractmethod
    def pass_statistics(
        self,
        uses: Sequence[Use],
        gradients: Sequence[Any],
        weights: Sequence[UseWeights],
        batch: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        """Statistics of one backward pass; those of several passes are added.

        Args:
            uses: What was recorded.
            gradients: The backpropagated g at each of `sources`.
            weights: How much the places of each use count.
            batch: N, the batch size of the model.
        """

    @property
    def statistic_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of the statistics of a batch: of those that are kept, and what they need."""
        kept = self._averages.shapes
        counts: dict[str, tuple[int, ...]] = {
            self.normalisers[key]: () for key in kept if key in self.normalisers
        }
        return kept | counts

    def update(
        self, statistics: dict[str, tf.Tensor], decay: tf.Tensor, weight: tf.Tensor
    ) -> tf.Tensor:
        """Enters the statistics of a batch into the decayed averages; returns whether it did."""
        is_good = self._averages.update(statistics, decay, weight)
        self._failures.note("statistics", is_good)
        return is_good

    @property
    def triangles(self) -> frozenset[str]:
        """Names of the statistics that are symmetric matrices; their lower triangles count."""
        return frozenset()

    def refresh(self, damping: tf.Tensor) -> None:
        """Recomputes what is kept to precondition with, where something is."""
        self.keep(self.fresh(damping))

    def fresh(self, damping: tf.Tensor) -> list[tf.Tensor]:
        """What is to be kept to precondition with, made anew from the averages.

        Args:
            damping: λ.

        Returns:
            Tensors of `kept_shapes`, for `keep`; none for a block that keeps nothing but averages.
        """
        del damping
        return []

    def keep(self, fresh: Sequence[tf.Tensor]) -> None:
        """Keeps what `fresh` has made, here or on another worker."""
        del fresh

    @property
    def kept_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of what is kept to precondition with."""
        return []

    @property
    def kept_triangles(self) -> list[bool]:
        """Which of these are symmetric matrices."""
        return []

    def direction(self, gradients: Sequence[tf.Tensor], damping: tf.Tensor) -> list[tf.Tensor]:
        """With what is kept, or from the averages and λ where nothing is."""
        return self.precondition(gradients, None if self.kept_shapes else damping)

    @property
    def refresh_cost(self) -> float:
        """What `fresh` costs, up to a constant common to all blocks (0: it makes nothing)."""
        return 0.0

    @abc.abstractmethod
    def trace(self) -> tf.Tensor:
        """tr F, the sum of its eigenvalues, as it stands."""

    def mean_eigenvalue(self) -> tf.Tensor:
        """``tr F / dim F``, as it stands."""
        return self.trace() / float(self.parameters)

    # --- the public face -------------------------------------------------------------------

    def build(
        self,
        add_variable: AddVariable,
        damping: Callable[[], tf.Tensor],
        kept: Kept = ALL,
    ) -> None:
        """Makes the averages."""
        self._damping = damping
        if kept.averages:
            self._averages.build(add_variable)
            self._failures.build(add_variable)

    @property
    def factor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the factors (statistics that are one number are none)."""
        return {key: shape for key, shape in self._averages.shapes.items() if shape}

    @property
    def factors(self) -> dict[str, tf.Tensor]:
        """The factors as they stand."""
        averages = self.averages()
        return {key: averages[key] for key in self.factor_shapes}

    @property
    def factor_size(self) -> int:
        """Numbers in one copy of the factors."""
        return _numbers(self.factor_shapes.values())

    @property
    def bytes_each(self) -> int:
        """Bytes of one number of the state."""
        return tf.dtypes.as_dtype(self.dtype).size

    @property
    def state_size(self) -> int:
        """The averages, their weight, and counts of failures."""
        return _numbers([*self._averages.shapes.values(), (), self._failures.shape])

    @property
    def state(self) -> list[Any]:
        """All variables that the block has made."""
        return [variable for _, variable in self.state_slots if variable is not None]

    @property
    def state_slots(self) -> list[tuple[tuple[int, ...], Any]]:
        """Shapes of all variables of the block, with those that are here, None for the others."""
        shapes = [*self._averages.shapes.values(), (), self._failures.shape]
        here = [*self._averages.variables, self._failures.variable] if self.is_here else []
        return slots(shapes, here)

    @property
    def is_here(self) -> bool:
        """Whether this worker keeps the averages."""
        return self._averages.built

    def averages(self) -> Mapping[str, tf.Tensor]:
        """The decayed averages of all statistics, or what is made of them.

        Raises:
            ValueError: The block was never built, or another worker keeps them.
        """
        if not self._averages.built:
            self._require_built()
            raise ValueError(
                f"The averages of layer {self.name!r} are kept by another worker. "
                "`optimizer.layer_collection.placement_summary()` tells who has what."
            )
        return self._averages.read()

    @property
    def failures(self) -> Any:
        """How often something failed, a variable (`FailureCounts`); None if kept elsewhere.

        Of inverses the owner of the block counts (see `tfkfac.roles`).
        """
        return self._failures.variable

    def note_inverse(self, is_good: tf.Tensor) -> None:
        """Counts.

        Args:
            is_good: Whether `fresh` made something that can be kept, a boolean scalar.
        """
        self._failures.note("inverse", is_good)

    def damping_or_current(self, damping: float | tf.Tensor | None) -> tf.Tensor:
        """λ as given, or the one in force if None."""
        if damping is not None:
            return linalg.scalar(damping, self.dtype)
        return tf.cast(self._require_built()(), self.dtype)

    def _require_built(self) -> Callable[[], tf.Tensor]:
        """What returns the damping in force."""
        if self._damping is None:
            raise ValueError(
                f"The block of layer {self.name!r} has no statistics: this layer collection was "
                "only scanned. Train with the optimizer and look at `optimizer.layer_collection`."
            )
        return self._damping


def _numbers(shapes: Iterable[tuple[int, ...]]) -> int:
    """Entries of tensors of these shapes."""
    return sum(math.prod(shape) for shape in shapes)


def slots(
    shapes: Sequence[tuple[int, ...]], variables: Sequence[Any]
) -> list[tuple[tuple[int, ...], Any]]:
    """Shapes with the variables that have them, or with None if there are no variables here."""
    here = variables or [None] * len(shapes)
    return list(zip(shapes, here, strict=True))
