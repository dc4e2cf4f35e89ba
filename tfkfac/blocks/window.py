"""The geometry of convolutions: which inputs an output location sees, and patches of them."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Window:
    """A convolution along one or more spatial axes.

    Attributes:
        size: Kernel size along each axis.
        strides: Along each axis; 1 by default.
        dilation: Along each axis; 1 by default.
        padding: "valid", "same" (in TensorFlow's sense) or "causal" (all of it before).
        channels_first: Whether images are ``[N, channels, *space]``.
        transposed: Whether it is the transpose of such a convolution.
        output_padding: Of a transposed one, as Keras has it, or None.
    """

    size: tuple[int, ...]
    strides: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    padding: str = "valid"
    channels_first: bool = False
    transposed: bool = False
    output_padding: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Fills in the defaults."""
        ones = (1,) * len(self.size)
        object.__setattr__(self, "strides", self.strides or ones)
        object.__setattr__(self, "dilation", self.dilation or ones)

    @property
    def rank(self) -> int:
        """The number of spatial axes."""
        return len(self.size)

    @property
    def extent(self) -> tuple[int, ...]:
        """The length of input along each axis that one output location sees."""
        return tuple((n - 1) * d + 1 for n, d in zip(self.size, self.dilation, strict=True))

    @property
    def over_padded(self) -> Window:
        """The geometry that is left when `pad` has done its part."""
        strides = (1,) * self.rank if self.transposed else self.strides
        return Window(self.size, strides, self.dilation)

    def channels_last(self, images: tf.Tensor) -> tf.Tensor:
        """Images with the channels as the last axis."""
        if not self.channels_first:
            return images
        return tf.transpose(images, [0, *range(2, self.rank + 2), 1])

    def pad(self, images: tf.Tensor) -> tf.Tensor:
        """Makes a "valid" convolution, `over_padded`, give the same output locations.

        A transposed convolution is one with strides 1 over images between whose entries zeros are
        put, with the kernel's offsets in the reverse order (see `patches`):
        ``s[o] = Σ_k u[o + before − k·dilation]·K[k]`` with ``u[i·stride] = x[i]``.

        Args:
            images: ``[N, *space, channels]``.
        """
        if self.transposed:
            for axis in range(self.rank):
                images = self._spread(images, axis)
            return images
        if self.padding == "valid":
            return images
        paddings = [self._padding(_length(images, axis), axis) for axis in range(self.rank)]
        return pad(images, [[0, 0], *paddings, [0, 0]])

    def rim(self, axis: int) -> tuple[int, int]:
        """Places before and behind the outputs at which a patch still touches the image.

        Of convolutions with strides 1.
        """
        before, after = (0, 0) if self.padding == "valid" else self._padding(self.size[axis], axis)
        return self.extent[axis] - 1 - before, self.extent[axis] - 1 - after

    def outputs(self, padded: Any, axis: int) -> Any:
        """Output locations along an axis of the padded input (an int or a tensor)."""
        return (padded - self.extent[axis]) // self.strides[axis] + 1

    def patches(self, padded: tf.Tensor, *, reverse: bool = False) -> list[tf.Tensor]:
        """What each output location sees at each offset of the kernel.

        Args:
            padded: ``[N, *space, channels]``, padded.
            reverse: Take the offsets in the reverse order.

        Returns:
            For every offset in the kernel's order a tensor ``[N, *outputs, channels]``.
        """
        if math.prod(self.extent) == math.prod(self.strides) == 1:
            return [padded]
        counts = [self.outputs(_length(padded, axis), axis) for axis in range(self.rank)]
        found = []
        for offsets in itertools.product(*map(range, self.size)):
            cut = []
            for axis, offset in enumerate(offsets):
                first = offset * self.dilation[axis]
                last = first + (counts[axis] - 1) * self.strides[axis]
                cut.append(slice(first, last + 1, self.strides[axis]))
            found.append(padded[(slice(None), *cut, slice(None))])
        return found[::-1] if reverse else found

    def _padding(self, length: Any, axis: int) -> list[Any]:
        """Padding before and after."""
        stride, extent = self.strides[axis], self.extent[axis]
        if self.padding == "causal":
            return [extent - 1, 0]
        needed = (-(-length // stride) - 1) * stride + extent - length
        needed = max(needed, 0) if isinstance(needed, int) else tf.maximum(needed, 0)
        return [needed // 2, needed - needed // 2]

    def _spread(self, images: tf.Tensor, axis: int) -> tf.Tensor:
        """Zeros between the entries along one spatial axis, and padding."""
        stride, extent = self.strides[axis], self.extent[axis]
        length = _length(images, axis)
        outputs = self._transposed_outputs(length, axis)
        images = _insert_zeros(images, axis + 1, stride)
        before = extent - 1 - self._cut_before(length, outputs, axis)
        whole = outputs + extent - 1
        after = whole - before - ((length - 1) * stride + 1)
        after = max(after, 0) if isinstance(after, int) else tf.maximum(after, 0)
        paddings: list[list[Any]] = [[0, 0] for _ in range(self.rank + 2)]
        paddings[axis + 1] = [before, after]
        cut = [slice(None)] * (self.rank + 2)
        cut[axis + 1] = slice(0, whole)
        return tf.pad(images, paddings)[tuple(cut)]

    def _transposed_outputs(self, length: Any, axis: int) -> Any:
        """The length of the output of a transposed convolution, as Keras chooses it."""
        stride, extent = self.strides[axis], self.extent[axis]
        extra = None if self.output_padding is None else self.output_padding[axis]
        if self.padding == "valid":
            extra = max(stride - extent, 0) if extra is None else extra
            return (length - 1) * stride + extent + extra
        if extra is None:
            return length * stride
        return (length - 1) * stride + extent - 2 * (extent // 2) + extra

    def _cut_before(self, length: Any, outputs: Any, axis: int) -> Any:
        """The padding before of the convolution of which this is the transpose."""
        if self.padding == "valid":
            return 0
        total = (length - 1) * self.strides[axis] + self.extent[axis] - outputs
        return (max(total, 0) if isinstance(total, int) else tf.maximum(total, 0)) // 2


def pad(tensor: tf.Tensor, paddings: Sequence[Sequence[Any]]) -> tf.Tensor:
    """`tf.pad`, which is nothing in the graph where all paddings are known to be zero."""
    known_zero = all(isinstance(each, int) and each == 0 for pair in paddings for each in pair)
    return tensor if known_zero else tf.pad(tensor, paddings)


def _length(images: tf.Tensor, axis: int) -> Any:
    """The length of a spatial axis, an int where it is known."""
    static = images.shape[axis + 1]
    return tf.shape(images)[axis + 1] if static is None else static


def _insert_zeros(images: tf.Tensor, axis: int, stride: int) -> tf.Tensor:
    """``stride − 1`` zeros between neighbours along an axis."""
    if stride == 1:
        return images
    shape = tf.shape(images)
    length = _length(images, axis - 1)
    spread = tf.pad(
        tf.expand_dims(images, axis + 1),
        [[0, stride - 1] if each == axis + 1 else [0, 0] for each in range(images.shape.rank + 1)],
    )
    spread = tf.reshape(
        spread, tf.concat([shape[:axis], [length * stride], shape[axis + 1 :]], axis=0)
    )
    static = images.shape.as_list()
    static[axis] = length * stride if isinstance(length, int) else None
    spread = tf.ensure_shape(spread, static)
    cut = [slice(None)] * images.shape.rank
    cut[axis] = slice(0, (length - 1) * stride + 1)
    return spread[tuple(cut)]
