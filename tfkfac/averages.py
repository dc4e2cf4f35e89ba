"""Decayed averages of curvature statistics.

Whoever holds variables, here or in `tfkfac.factors`, is made in two steps, as Keras optimizers
are: constructed from shapes, then `build` with the optimizer's ``add_variable``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tensorflow as tf

from tfkfac import linalg
from tfkfac.graph_functions import once_per_shape

AddVariable = Callable[..., Any]
"""``keras.optimizers.Optimizer.add_variable``."""

Averages = Mapping[str, tf.Tensor]
"""Name → decayed average of a statistic."""


class DecayedAverages:
    """Decayed averages of several statistics that are always updated together.

    ``V ← d·V + weight·C`` and ``w ← d·w + weight``, served as ``V / w`` (mathematics.md §2): there
    is no start-up bias, and a partial batch enters with its share of a whole one.

    Args:
        name: Prefix of the variables' names.
        shapes: Name of a statistic → shape.
        dtype: Floating dtype of the statistics.
    """

    def __init__(self, name: str, shapes: Mapping[str, tuple[int, ...]], dtype: str) -> None:
        self.name = name
        self.shapes = dict(shapes)
        self.dtype = dtype
        self._sums: dict[str, Any] = {}
        self._weight: Any = None

    @property
    def built(self) -> bool:
        """Whether the variables exist."""
        return self._weight is not None

    @property
    def variables(self) -> list[Any]:
        """The sums and their weight; empty before `build`."""
        return [*self._sums.values(), self._weight] if self.built else []

    def build(self, add_variable: AddVariable) -> None:
        """Makes the variables."""
        self._sums = {
            key: add_variable(shape=shape, dtype=self.dtype, name=f"{self.name}_{key}")
            for key, shape in self.shapes.items()
        }
        self._weight = add_variable(shape=(), dtype=self.dtype, name=f"{self.name}_weight")

    def update(
        self, contributions: Mapping[str, tf.Tensor], decay: tf.Tensor, weight: tf.Tensor
    ) -> tf.Tensor:
        """Enters one batch; a batch with a non-finite statistic is left out.

        Args:
            contributions: A tensor for each statistic.
            decay: Scalar in [0, 1).
            weight: Scalar, the share of a whole batch (1 for a whole one).

        Returns:
            Whether the batch was entered, a boolean scalar.
        """
        sums, total_weight, finite = _entered(
            {key: tf.convert_to_tensor(total) for key, total in self._sums.items()},
            {key: tf.cast(contributions[key], self.dtype) for key in self._sums},
            tf.convert_to_tensor(self._weight),
            tf.cast(decay, self.dtype),
            tf.cast(weight, self.dtype),
        )
        for key, total in self._sums.items():
            total.assign(sums[key])
        self._weight.assign(total_weight)
        return finite

    def read(self) -> Served:
        """The averages; zeros before the first update."""
        weight = tf.convert_to_tensor(self._weight)
        return Served(self._sums, tf.math.divide_no_nan(tf.ones_like(weight), weight))


class Served(Mapping[str, tf.Tensor]):
    """``V / w`` of every statistic, made when it is asked for.

    Args:
        sums: Name → V.
        scale: 1/w.
    """

    def __init__(self, sums: Mapping[str, Any], scale: tf.Tensor) -> None:
        self._sums = sums
        self._scale = scale

    def __getitem__(self, key: str) -> tf.Tensor:
        """The average of a statistic."""
        return tf.convert_to_tensor(self._sums[key]) * self._scale

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self._sums)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._sums)

    def of(self, key: str, linear: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
        """A linear function of an average, without making the whole average.

        Args:
            key: Of the statistic.
            linear: Of it, such as a trace.
        """
        return linear(tf.convert_to_tensor(self._sums[key])) * self._scale


@once_per_shape
def _entered(
    sums: dict[str, tf.Tensor],
    contributions: dict[str, tf.Tensor],
    total_weight: tf.Tensor,
    decay: tf.Tensor,
    weight: tf.Tensor,
) -> tuple[dict[str, tf.Tensor], tf.Tensor, tf.Tensor]:
    """V and w after a batch, and whether it was finite; else V and w as they were."""
    finite = linalg.finite_diagonals(*contributions.values()) & linalg.all_finite(decay)
    kept = tf.where(finite, decay, tf.ones_like(decay))
    share = tf.where(finite, weight, tf.zeros_like(weight))
    entered = {
        key: kept * total + tf.math.multiply_no_nan(contributions[key], share)
        for key, total in sums.items()
    }
    return entered, kept * total_weight + share, finite
