"""Tensors put together for one exchange: symmetric matrices as triangles, all in one vector."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import tensorflow as tf

from tfkfac import linalg


@dataclasses.dataclass(frozen=True)
class Parcel:
    """What is known of a tensor before it is sent.

    Attributes:
        shape: Of the tensor.
        symmetric: Whether it is a symmetric matrix (or a stack of them), of which a triangle says
            all.
    """

    shape: tuple[int, ...]
    symmetric: bool = False

    @property
    def size(self) -> int:
        """Numbers that are sent."""
        if not self.symmetric:
            return math.prod(self.shape)
        dim = self.shape[-1]
        return math.prod(self.shape[:-2]) * (dim * (dim + 1) // 2)

    def pack(self, tensor: tf.Tensor) -> tf.Tensor:
        """The numbers, as a vector."""
        return tf.reshape(fold(tensor) if self.symmetric else tensor, [self.size])

    def unpack(self, numbers: tf.Tensor) -> tf.Tensor:
        """The reverse of `pack`; of a symmetric matrix the whole."""
        if not self.symmetric:
            return tf.reshape(numbers, self.shape)
        dim = self.shape[-1]
        return unfold(tf.reshape(numbers, [*self.shape[:-2], *folded_shape(dim)]), dim)


def pack(parcels: Sequence[Parcel], tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    """All numbers of some tensors in one vector.

    Args:
        parcels: What is known of them.
        tensors: At least one.
    """
    pairs = zip(parcels, tensors, strict=True)
    return tf.concat([parcel.pack(tensor) for parcel, tensor in pairs], axis=0)


def unpack(parcels: Sequence[Parcel], numbers: tf.Tensor) -> list[tf.Tensor]:
    """The reverse of `pack`; nothing of no parcels."""
    if not parcels:
        return []
    parts = tf.split(numbers, [parcel.size for parcel in parcels])
    return [parcel.unpack(part) for parcel, part in zip(parcels, parts, strict=True)]


def size_of(parcels: Sequence[Parcel]) -> int:
    """Numbers in all of them."""
    return sum(parcel.size for parcel in parcels)


def folded_shape(dim: int) -> tuple[int, int]:
    """Of a triangle of a ``dim × dim`` matrix that was folded into a rectangle."""
    return (dim + 1) // 2, dim + 1 - dim % 2


def fold(lower: tf.Tensor) -> tf.Tensor:
    """A lower triangle as a rectangle without gaps: copies of blocks, no gathering of entries.

    The rows below the middle fill those above it up, from the right and upside down. In the
    rectangle of a 4×4 matrix, ``ij`` being row i and column j::

        00 33 32 31 30
        10 11 22 21 20

    Args:
        lower: ``[..., d, d]``; what is above the diagonal does not matter.

    Returns:
        ``[..., (d + 1) // 2, d + 1 − d % 2]``.
    """
    dim = lower.shape[-1]
    half, (rows, width) = dim // 2, folded_shape(dim)
    leading = [[0, 0]] * (lower.shape.rank - 2)
    triangle = tf.linalg.band_part(lower, -1, 0)
    above = triangle[..., :half, :half]
    above = tf.pad(above, [*leading, [rows - half, 0], [0, width - half]])
    below = tf.reverse(triangle[..., half:, :], [-2, -1])
    return above + tf.pad(below, [*leading, [0, 0], [width - dim, 0]])


def unfold(rectangle: tf.Tensor, dim: int) -> tf.Tensor:
    """The symmetric matrix of which `fold` made the rectangle."""
    half, (rows, width) = dim // 2, folded_shape(dim)
    leading = [[0, 0]] * (rectangle.shape.rank - 2)
    above = rectangle[..., rows - half :, :half]
    above = tf.pad(tf.linalg.band_part(above, -1, 0), [*leading, [0, 0], [0, dim - half]])
    below = tf.reverse(rectangle[..., width - dim :], [-2, -1])
    return linalg.symmetric(tf.concat([above, below], axis=-2))
