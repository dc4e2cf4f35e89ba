"""Dense layers given by an einsum equation, of which attention is made."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfkfac.blocks.kronecker import KroneckerBlock
from tfkfac.blocks.use import Use, UseWeights

_ELIDED = "0123456789"
"""Labels for the axes that an ellipsis stands for: no equation has such."""


@dataclasses.dataclass(frozen=True)
class Equation:
    """An einsum equation of inputs and a kernel, by the roles of its labels.

    Attributes:
        inputs: Labels of the inputs, ellipses spelt out.
        kernel: Labels of the kernel.
        outputs: Labels of the outputs.
    """

    inputs: str
    kernel: str
    outputs: str

    @classmethod
    def parse(cls, equation: str, input_rank: int) -> Equation:
        """Spells out the ellipses of ``"...x,xy->...y"`` for inputs of a rank."""
        operands, outputs = equation.replace(" ", "").split("->")
        inputs, kernel = operands.split(",")
        elided = _ELIDED[: input_rank - len(inputs.replace("...", ""))]
        return cls(inputs.replace("...", elided), kernel, outputs.replace("...", elided))

    @property
    def groups(self) -> str:
        """Labels of which each value has a kernel of its own."""
        return "".join(k for k in self.kernel if k in self.inputs and k in self.outputs)

    @property
    def contracted(self) -> str:
        """Labels that are summed over: the rows of the kernel as a matrix."""
        return "".join(k for k in self.kernel if k in self.inputs and k not in self.outputs)

    @property
    def made(self) -> str:
        """Labels that only the kernel brings to the outputs: its columns."""
        return "".join(k for k in self.kernel if k not in self.inputs and k in self.outputs)

    @property
    def places(self) -> str:
        """Labels along which the kernel is used again and again, in the order of the outputs."""
        return "".join(k for k in self.outputs if k not in self.kernel)

    @property
    def has_structure(self) -> bool:
        """Whether the layer is the same matrix product (one a group) at every place."""
        unique = all(len(set(each)) == len(each) for each in dataclasses.astuple(self))
        summed = set(self.inputs) | set(self.kernel)
        only_once = summed - set(self.outputs) - set(self.contracted)
        return unique and not only_once and self.inputs[0] in self.places

    @property
    def keeps_examples_first(self) -> bool:
        """Whether examples come before all other places in the outputs too."""
        return self.places.startswith(self.inputs[0])

    def fits_bias(self, bias_shape: Sequence[int], kernel_shape: Sequence[int]) -> bool:
        """Whether a bias of the last axes of the outputs has one entry for each kernel column."""
        sizes = dict(zip(self.kernel, kernel_shape, strict=True))
        columns = {label for label in self.groups + self.made if sizes[label] != 1}
        labels = self.outputs[-len(bias_shape) :]
        return columns == {k for k, size in zip(labels, bias_shape, strict=True) if size != 1}


class EinsumDenseBlock(KroneckerBlock):
    """``s = einsum(equation, a, K) + b``.

    Args:
        layer: The Keras layer.
        kernel: Of the axes of ``equation.kernel``.
        bias: Broadcast to the last axes of the outputs, along all of those in ``groups`` and
            ``made`` and no others (axes of size 1 do not matter); or None.
        equation: The equation; it has structure.
        **options: As for `KroneckerBlock`: `method`, `max_factor_size`.
    """

    label = "EinsumDense"
    tells_examples_apart = True

    def __init__(
        self, layer: Any, kernel: Any, bias: Any, *, equation: Equation, **options: Any
    ) -> None:
        self._sizes = dict(zip(equation.kernel, kernel.shape, strict=True))
        super().__init__(
            layer,
            kernel,
            bias,
            input_dim=self._size(equation.contracted),
            output_dim=self._size(equation.made),
            groups=self._size(equation.groups),
            **options,
        )
        self.equation = equation
        self._bias_shape = None if bias is None else tuple(bias.shape)

    @property
    def channel_axes(self) -> tuple[int, ...]:
        """Every axis of the outputs that the kernel has too."""
        labels = enumerate(self.equation.outputs)
        return tuple(axis for axis, label in labels if label in self.equation.kernel)

    def mask_of_places(self, use: Use) -> tf.Tensor | None:
        """The mask in the order of the places.

        A mask of what is contracted or of groups says nothing of places: there all count.
        """
        if use.mask is None:
            return None
        masked, places = self.equation.inputs[: use.mask.shape.rank], self.equation.places
        if places.startswith(masked):
            return use.mask
        if not set(masked) <= set(places):
            return None
        mask = tf.transpose(use.mask, _order(masked, "".join(p for p in places if p in masked)))
        for axis, label in enumerate(places):
            if label not in masked:
                mask = tf.expand_dims(mask, axis)
        return tf.broadcast_to(mask, self._places_shape(use.inputs))

    def input_moment(self, inputs: tf.Tensor, weights: UseWeights) -> tf.Tensor:
        """Inputs as rows, the places in the order of the outputs."""
        rows = self.input_rows(inputs)
        if weights.omega is None:
            return self.moment_of_rows(rows, None, weights.total)
        omega = tf.broadcast_to(weights.omega, self._places_shape(inputs))
        return self.moment_of_rows(rows, tf.reshape(omega, [-1]), weights.total)

    def input_rows(self, inputs: tf.Tensor) -> tf.Tensor:
        """Inputs as rows."""
        equation = self.equation
        return self._to_rows(inputs, equation.inputs, equation.contracted, self._in)

    def output_rows(self, gradients: tf.Tensor) -> tf.Tensor:
        """Gradients as rows."""
        equation = self.equation
        return self._to_rows(gradients, equation.outputs, equation.made, self.output_dim)

    def kernel_to_matrix(self, kernel: tf.Tensor) -> tf.Tensor:
        """Rows are what is contracted, columns what is made."""
        matrix = tf.transpose(kernel, _order(self.equation.kernel, self._kernel_order))
        return tf.reshape(matrix, [*self._stack, self._in, self.output_dim])

    def matrix_to_kernel(self, matrix: tf.Tensor) -> tf.Tensor:
        """The reverse."""
        sizes = [self._sizes[label] for label in self._kernel_order]
        return tf.transpose(
            tf.reshape(matrix, sizes), _order(self._kernel_order, self.equation.kernel)
        )

    def bias_to_row(self, bias: tf.Tensor) -> tf.Tensor:
        """The bias, without the axes of size 1 along which it is broadcast."""
        labels, (broadcast, order) = self._bias_labels, self._bias_order
        row = tf.transpose(bias, _order(labels, broadcast + order))
        return tf.reshape(row, [*self._stack, 1, self.output_dim])

    def row_to_bias(self, row: tf.Tensor) -> tf.Tensor:
        """The reverse."""
        labels, (broadcast, order) = self._bias_labels, self._bias_order
        sizes = [1] * len(broadcast) + [self._sizes[label] for label in order]
        return tf.transpose(tf.reshape(row, sizes), _order(broadcast + order, labels))

    @property
    def _in(self) -> int:
        return self.input_dim - self.has_bias

    @property
    def _stack(self) -> list[int]:
        return [] if self.groups == 1 else [self.groups]

    @property
    def _kernel_order(self) -> str:
        return self.equation.groups + self.equation.contracted + self.equation.made

    @property
    def _bias_labels(self) -> str:
        assert self._bias_shape is not None
        return self.equation.outputs[-len(self._bias_shape) :]

    @property
    def _bias_order(self) -> tuple[str, str]:
        """Labels along which the bias is broadcast, and those that it has, as in the matrix."""
        labels, channels = self._bias_labels, self.equation.groups + self.equation.made
        broadcast = "".join(label for label in labels if label not in channels)
        return broadcast, "".join(label for label in channels if label in labels)

    def _places_shape(self, inputs: tf.Tensor) -> tf.Tensor:
        return tf.gather(tf.shape(inputs), _order(self.equation.inputs, self.equation.places))

    def _size(self, labels: str) -> int:
        return math.prod(self._sizes[label] for label in labels)

    def _to_rows(self, tensor: tf.Tensor, labels: str, channels: str, width: int) -> tf.Tensor:
        """``[places, width]``, stacked by group."""
        order = self.equation.groups + self.equation.places + channels
        return tf.reshape(tf.transpose(tensor, _order(labels, order)), [*self._stack, -1, width])


def _order(labels: str, wanted: str) -> list[int]:
    """The permutation that brings axes with `labels` into the order `wanted`."""
    return [labels.index(label) for label in wanted]
