"""Embeddings: a look-up is a product with a one-hot row, whose second moment is diagonal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfkfac.blocks.example_gradients import sum_of_squares_of_lookups
from tfkfac.blocks.kronecker import KroneckerBlock
from tfkfac.blocks.use import Use, UseWeights
from tfkfac.factor_forms import DIAGONAL


class EmbeddingBlock(KroneckerBlock):
    """``s = E[token]``: A is the vector of token frequencies, G is dense (mathematics.md §2).

    Gradients that are ``tf.IndexedSlices`` stay so: only the rows of tokens in the batch are
    touched.

    Args:
        layer: The Keras layer.
        embeddings: ``[vocabulary, out]``.
        **options: As for `KroneckerBlock`: `method`, `max_factor_size`.
    """

    label = "Embedding"
    looks_up = True
    tells_examples_apart = True

    def __init__(self, layer: Any, embeddings: Any, **options: Any) -> None:
        vocabulary, output_dim = embeddings.shape
        super().__init__(
            layer,
            embeddings,
            None,
            input_dim=vocabulary,
            output_dim=output_dim,
            input_form=DIAGONAL,
            **options,
        )

    def cast_inputs(self, inputs: Any) -> tf.Tensor:
        """Token numbers."""
        return tf.cast(inputs, tf.int32)

    def input_moment(self, inputs: tf.Tensor, weights: UseWeights) -> tf.Tensor:
        """The weighted count of each token."""
        tokens = tf.reshape(inputs, [-1])
        omega = tf.ones([], self.dtype) if weights.omega is None else weights.omega
        counts = tf.reshape(tf.broadcast_to(omega, tf.shape(inputs)), [-1])
        return tf.math.unsorted_segment_sum(counts, tokens, self.input_dim)

    def output_rows(self, gradients: tf.Tensor) -> tf.Tensor:
        """Gradients ``[..., out]``, flattened to rows."""
        return tf.reshape(gradients, [-1, self.output_dim])

    def sum_of_squares(
        self, inputs: Sequence[tf.Tensor], gradients: Sequence[tf.Tensor], examples: Any
    ) -> tf.Tensor:
        """The looked up rows alone; the others are zero."""
        tokens = tf.concat([tf.reshape(each, [examples, -1]) for each in inputs], axis=1)
        shape = [examples, -1, self.output_dim]
        rows = tf.concat([tf.reshape(each, shape) for each in gradients], axis=1)
        _, output_basis = self.inverse.bases()
        return sum_of_squares_of_lookups(tokens, rows, self.input_dim, output_basis)

    def kernel_to_matrix(self, kernel: tf.Tensor) -> tf.Tensor:
        """The embeddings are a matrix already."""
        return kernel

    def matrix_to_kernel(self, matrix: tf.Tensor) -> tf.Tensor:
        """The embeddings are a matrix already."""
        return matrix

    def apply(
        self, inverse: list[tf.Tensor], gradients: Sequence[Any], damping: tf.Tensor
    ) -> list[Any]:
        """As for every Kronecker block; row by row if the gradient holds only some rows."""
        (gradient,) = gradients
        if not isinstance(gradient, tf.IndexedSlices):
            return super().apply(inverse, gradients, damping)
        of_rows = [tf.gather(inverse[0], gradient.indices), *inverse[1:]]
        values = self.inverse.apply(of_rows, tf.cast(gradient.values, self.dtype), damping)
        return [tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)]


class TiedEmbeddingBlock(EmbeddingBlock):
    """Embeddings that are looked up and, transposed, make logits: ``s = E[token]``, ``z = h·Eᵀ``.

    Each kind of use has a Fisher of its own, F₁ = |T₁|·diag(frequencies) ⊗ E[g gᵀ] and
    F₂ = |T₂|·diag E[g_z∘g_z] ⊗ E[h hᵀ]. Their sum is taken as one product that keeps its trace and
    mixes the factors of both by the shares of the traces: with t = tr F,
    ``A = Σ_i (t_i/Σt)·A_i/tr A_i`` and ``G = Σ_i t_i·G_i/tr G_i``. It is exact for one kind of use.

    Args:
        layer: The Keras layer.
        embeddings: ``[vocabulary, out]``.
        is_reverse: Whether a use makes logits.
        **options: As for `KroneckerBlock`: `method`, `max_factor_size`.
    """

    label = "TiedEmbedding"
    looks_up = False
    normalisers: Mapping[str, str] = {
        **EmbeddingBlock.normalisers,
        "reverse_G": "reverse_mass",
        "reverse_A": "reverse_uses",
    }
    tells_examples_apart = False  # the two kinds of use would have to be added up

    def __init__(
        self, layer: Any, embeddings: Any, *, is_reverse: Callable[[Use], bool], **options: Any
    ) -> None:
        super().__init__(layer, embeddings, **options)
        self._is_reverse = is_reverse
        kept = self._averages.shapes
        shapes = {key: kept[key] for key in ("A", "G", "uses")}
        self._averages.shapes.update({f"reverse_{key}": shape for key, shape in shapes.items()})

    @property
    def factor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the product that stands for both kinds of use."""
        return {key: self._averages.shapes[key] for key in ("A", "G")}

    def input_statistics(
        self, uses: Sequence[Use], weights: Sequence[UseWeights], batch: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Frequencies of tokens, and the second moment of what becomes logits."""
        (looked_up, their_weights), (reversed_, other_weights) = self._by_kind(uses, weights)
        none = tf.zeros([], self.dtype)
        statistics = {"A": tf.zeros([self.input_dim], self.dtype), "uses": none, "mass": none}
        if looked_up:
            statistics = super().input_statistics(looked_up, their_weights, batch)
        moment = tf.zeros(self._averages.shapes["G"], self.dtype)
        total = places = tf.zeros([], self.dtype)
        for use, weight in zip(reversed_, other_weights, strict=True):
            rows = tf.reshape(tf.cast(use.inputs, self.dtype), [-1, self.output_dim])
            if weight.omega is not None:
                omega = tf.broadcast_to(weight.omega, tf.shape(use.inputs)[:-1])
                rows *= tf.sqrt(tf.reshape(omega, [-1, 1]))
            moment += self.output_form.second_moment(rows)
            total, places = total + weight.total, places + weight.places
        return statistics | {
            "reverse_G": tf.math.divide_no_nan(moment, total),
            "reverse_uses": places / tf.cast(batch, self.dtype),
            "reverse_mass": total / tf.cast(batch, self.dtype),
        }

    def pass_statistics(
        self,
        uses: Sequence[Use],
        gradients: Sequence[Any],
        weights: Sequence[UseWeights],
        batch: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        """E[g gᵀ] at what was looked up, E[g∘g] at the logits."""
        triples = list(zip(uses, gradients, weights, strict=True))
        looked_up = [each[1:] for each in triples if not self._is_reverse(each[0])]
        statistics = {"G": tf.zeros(self._averages.shapes["G"], self.dtype)}
        if looked_up:
            statistics = self.output_statistics(*map(list, zip(*looked_up, strict=True)))
        squares, places = tf.zeros([self.input_dim], self.dtype), tf.zeros([], self.dtype)
        for use, gradient, weight in triples:
            if self._is_reverse(use):
                rows = tf.reshape(tf.cast(gradient, self.dtype), [-1, self.input_dim])
                squares += tf.reduce_sum(tf.square(rows), axis=0)
                places += weight.places
        return statistics | {"reverse_A": tf.math.divide_no_nan(squares, places)}

    def trace(self) -> tf.Tensor:
        """``tr A·tr G``."""
        averages = self.averages()
        return tf.reduce_sum(averages["A"]) * self.output_form.trace(averages["G"])

    def averages(self) -> Mapping[str, tf.Tensor]:
        """A and G of the one product, used once."""
        kept = super().averages()
        parts = []
        for prefix in ("", "reverse_"):
            A, G, uses = (kept[prefix + key] for key in ("A", "G", "uses"))
            traces = tf.reduce_sum(A), tf.reduce_sum(self.output_form.diagonal(G))
            parts.append((A, G, traces, uses * traces[0] * traces[1]))
        whole = tf.add_n([trace for *_, trace in parts])
        share = [tf.math.divide_no_nan(trace, whole) for *_, trace in parts]
        return {
            "A": tf.add_n(
                [
                    s * tf.math.divide_no_nan(A, t[0])
                    for s, (A, _, t, _) in zip(share, parts, strict=True)
                ]
            ),
            "G": tf.add_n([trace * tf.math.divide_no_nan(G, t[1]) for _, G, t, trace in parts]),
            "uses": tf.ones([], self.dtype),
        }

    def _by_kind(
        self, uses: Sequence[Use], weights: Sequence[UseWeights]
    ) -> list[tuple[list[Use], list[UseWeights]]]:
        """Uses that are looked up, and uses that make logits, with their weights."""
        pairs = list(zip(uses, weights, strict=True))
        kinds = []
        for reverse in (False, True):
            chosen = [pair for pair in pairs if self._is_reverse(pair[0]) == reverse]
            kinds.append(([use for use, _ in chosen], [weight for _, weight in chosen]))
        return kinds
