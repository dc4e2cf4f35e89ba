"""Kronecker-factored blocks: F = |T| · A ⊗ G (Martens & Grosse 2015; mathematics.md §2)."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfkfac import linalg
from tfkfac.blocks.block import Block, Use, UseWeights
from tfkfac.factors import METHODS, AddVariable, DecayedAverages


class KroneckerBlock(Block):
    """A kernel, and a bias if there is one, as the matrix V ``[in (+ 1), out]``, bias last.

    Subclasses say how inputs, pre-activations and kernels of their layer family become rows and
    matrices; everything that follows is here.

    Args:
        layer: The Keras layer.
        kernel: Its kernel.
        bias: Its trainable bias, or None.
        input_dim: Rows of the kernel as a matrix (without bias).
        output_dim: Columns of the kernel as a matrix.
        groups: Number of independent pairs of factors; the kernel is then a stack of matrices.
        method: How the inverse is kept, a key of ``tfkfac.factors.METHODS``.
    """

    label = "Kronecker"
    channel_axis = -1
    """The axis of the pre-activations that is not a place."""

    def __init__(
        self,
        layer: Any,
        kernel: Any,
        bias: Any,
        *,
        input_dim: int,
        output_dim: int,
        groups: int = 1,
        method: str = "cholesky",
    ) -> None:
        super().__init__([layer], [kernel] if bias is None else [kernel, bias])
        self.has_bias = bias is not None
        self.groups = groups
        self.input_dim = input_dim + self.has_bias
        self.output_dim = output_dim
        self.dtype = "float64" if str(kernel.dtype) == "float64" else "float32"
        stack = () if groups == 1 else (groups,)
        name = "_".join(part for part in str(kernel.path).split("/")[:-1]) or "kernel"
        self._averages = DecayedAverages(
            name,
            {
                "A": (*stack, self.input_dim, self.input_dim),
                "G": (*stack, self.output_dim, self.output_dim),
                "uses": (),
            },
            self.dtype,
        )
        self._inverse = METHODS[method](name, stack, self.input_dim, self.output_dim, self.dtype)
        self._damping: Callable[[], tf.Tensor] | None = None

    # --- what a layer family defines -------------------------------------------------------

    @abc.abstractmethod
    def input_moment(self, inputs: tf.Tensor, weights: UseWeights) -> tf.Tensor:
        """Σ ω a aᵀ over the places of one use, a with a 1 appended if there is a bias.

        Args:
            inputs: The layer's input, cast to the factors' dtype.
            weights: ω and its sum.

        Returns:
            Lower triangles, of the shape of the factor A.
        """

    @abc.abstractmethod
    def output_rows(self, gradients: tf.Tensor) -> tf.Tensor:
        """The backpropagated g of one use as rows ``[..., places, out]`` (stacked by group)."""

    @abc.abstractmethod
    def kernel_to_matrix(self, kernel: tf.Tensor) -> tf.Tensor:
        """A tensor of the kernel's shape as ``[..., in, out]``."""

    @abc.abstractmethod
    def matrix_to_kernel(self, matrix: tf.Tensor) -> tf.Tensor:
        """The reverse of `kernel_to_matrix`."""

    # --- statistics ------------------------------------------------------------------------

    def input_statistics(
        self, uses: Sequence[Use], weights: Sequence[UseWeights], batch: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Ā = Σ ω a aᵀ / Σ ω and |T| = places / N, over all uses of the layer.

        Args:
            uses: What was recorded.
            weights: How much the places of each use count.
            batch: N, the batch size of the model.
        """
        moments = [
            self.input_moment(tf.cast(use.inputs, self.dtype), weight)
            for use, weight in zip(uses, weights, strict=True)
        ]
        total = tf.add_n([weight.total for weight in weights])
        places = tf.add_n([weight.places for weight in weights])
        return {
            "A": tf.math.divide_no_nan(tf.add_n(moments), total),
            "uses": places / tf.cast(batch, self.dtype),
        }

    def output_statistics(
        self, gradients: Sequence[tf.Tensor], weights: Sequence[UseWeights]
    ) -> dict[str, tf.Tensor]:
        """Ḡ = Σ g gᵀ / (N·|T|), over all uses of the layer."""
        moments = [
            linalg.second_moment(self.output_rows(tf.cast(gradient, self.dtype)))
            for gradient in gradients
        ]
        places = tf.add_n([weight.places for weight in weights])
        return {"G": tf.math.divide_no_nan(tf.add_n(moments), places)}

    def update(
        self, statistics: dict[str, tf.Tensor], decay: tf.Tensor, weight: tf.Tensor
    ) -> tf.Tensor:
        """Enters the statistics of a batch into the decayed averages; returns whether it did."""
        return self._averages.update(statistics, decay, weight)

    def refresh(self, damping: tf.Tensor) -> None:
        """Recomputes the inverses from the averages."""
        averages = self._averages.read()
        self._inverse.refresh(
            averages["A"], averages["G"], averages["uses"], tf.cast(damping, self.dtype)
        )

    # --- the public face -------------------------------------------------------------------

    def build(self, add_variable: AddVariable, damping: Callable[[], tf.Tensor]) -> None:
        """Makes the averages and the inverses."""
        self._damping = damping
        self._averages.build(add_variable)
        self._inverse.build(add_variable)

    @property
    def factor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of A and G."""
        return {key: self._averages.shapes[key] for key in ("A", "G")}

    @property
    def factor_size(self) -> int:
        """Numbers in one copy of A and G."""
        return self.groups * (self.input_dim**2 + self.output_dim**2)

    @property
    def bytes_each(self) -> int:
        """Bytes of one number of the state."""
        return tf.dtypes.as_dtype(self.dtype).size

    @property
    def state_size(self) -> int:
        """Averages and what the inverse method keeps."""
        weight_of_averages: tuple[int, ...] = ()
        shapes = [
            *self._averages.shapes.values(),
            weight_of_averages,
            *self._inverse.shapes().values(),
        ]
        return sum(int(tf.TensorShape(shape).num_elements() or 0) for shape in shapes)

    @property
    def factors(self) -> dict[str, tf.Tensor]:
        """A and G as they stand, full and symmetric."""
        self._require_statistics()
        averages = self._averages.read()
        return {key: linalg.symmetric(averages[key]) for key in ("A", "G")}

    @property
    def uses(self) -> tf.Tensor:
        """|T|, the mean number of places an example uses the layer at."""
        self._require_statistics()
        return self._averages.read()["uses"]

    def precondition(
        self, gradients: Sequence[tf.Tensor], damping: float | tf.Tensor | None = None
    ) -> list[tf.Tensor]:
        """``F⁻¹V = A⁻¹ V G⁻¹ / |T|``, damped as the method says."""
        matrix = self.to_matrix([tf.cast(gradient, self.dtype) for gradient in gradients])
        if damping is None:
            damping = self._current_damping()
            return self.from_matrix(self._inverse.precondition(matrix, damping))
        self._require_statistics()
        averages = self._averages.read()
        damping = linalg.scalar(damping, self.dtype)
        kept = self._inverse.compute(averages["A"], averages["G"], averages["uses"], damping)
        return self.from_matrix(self._inverse.apply(kept, matrix, damping))

    def to_dense(self) -> tf.Tensor:
        """``|T| · A ⊗ G``; block-diagonal over groups."""
        factors = self.factors
        stacked = [
            tf.reshape(factors[key], [self.groups, *factors[key].shape[-2:]]) for key in ("A", "G")
        ]
        products = tf.einsum("gij,gkl->gikjl", *stacked)
        side = self.input_dim * self.output_dim
        blocks = [
            tf.linalg.LinearOperatorFullMatrix(block)
            for block in tf.unstack(tf.reshape(products, [self.groups, side, side]))
        ]
        return self.uses * tf.linalg.LinearOperatorBlockDiag(blocks).to_dense()

    def to_matrix(self, gradients: Sequence[tf.Tensor]) -> tf.Tensor:
        """Gradients of `variables` as the matrix V, the bias as its last row."""
        matrix = self.kernel_to_matrix(tf.convert_to_tensor(gradients[0]))
        if not self.has_bias:
            return matrix
        shape = [1, self.output_dim] if self.groups == 1 else [self.groups, 1, self.output_dim]
        return tf.concat([matrix, tf.reshape(gradients[1], shape)], axis=-2)

    def from_matrix(self, matrix: tf.Tensor) -> list[tf.Tensor]:
        """The reverse of `to_matrix`."""
        if not self.has_bias:
            return [self.matrix_to_kernel(matrix)]
        kernel = self.matrix_to_kernel(matrix[..., :-1, :])
        return [kernel, tf.reshape(matrix[..., -1, :], [-1])]

    def _current_damping(self) -> tf.Tensor:
        self._require_statistics()
        assert self._damping is not None
        return tf.cast(self._damping(), self.dtype)

    def _require_statistics(self) -> None:
        if not self._averages.built:
            raise ValueError(
                f"The block of layer {self.name!r} has no statistics: this layer collection was "
                "only scanned. Train with the optimizer and look at `optimizer.layer_collection`."
            )
