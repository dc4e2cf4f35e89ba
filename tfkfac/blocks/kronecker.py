"""Kronecker-factored blocks: F = |T| · A ⊗ G (Martens & Grosse 2015; mathematics.md §2)."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfkfac.averages import AddVariable
from tfkfac.blocks.block import ALL, Kept
from tfkfac.blocks.curvature_block import slots
from tfkfac.blocks.rows import RowsByExample
from tfkfac.blocks.use import Use, UseWeights
from tfkfac.factor_forms import DENSE, FactorForm, form_of
from tfkfac.factors import METHODS, KroneckerInverse


class KroneckerBlock(RowsByExample):
    """A kernel, and a bias if there is one, as the matrix V ``[in (+ 1), out]``, bias last.

    Subclasses say how inputs, pre-activations and kernels of their layer family become rows and
    matrices; everything that follows is here.

    Attributes:
        inverse: What is kept to precondition with.

    Args:
        layer: The Keras layer.
        kernel: Its kernel.
        bias: Its trainable bias, or None.
        input_dim: Rows of the kernel as a matrix (without bias).
        output_dim: Columns of the kernel as a matrix.
        groups: Number of independent pairs of factors; the kernel is then a stack of matrices.
        method: How the inverse is kept, a key of ``tfkfac.factors.METHODS`` or a class.
        max_factor_size: A factor of a larger dimension keeps its diagonal only; None for no limit.
        input_form: How A is kept, where that is not a question of its size.
    """

    label = "Kronecker"
    normalisers: Mapping[str, str] = {"A": "mass", "G": "uses"}
    looks_up = False
    """Whether the layer looks rows up, where others multiply with the kernel."""

    keeps_lags = False
    """Whether second moments of neighbouring steps are kept beside A and G."""

    def __init__(
        self,
        layer: Any,
        kernel: Any,
        bias: Any,
        *,
        input_dim: int,
        output_dim: int,
        groups: int = 1,
        method: str | type[KroneckerInverse] = "cholesky",
        max_factor_size: int | None = None,
        input_form: FactorForm | None = None,
    ) -> None:
        self.has_bias = bias is not None
        self.groups = groups
        self.input_dim = input_dim + self.has_bias
        self.output_dim = output_dim
        self._diagonal_by_nature = input_form is not None
        self.input_form = input_form or form_of(self.input_dim, max_factor_size)
        self.output_form = form_of(self.output_dim, max_factor_size)
        stack = () if groups == 1 else (groups,)
        shapes = {
            "A": self.input_form.shape(stack, self.input_dim),
            "G": self.output_form.shape(stack, self.output_dim),
            "uses": (),
        }
        super().__init__([layer], [kernel] if bias is None else [kernel, bias], shapes)
        kind = METHODS[method] if isinstance(method, str) else method
        self.without_examples = kind.takes_examples and not self.tells_examples_apart
        kind = METHODS["eigen"] if self.without_examples else kind
        self.inverse: KroneckerInverse = kind(
            self.state_name,
            stack,
            self.input_dim,
            self.output_dim,
            self.dtype,
            self.input_form,
            self.output_form,
        )

    # --- what a layer family defines -------------------------------------------------------

    @abc.abstractmethod
    def input_moment(self, inputs: tf.Tensor, weights: UseWeights) -> tf.Tensor:
        """Σ ω a aᵀ over the places of one use, a with a 1 appended if there is a bias.

        Args:
            inputs: The layer's input, cast to the factors' dtype.
            weights: ω and its sum.

        Returns:
            Of the shape of the factor A, in its `input_form`.
        """

    @abc.abstractmethod
    def kernel_to_matrix(self, kernel: tf.Tensor) -> tf.Tensor:
        """A tensor of the kernel's shape as ``[..., in, out]``."""

    @abc.abstractmethod
    def matrix_to_kernel(self, matrix: tf.Tensor) -> tf.Tensor:
        """The reverse of `kernel_to_matrix`."""

    def bias_to_row(self, bias: tf.Tensor) -> tf.Tensor:
        """A tensor of the bias' shape as ``[..., 1, out]``."""
        stack = [] if self.groups == 1 else [self.groups]
        return tf.reshape(bias, [*stack, 1, self.output_dim])

    def row_to_bias(self, row: tf.Tensor) -> tf.Tensor:
        """The reverse of `bias_to_row`."""
        return tf.reshape(row, [-1])

    def moment_of_rows(
        self, rows: tf.Tensor, omega: tf.Tensor | None, total: tf.Tensor
    ) -> tf.Tensor:
        """Σ ω a aᵀ of inputs that are rows already; for `input_moment`.

        Args:
            rows: ``[..., places, in]``.
            omega: ``[places]``, or None where every place counts 1.
            total: Σω.
        """
        if omega is not None:
            rows *= tf.sqrt(omega)[:, None]
        if not self.has_bias:
            return self.input_form.second_moment(rows)
        if omega is None:
            sums = tf.reduce_sum(rows, axis=-2)
        else:
            sums = tf.linalg.matvec(rows, tf.sqrt(omega), transpose_a=True)
        corner = tf.broadcast_to(total, sums.shape[:-1])
        return self.input_form.bordered_second_moment(rows, sums, corner)

    # --- statistics ------------------------------------------------------------------------

    def input_statistics(
        self, uses: Sequence[Use], weights: Sequence[UseWeights], batch: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Ā = Σ ω a aᵀ / Σ ω and |T| = places / N, over all uses of the layer; Σ ω / N too.

        Args:
            uses: What was recorded.
            weights: How much the places of each use count.
            batch: N, the batch size of the model.
        """
        moments = [
            self.input_moment(self.inputs_of(use), weight)
            for use, weight in zip(uses, weights, strict=True)
        ]
        total = tf.add_n([weight.total for weight in weights])
        places = tf.add_n([weight.places for weight in weights])
        return {
            "A": tf.math.divide_no_nan(tf.add_n(moments), total),
            "uses": places / tf.cast(batch, self.dtype),
            "mass": total / tf.cast(batch, self.dtype),
        }

    def pass_statistics(
        self,
        uses: Sequence[Use],
        gradients: Sequence[Any],
        weights: Sequence[UseWeights],
        batch: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        """Ḡ, see `output_statistics`; and s, see `statistics_of_examples`."""
        of_outputs = self.output_statistics(gradients, weights)
        return of_outputs | self.statistics_of_examples(uses, gradients, weights, batch)

    def output_statistics(
        self, gradients: Sequence[tf.Tensor], weights: Sequence[UseWeights]
    ) -> dict[str, tf.Tensor]:
        """Ḡ = Σ g gᵀ / (N·|T|), over all uses of the layer."""
        moments = [
            self.output_form.second_moment(self.output_rows(tf.cast(gradient, self.dtype)))
            for gradient in gradients
        ]
        places = tf.add_n([weight.places for weight in weights])
        return {"G": tf.math.divide_no_nan(tf.add_n(moments), places)}

    @property
    def statistic_shapes(self) -> dict[str, tuple[int, ...]]:
        """Those of the averages and, for EKFAC, s."""
        shapes = super().statistic_shapes
        if self.inverse.takes_examples:
            shapes["s"] = (*self.inverse.stack, self.input_dim, self.output_dim)
        return shapes

    @property
    def triangles(self) -> frozenset[str]:
        """The factors that are dense."""
        forms = {"A": self.input_form, "G": self.output_form}
        return frozenset(key for key, form in forms.items() if form is DENSE)

    def fresh(self, damping: tf.Tensor) -> list[tf.Tensor]:
        """The inverses, or those of the last refresh where they cannot be had."""
        averages = self.averages()
        values, usable = self.inverse.fresh(averages, tf.cast(damping, self.dtype))
        self.note_inverse(usable | (averages["uses"] <= 0))
        return values

    def keep(self, fresh: Sequence[tf.Tensor]) -> None:
        """Keeps the inverses."""
        self.inverse.keep(fresh)

    @property
    def kept_shapes(self) -> list[tuple[int, ...]]:
        """Of the inverses."""
        return list(self.inverse.shapes().values())

    @property
    def kept_triangles(self) -> list[bool]:
        """Inverses are symmetric, eigenvectors are not."""
        return [key in self.inverse.triangles() for key in self.inverse.shapes()]

    def update(
        self, statistics: dict[str, tf.Tensor], decay: tf.Tensor, weight: tf.Tensor
    ) -> tf.Tensor:
        """Enters the statistics of a batch into the averages, and into what the inverse follows."""
        entered = super().update(statistics, decay, weight)
        self.inverse.update(statistics, decay, weight, entered)
        return entered

    @property
    def cut_to_diagonal(self) -> list[str]:
        """Factors beyond `max_factor_size`; those that are diagonal by nature are none."""
        forms = {"A": self.input_form, "G": self.output_form}
        if self._diagonal_by_nature:
            del forms["A"]
        return [key for key, form in forms.items() if form is not DENSE]

    @property
    def moment_share(self) -> float:
        """The operations that A takes, over those of one product of the rows (for predictions)."""
        return 1.0

    @property
    def refresh_cost(self) -> float:
        """Of the two inverses."""
        return self.groups * (
            self.input_form.operations_of_inverse(self.input_dim)
            + self.output_form.operations_of_inverse(self.output_dim)
        )

    # --- the public face -------------------------------------------------------------------

    def build(
        self,
        add_variable: AddVariable,
        damping: Callable[[], tf.Tensor],
        kept: Kept = ALL,
    ) -> None:
        """Makes the averages and the inverses."""
        super().build(add_variable, damping, kept)
        if kept.inverse:
            self.inverse.build(add_variable)

    @property
    def state_slots(self) -> list[tuple[tuple[int, ...], Any]]:
        """The averages, and what the inverse method keeps."""
        return [*super().state_slots, *slots(self.kept_shapes, self.inverse.variables)]

    @property
    def state_size(self) -> int:
        """Averages and what the inverse method keeps."""
        kept = sum(math.prod(shape) for shape in self.inverse.shapes().values())
        return super().state_size + kept

    @property
    def factors(self) -> dict[str, tf.Tensor]:
        """A and G as they stand: full symmetric matrices, or diagonals as vectors."""
        averages = self.averages()
        forms = {"A": self.input_form, "G": self.output_form}
        return {
            key: form.to_dense(averages[key]) if form is DENSE else averages[key]
            for key, form in forms.items()
        }

    def trace(self) -> tf.Tensor:
        """``|T|·tr A·tr G``, over all groups."""
        averages = self._averages.read()
        of_inputs = averages.of("A", self.input_form.trace)
        of_outputs = averages.of("G", self.output_form.trace)
        return averages["uses"] * tf.reduce_sum(of_inputs * of_outputs)

    @property
    def uses(self) -> tf.Tensor:
        """|T|, the mean number of places an example uses the layer at."""
        return self.averages()["uses"]

    def precondition(
        self, gradients: Sequence[tf.Tensor], damping: float | tf.Tensor | None = None
    ) -> list[tf.Tensor]:
        """``F⁻¹V = A⁻¹ V G⁻¹ / |T|``, damped as the method says."""
        damped = self.damping_or_current(damping)
        if damping is None:
            return self.direction(gradients, damped)
        inverse = self.inverse.compute_or_keep(self.averages(), damped)
        return self.apply(inverse, gradients, damped)

    def direction(self, gradients: Sequence[tf.Tensor], damping: tf.Tensor) -> list[tf.Tensor]:
        """With the inverse of the last refresh, and its damping if that is in it."""
        return self.apply(self.inverse.kept(), gradients, tf.cast(damping, self.dtype))

    def apply(
        self, inverse: list[tf.Tensor], gradients: Sequence[Any], damping: tf.Tensor
    ) -> list[Any]:
        """The product of an inverse with gradients.

        Args:
            inverse: What the method keeps of it.
            gradients: One for each of `variables`.
            damping: λ, for methods whose inverse is without it.
        """
        dense = [tf.convert_to_tensor(gradient) for gradient in gradients]
        matrix = self.to_matrix([tf.cast(gradient, self.dtype) for gradient in dense])
        return self.from_matrix(self.inverse.apply(inverse, matrix, damping))

    def to_dense(self) -> tf.Tensor:
        """``|T| · A ⊗ G``, or with s in its eigenbasis; block-diagonal over groups."""
        dense = self.inverse.to_dense(self.averages())
        if self.groups == 1:
            return dense
        blocks = [tf.linalg.LinearOperatorFullMatrix(block) for block in tf.unstack(dense)]
        return tf.linalg.LinearOperatorBlockDiag(blocks).to_dense()

    def to_matrix(self, gradients: Sequence[tf.Tensor]) -> tf.Tensor:
        """Gradients of `variables` as the matrix V, the bias as its last row."""
        matrix = self.kernel_to_matrix(tf.convert_to_tensor(gradients[0]))
        if not self.has_bias:
            return matrix
        return tf.concat([matrix, self.bias_to_row(tf.convert_to_tensor(gradients[1]))], axis=-2)

    def from_matrix(self, matrix: tf.Tensor) -> list[tf.Tensor]:
        """The reverse of `to_matrix`."""
        if not self.has_bias:
            return [self.matrix_to_kernel(matrix)]
        kernel = self.matrix_to_kernel(matrix[..., :-1, :])
        return [kernel, self.row_to_bias(matrix[..., -1:, :])]
