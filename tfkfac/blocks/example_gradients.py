"""Squares of single examples' gradients in the eigenbases of a block, for EKFAC.

``Σ_n (Q_Aᵀ (Σ_t a_t g_tᵀ) Q_G)∘²``, the inner sum over all places at which example n uses the layer
(George et al. 2018, §3; mathematics.md §2). Where an example has one place only, that is a product
of squares, ``(a Q_A)∘²ᵀ (g Q_G)∘²``. Elsewhere the gradients of some examples at a time are made.
Every size is an int where it is known when the graph is made, else a tensor.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfkfac import indexed_slices
from tfkfac.blocks.chunks import greater, parts
from tfkfac.blocks.use import UseWeights

CHUNK_BYTES = 32 * 2**20
"""What the gradients and rows of a chunk of examples may take (one example at the least)."""

Bases = tuple["tf.Tensor | None", "tf.Tensor | None"]
"""Q_A and Q_G, ``[..., d, d]``; None for unit vectors."""


@dataclasses.dataclass(frozen=True, eq=False)
class RowsOfUse:
    """One use of a layer, with examples in the same order on both sides.

    Attributes:
        inputs: What the layer received ``[rows, ...]``; several rows may belong to one example.
        to_rows: From some of those rows to a, ``[..., places, in]``.
        gradients: g, ``[..., places, out]``.
        places: Places of one row, None if it is not known.
    """

    inputs: tf.Tensor
    to_rows: Callable[[tf.Tensor], tf.Tensor]
    gradients: tf.Tensor
    places: int | None


def sum_of_squares(
    uses: Sequence[RowsOfUse], examples: Any, bases: Bases, shape: Sequence[int]
) -> tf.Tensor:
    """``Σ_n (Q_Aᵀ (Σ_t a_t g_tᵀ) Q_G)∘²``.

    Args:
        uses: All uses of the layer.
        examples: The number of examples; each use has an equal number of rows for each.
        bases: Q_A and Q_G.
        shape: ``[..., in, out]``, of the result.
    """
    alone = _has_single_places(uses, examples)
    if isinstance(alone, bool):
        return (
            _of_single_places(uses[0], bases)
            if alone
            else _by_example(uses, examples, bases, shape)
        )
    return tf.cond(
        alone,
        lambda: tf.ensure_shape(_of_single_places(uses[0], bases), shape),
        lambda: _by_example(uses, examples, bases, shape),
    )


def sum_of_squares_of_lookups(
    tokens: tf.Tensor, gradients: tf.Tensor, vocabulary: int, output_basis: tf.Tensor | None
) -> tf.Tensor:
    """The same where a is the one-hot row of a token, ``[vocabulary, out]``.

    Args:
        tokens: ``[N, places]``. What an example looks up several times is added up.
        gradients: g, ``[N, places, out]``.
        vocabulary: The number of tokens.
        output_basis: Q_G, or None for unit vectors.
    """
    examples = tf.range(tf.shape(tokens, tf.int64)[0])[:, None]
    pairs = tf.reshape(examples * vocabulary + tf.cast(tokens, tf.int64), [-1])
    rows = tf.reshape(gradients, [-1, gradients.shape[-1]])
    sums = indexed_slices.unique(tf.IndexedSlices(rows, pairs))
    squares = tf.square(_times(sums.values, output_basis))
    return tf.math.unsorted_segment_sum(squares, sums.indices % vocabulary, vocabulary)


def count_of_examples(rows: Sequence[Any], batch: tf.Tensor, weights: Sequence[UseWeights]) -> Any:
    """How many examples the rows of all uses can be told apart into: N, or 1.

    Of something that is learned without examples the rows belong to all examples alike. Then the
    sum over all stands for one draw, as in `ScaleShiftBlock` and `DiagonalBlock`.

    Args:
        rows: The number of rows of each use.
        batch: N.
        weights: What is known of the rows beforehand.
    """
    static = tf.get_static_value(batch)
    count = batch if static is None else int(static)
    if all(weight.of_examples for weight in weights):
        return count
    if any(weight.of_examples is False for weight in weights):
        return 1
    if all(isinstance(size, int) for size in (count, *rows)):
        return count if all(size % count == 0 for size in rows) else 1
    fits = tf.reduce_all([tf.equal(size % count, 0) for size in rows])
    return tf.where(fits, count, 1)


def rotations(
    places: float, dims: tuple[int, int], is_dense: tuple[bool, bool]
) -> tuple[float, float]:
    """Products-and-sums that take one example to the eigenbases: of a and g, or of Σ a gᵀ.

    Args:
        places: Of an example.
        dims: Dimensions of A and G.
        is_dense: Whether they are dense; the bases of others are unit vectors.
    """
    inputs, outputs = (dim * dense for dim, dense in zip(dims, is_dense, strict=True))
    of_rows = places * (dims[0] * inputs + dims[1] * outputs)
    return of_rows, dims[0] * dims[1] * (inputs + outputs)


def length(tensor: tf.Tensor, axis: int) -> Any:
    """The length of an axis, an int where it is known."""
    static = tensor.shape[axis]
    return tf.shape(tensor)[axis] if static is None else static


def _has_single_places(uses: Sequence[RowsOfUse], examples: Any) -> Any:
    """Whether every example uses the layer at one place, a bool where that is known."""
    if len(uses) > 1 or uses[0].places != 1 or (isinstance(examples, int) and examples == 1):
        return False
    rows = length(uses[0].inputs, 0)
    if isinstance(rows, int) and isinstance(examples, int):
        return rows == examples
    return tf.equal(rows, examples)


def _of_single_places(use: RowsOfUse, bases: Bases) -> tf.Tensor:
    """``(a Q_A)∘²ᵀ (g Q_G)∘²``: the square of a product is the product of the squares."""
    rows = _times(use.to_rows(use.inputs), bases[0])
    gradients = _times(use.gradients, bases[1])
    return tf.matmul(tf.square(rows), tf.square(gradients), transpose_a=True)


def _by_example(
    uses: Sequence[RowsOfUse], examples: Any, bases: Bases, shape: Sequence[int]
) -> tf.Tensor:
    """Makes the gradients of as many examples at a time as `CHUNK_BYTES` allow."""
    chunks = _Chunks.of(uses, examples, shape)
    is_dense = bases[0] is not None, bases[1] is not None
    of_rows, of_gradients = rotations(chunks.least_places, (shape[-2], shape[-1]), is_dense)
    rotates_rows = of_rows <= of_gradients
    if rotates_rows:
        rotated = [_times(use.gradients, bases[1]) for use in uses]
        uses = [dataclasses.replace(use, gradients=g) for use, g in zip(uses, rotated, strict=True)]
    uses = [chunks.pad(use) for use in uses]

    def of_chunk(index: Any) -> tf.Tensor:
        products = []
        for use in uses:
            rows = use.to_rows(chunks.cut(use.inputs, 0, index))
            rows = chunks.split(_times(rows, bases[0]) if rotates_rows else rows)
            gradients = chunks.split(chunks.cut(use.gradients, -2, index))
            products.append(tf.matmul(rows, gradients, transpose_a=True))
        total = tf.add_n(products)
        if not rotates_rows:
            total = _rotated(total, bases)
        return tf.ensure_shape(tf.reduce_sum(tf.square(total), axis=-3), shape)

    if isinstance(chunks.count, int) and chunks.count == 1:
        return of_chunk(0)
    _, sums = tf.while_loop(
        lambda index, _: index < chunks.count,
        lambda index, sums: (index + 1, sums + of_chunk(index)),
        (tf.constant(0), tf.zeros(shape, uses[0].gradients.dtype)),
        parallel_iterations=1,
    )
    return sums


@dataclasses.dataclass(frozen=True, eq=False)
class _Chunks:
    """Equal pieces of a batch of examples.

    All have one shape, so that the loop over them compiles with XLA; the batch is filled up with
    examples whose g is zero, which add nothing.

    Attributes:
        examples: N.
        size: Examples of a chunk.
        count: The number of chunks.
        least_places: Places of an example, or as many of them as are known.
    """

    examples: Any
    size: Any
    count: Any
    least_places: int

    @classmethod
    def of(cls, uses: Sequence[RowsOfUse], examples: Any, shape: Sequence[int]) -> _Chunks:
        """Chooses the pieces.

        Args:
            uses: All uses of the layer.
            examples: N.
            shape: ``[..., in, out]``.
        """
        *stack, input_dim, output_dim = shape
        places = sum(length(use.gradients, -2) // examples for use in uses)
        numbers = input_dim * output_dim + places * (input_dim + output_dim)
        fitting = CHUNK_BYTES // (math.prod(stack) * uses[0].gradients.dtype.size) // numbers
        size = parts(examples, parts(examples, greater(1, fitting)))
        known = places if isinstance(places, int) else sum(use.places or 1 for use in uses)
        return cls(examples, size, parts(examples, size), known)

    def pad(self, use: RowsOfUse) -> RowsOfUse:
        """Fills a use up to whole chunks."""
        missing = self.count * self.size - self.examples
        if isinstance(missing, int) and missing == 0:
            return use
        filled = []
        for tensor, axis in ((use.inputs, 0), (use.gradients, -2)):
            paddings: list[list[Any]] = [[0, 0] for _ in range(tensor.shape.rank)]
            paddings[axis] = [0, missing * (length(tensor, axis) // self.examples)]
            filled.append(tf.pad(tensor, paddings))
        return dataclasses.replace(use, inputs=filled[0], gradients=filled[1])

    def cut(self, tensor: tf.Tensor, axis: int, index: Any) -> tf.Tensor:
        """The part of a chunk of what was filled up, along the axis of rows or places."""
        size = length(tensor, axis) // self.count
        begin: list[Any] = [0] * tensor.shape.rank
        sizes = [-1 if known is None else known for known in tensor.shape]
        begin[axis], sizes[axis] = index * size, size
        return tf.slice(tensor, begin, sizes)

    def split(self, rows: tf.Tensor) -> tf.Tensor:
        """``[..., examples·places, d]`` of a chunk → ``[..., examples, places, d]``."""
        *stack, _, width = rows.shape
        return tf.reshape(rows, [*stack, self.size, -1, width])


def _rotated(gradients: tf.Tensor, bases: Bases) -> tf.Tensor:
    """``Q_Aᵀ M Q_G`` of ``[..., examples, in, out]``."""
    left, right = (None if basis is None else basis[..., None, :, :] for basis in bases)
    gradients = _times(gradients, right)
    return gradients if left is None else tf.matmul(left, gradients, transpose_a=True)


def _times(rows: tf.Tensor, basis: tf.Tensor | None) -> tf.Tensor:
    """``rows·Q``."""
    return rows if basis is None else tf.matmul(rows, basis)
