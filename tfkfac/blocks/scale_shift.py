"""Scales and shifts of single units, as normalisation layers train them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfkfac import linalg
from tfkfac.blocks.curvature_block import CurvatureBlock
from tfkfac.blocks.use import Use, UseWeights


class ScaleShiftBlock(CurvatureBlock):
    """``s = γ∘x̂ + β``: for every unit the exact 2×2 Fisher of (γ, β) (mathematics.md §2).

    ``F_u = E_n[v vᵀ]`` with ``v = (Σ_t g_u x̂_u, Σ_t g_u)``, the gradient of one example, summed
    over the places of all uses. Of something that is learned without examples (positions, queries)
    the rows belong to all examples alike: then ``v`` is summed over them too and stands for one
    draw, ``F_u = E[v vᵀ]/N``, as in `DiagonalBlock`.

    Args:
        layer: The Keras layer.
        scale: γ, or None where there is none or it is frozen.
        shift: β, likewise; not both are None.
        normalized: From a use to x̂, of the shape of the layer's output.
        unit_axes: The axes of the output along which units differ, in the order of the variables'
            axes.
    """

    label = "scale-shift"

    def __init__(
        self,
        layer: Any,
        scale: Any,
        shift: Any,
        *,
        normalized: Callable[[Use], tf.Tensor],
        unit_axes: Sequence[int],
    ) -> None:
        variables = [variable for variable in (scale, shift) if variable is not None]
        self._shape = tuple(variables[0].shape)
        units = int(tf.TensorShape(self._shape).num_elements())
        super().__init__([layer], variables, {"F": (units, len(variables), len(variables))})
        self._has_scale, self._has_shift = scale is not None, shift is not None
        self._normalized = normalized
        self._unit_axes = tuple(unit_axes)

    def pass_statistics(
        self,
        uses: Sequence[Use],
        gradients: Sequence[Any],
        weights: Sequence[UseWeights],
        batch: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        """``Σ_n v vᵀ / N`` for every unit."""
        examples = tf.add_n(
            [
                self._gradients_of_examples(use, gradient, batch, weight.of_examples)
                for use, gradient, weight in zip(uses, gradients, weights, strict=True)
            ]
        )
        moment = tf.einsum("nui,nuj->uij", examples, examples)
        return {"F": moment / tf.cast(batch, self.dtype)}

    def precondition(
        self, gradients: Sequence[tf.Tensor], damping: float | tf.Tensor | None = None
    ) -> list[tf.Tensor]:
        """``(F_u + λI)⁻¹ v`` for every unit, in closed form."""
        fisher, damping = self.averages()["F"], self.damping_or_current(damping)
        vectors = [tf.reshape(tf.cast(each, self.dtype), [-1]) for each in gradients]
        solved = _solve(fisher, damping, vectors)
        return [tf.reshape(each, self._shape) for each in solved]

    def trace(self) -> tf.Tensor:
        """Of the blocks of all units."""
        return tf.reduce_sum(self._averages.read().of("F", linalg.traces))

    def to_dense(self) -> tf.Tensor:
        """Rows run over all of γ, then over all of β."""
        fisher = self.averages()["F"]
        size = len(self.variables) * fisher.shape[0]
        pairs = tf.linalg.diag(tf.transpose(fisher, [1, 2, 0]))
        return tf.reshape(tf.transpose(pairs, [0, 2, 1, 3]), [size, size])

    def _gradients_of_examples(
        self, use: Use, gradient: Any, batch: tf.Tensor, of_examples: bool | None
    ) -> tf.Tensor:
        """v of every example, ``[N, units, 1 or 2]``."""
        gradient = tf.cast(gradient, self.dtype)
        parts = []
        if self._has_scale:
            parts.append(gradient * tf.cast(self._normalized(use), self.dtype))
        if self._has_shift:
            parts.append(gradient)
        rows = tf.stack([self._sum_over_places(part) for part in parts], axis=-1)
        return _sum_by_example(rows, batch, of_examples)

    def _sum_over_places(self, values: tf.Tensor) -> tf.Tensor:
        """``[rows, ...]`` → ``[rows, units]``."""
        rank = values.shape.rank
        axes = [axis % rank for axis in self._unit_axes]
        places = [axis for axis in range(1, rank) if axis not in axes]
        if axes != sorted(axes):
            values = tf.transpose(values, [0, *places, *axes])
            places = list(range(1, 1 + len(places)))
        if places:
            values = tf.reduce_sum(values, axis=places)
        return tf.reshape(values, [-1, self._averages.shapes["F"][0]])


def _sum_by_example(rows: tf.Tensor, batch: tf.Tensor, of_examples: bool | None) -> tf.Tensor:
    """``[rows, ...]`` → ``[N, ...]``; several rows may belong to one example.

    Rows of no example in particular are all entered into the first one: no branches, both would
    have to compile.

    Args:
        rows: One or more of each example, or of all alike.
        batch: N.
        of_examples: Whether they are of examples; None if only the step will tell.
    """
    shape = rows.shape[1:].as_list()
    if of_examples:
        return tf.reduce_sum(tf.reshape(rows, [batch, -1, *shape]), axis=1)
    of_all = tf.pad(
        tf.reduce_sum(rows, axis=0, keepdims=True), [[0, batch - 1], *[[0, 0]] * len(shape)]
    )
    if of_examples is not None:
        return of_all
    count = tf.shape(rows)[0]
    folds = (count + batch - 1) // batch
    padded = tf.pad(rows, [[0, batch * folds - count], *[[0, 0]] * len(shape)])
    sums = tf.reduce_sum(tf.reshape(padded, [batch, folds, *shape]), axis=1)
    return tf.where(tf.equal(count % batch, 0), sums, of_all)


def _solve(fisher: tf.Tensor, damping: tf.Tensor, vectors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Solves a damped system of one or two unknowns for every unit.

    Of a batch of one F_u is singular. What single precision has rounded in it may make the
    determinant 0 or negative, and lead uphill, unless λ is larger (`FLOOR`).
    """
    if len(vectors) == 1:
        return [vectors[0] / (fisher[:, 0, 0] + damping)]
    dtype = fisher.dtype
    fisher, damping, first, second = (
        tf.cast(each, tf.float64) for each in (fisher, damping, *vectors)
    )
    a, b, _, c = tf.unstack(tf.reshape(fisher, [-1, 4]), axis=1)
    if dtype != tf.float64:
        damping = tf.maximum(damping, FLOOR * (a + c))
    a, c = a + damping, c + damping
    determinant = a * c - b * b
    solved = (c * first - b * second) / determinant, (a * second - b * first) / determinant
    return [tf.cast(each, dtype) for each in solved]


FLOOR = 1e-6
"""Least λ in units of tr F_u, in single precision."""
