"""A kernel inside a recurrent layer, with or without the curvature between its steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfkfac import lggm
from tfkfac.blocks.dense import DenseBlock
from tfkfac.blocks.use import Use, UseWeights
from tfkfac.chain_inverses import RECURRENT

LONGEST = 512
"""Steps beyond which the length of a sequence is not told apart, if nobody knows it beforehand."""


class RecurrentBlock(DenseBlock):
    """``s_t = a_t·K + b`` at every step t of a sequence (Martens, Ba & Johnson 2018).

    "independent" takes the steps for independent: ``F = E[T]·A ⊗ G``. The two LGGM forms also keep
    the second moments of neighbouring steps, A₁ and G₁ (mathematics.md §4), and the distribution of
    the lengths.

    Args:
        layers: The Keras layer and its cell.
        kernel: ``[in, out]``, a variable or a part of one.
        bias: ``[out]`` or None, likewise.
        recurrent: A key of ``tfkfac.chain_inverses.RECURRENT``.
        steps: The number of steps of a sequence, None if it is not known.
        of_inputs: Makes a ``[N, T, in]`` of a use; its inputs by default.
        of_gradients: Makes g ``[N, T, out]`` of a use and the gradient at its pre-activations,
            which it is by default.
        max_factor_size: As for `KroneckerBlock`. The LGGM needs both factors whole.
        method: As for `KroneckerBlock`, for "independent".
    """

    normalisers: Mapping[str, str] = {**DenseBlock.normalisers, "A1": "mass", "G1": "uses"}

    def __init__(
        self,
        layers: Sequence[Any],
        kernel: Any,
        bias: Any,
        *,
        recurrent: str = "independent",
        steps: int | None = None,
        of_inputs: Callable[[Use], tf.Tensor] = lambda use: use.inputs,
        of_gradients: Callable[[Use, tf.Tensor], tf.Tensor] | None = None,
        max_factor_size: int | None = None,
        method: str = "cholesky",
    ) -> None:
        widest = max(kernel.shape[0] + (bias is not None), kernel.shape[1])
        too_wide = max_factor_size is not None and widest > max_factor_size
        chain = None if too_wide else RECURRENT[recurrent]
        super().__init__(
            layers[0],
            kernel,
            bias,
            method=method if chain is None else chain,
            max_factor_size=max_factor_size,
        )
        self.layers = list(layers)
        self.label = "independent" if chain is None else recurrent
        self.keeps_lags = chain is not None
        self.steps = steps
        self._of_inputs = of_inputs
        self._of_gradients = of_gradients
        if self.keeps_lags:
            longest = LONGEST if steps is None else min(steps, LONGEST)
            lags = {"A1": (self.input_dim,) * 2, "G1": (self.output_dim,) * 2}
            self._averages.shapes.update({**lags, "lengths": (longest + 1,)})

    @property
    def factor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the factors; the distribution of lengths is none."""
        return {key: shape for key, shape in super().factor_shapes.items() if key != "lengths"}

    @property
    def factors(self) -> dict[str, tf.Tensor]:
        """A and G, and those of neighbouring steps."""
        lags = {key: value for key, value in self.averages().items() if key in ("A1", "G1")}
        return {**super().factors, **lags}

    def inputs_of(self, use: Use) -> tf.Tensor:
        """a at every step."""
        return tf.cast(self._of_inputs(use), self.dtype)

    def gradients_of(self, use: Use, gradient: tf.Tensor) -> tf.Tensor:
        """g at every step."""
        of_use = gradient if self._of_gradients is None else self._of_gradients(use, gradient)
        return tf.cast(of_use, self.dtype)

    def input_statistics(
        self, uses: Sequence[Use], weights: Sequence[UseWeights], batch: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """A and |T| = E[T]; for an LGGM also A₁, with the normaliser of A, and the lengths."""
        statistics = super().input_statistics(uses, weights, batch)
        if not self.keeps_lags:
            return statistics
        lag1 = [
            _lag1(self._weighted_rows(use, weight), self.input_dim)
            for use, weight in zip(uses, weights, strict=True)
        ]
        lengths = [self._lengths(use) for use in uses]
        total = tf.add_n([weight.total for weight in weights])
        return statistics | {
            "A1": tf.math.divide_no_nan(tf.add_n(lag1), total),
            "lengths": tf.add_n(lengths) / tf.cast(batch, self.dtype),
        }

    def pass_statistics(
        self,
        uses: Sequence[Use],
        gradients: Sequence[Any],
        weights: Sequence[UseWeights],
        batch: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        """G; for an LGGM also G₁, with the normaliser of G; s where it is asked for."""
        pairs = list(zip(uses, gradients, strict=True))
        places = tf.add_n([weight.places for weight in weights])
        moments = [self._output_moments(use, gradient) for use, gradient in pairs]
        of_steps = {
            key: tf.math.divide_no_nan(tf.add_n([moment[key] for moment in moments]), places)
            for key in moments[0]
        }
        return of_steps | self.statistics_of_examples(uses, gradients, weights, batch)

    def to_dense(self) -> tf.Tensor:
        """``Σ_{|d|<T} E[(T − |d|)⁺]·A_d ⊗ G_d``, the sum that the form stands for."""
        if not self.keeps_lags:
            return super().to_dense()
        return lggm.dense(self.averages(), symmetric="gain" in self.inverse.shapes())

    def _weighted_rows(self, use: Use, weights: UseWeights) -> tf.Tensor:
        """√ω·(a, 1): masked steps are zero, and so are products with them."""
        rows = self.inputs_of(use)
        if self.has_bias:
            rows = tf.pad(rows, [[0, 0], [0, 0], [0, 1]], constant_values=1)
        if weights.omega is None:
            return rows
        return rows * tf.sqrt(tf.broadcast_to(weights.omega, tf.shape(rows)[:2]))[..., None]

    def _output_moments(self, use: Use, gradient: tf.Tensor) -> dict[str, tf.Tensor]:
        """Σ g gᵀ, and with the step before; once for all blocks with the same g."""
        if self._of_gradients is not None:
            return self._moments_of(self._of_gradients(use, gradient))
        found, moments = use.memo.get("moments", (None, {}))
        if found is not gradient or self.keeps_lags > ("G1" in moments):
            moments = self._moments_of(gradient)
            use.memo["moments"] = gradient, moments
        return moments if self.keeps_lags else {"G": moments["G"]}

    def _moments_of(self, gradient: tf.Tensor) -> dict[str, tf.Tensor]:
        rows = tf.cast(gradient, self.dtype)
        moments = {"G": self.output_form.second_moment(self.output_rows(rows))}
        return moments | {"G1": _lag1(rows, self.output_dim)} if self.keeps_lags else moments

    def _lengths(self, use: Use) -> tf.Tensor:
        """How many sequences have each length, up to the longest told apart."""
        longest = self._averages.shapes["lengths"][0] - 1
        steps = tf.shape(use.preactivations)
        lengths = tf.fill(steps[:1], steps[1])
        if use.mask is not None:
            lengths = tf.reduce_sum(tf.cast(use.mask, tf.int32), axis=1)
        counted = tf.one_hot(tf.minimum(lengths, longest), longest + 1, dtype=self.dtype)
        return tf.reduce_sum(counted, axis=0)


def _lag1(rows: tf.Tensor, dim: int) -> tf.Tensor:
    """``Σ x_{t+1} x_tᵀ`` of ``[N, T, dim]``."""
    later = tf.reshape(rows[:, 1:], [-1, dim])
    earlier = tf.reshape(rows[:, :-1], [-1, dim])
    return tf.matmul(later, earlier, transpose_a=True)
