"""Equal pieces of a batch of images, so that patches of a convolution never take much memory."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfkfac.blocks.window import Window, pad

PATCH_BYTES = 32 * 2**20
"""What the patches of one chunk may take; with their weighted copy, 64 MB."""


@dataclasses.dataclass(frozen=True, eq=False)
class Chunks:
    """Equal pieces of a batch of padded images, whose patches fit `PATCH_BYTES`.

    A chunk is `examples` whole images or, where one image is too large, a band of one image: `rows`
    output locations along the first spatial axis. All chunks have one shape, so that the loop over
    them compiles with XLA; the batch is filled up with zero images and the images with rows of
    weight zero, which add nothing. Every size is an int where it is known when the graph is made,
    else a tensor.
    """

    window: Window
    batch: Any
    examples: Any
    rows: Any
    places: tuple[Any, ...]

    @classmethod
    def of(cls, images: tf.Tensor, window: Window, patch: int, dtype: str) -> Chunks:
        """Chooses the pieces.

        Args:
            images: Padded, ``[N, *space, C]``.
            window: The convolution's geometry over padded images.
            patch: Numbers in a patch.
            dtype: Of the images.
        """
        batch, *lengths = (
            tf.shape(images)[axis] if images.shape[axis] is None else images.shape[axis]
            for axis in range(window.rank + 1)
        )
        places = tuple(window.outputs(length, axis) for axis, length in enumerate(lengths))
        row_bytes = math.prod(places[1:]) * (patch * tf.dtypes.as_dtype(dtype).size)
        fitting = greater(1, PATCH_BYTES // row_bytes)
        bands = parts(places[0], fitting)
        pieces = parts(batch, greater(1, fitting // places[0]))
        return cls(window, batch, parts(batch, pieces), parts(places[0], bands), places)

    @property
    def bands(self) -> Any:
        """Bands of rows that an image is cut into."""
        return parts(self.places[0], self.rows)

    @property
    def count(self) -> Any:
        """The number of chunks."""
        return parts(self.batch, self.examples) * self.bands

    @property
    def is_whole(self) -> bool:
        """Whether all of the batch is known to be one chunk."""
        return isinstance(self.count, int) and self.count == 1

    @property
    def are_exact(self) -> bool:
        """Whether the bands are known to cover the images' rows exactly."""
        missing = self._missing_rows
        return isinstance(missing, int) and missing == 0

    def pad_images(self, images: tf.Tensor) -> tf.Tensor:
        """Fills batch and images up to whole chunks, with zeros."""
        below = self._missing_rows * self.window.strides[0]
        return pad(images, [[0, -self.batch % self.examples], [0, below], *self._others])

    def pad_weights(self, omega: tf.Tensor) -> tf.Tensor:
        """Fills the weights of the places up to whole chunks, with zeros."""
        missing = [[0, -self.batch % self.examples], [0, self._missing_rows], *self._others]
        return pad(omega, missing)

    def images(self, images: tf.Tensor, index: Any) -> tf.Tensor:
        """The part of the padded images that the chunk's output locations see."""
        stride, extent = self.window.strides[0], self.window.extent[0]
        first = (index % self.bands) * self.rows * stride
        height = (self.rows - 1) * stride + extent
        return self._cut(images, index, first, height)

    def weights(self, omega: tf.Tensor, index: Any) -> tf.Tensor:
        """The weights of the chunk's places, ``[places, 1]``."""
        first = (index % self.bands) * self.rows
        return tf.reshape(self._cut(omega, index, first, self.rows), [-1, 1])

    def sum(
        self,
        of_chunk: Callable[[Any], tuple[tf.Tensor, ...]],
        shapes: Sequence[Sequence[int]],
        dtype: str,
    ) -> Sequence[tf.Tensor]:
        """The sum of ``of_chunk(index)``, a tuple of tensors, over all chunks.

        Args:
            of_chunk: From the number of a chunk to the tensors.
            shapes: Of the tensors.
            dtype: Of the tensors.
        """
        if self.is_whole:
            return of_chunk(0)

        def add(index: tf.Tensor, *sums: tf.Tensor) -> tuple[tf.Tensor, ...]:
            pieces = zip(sums, of_chunk(index), strict=True)
            return (
                index + 1,
                *(tf.ensure_shape(total + piece, total.shape) for total, piece in pieces),
            )

        _, *sums = tf.while_loop(
            lambda index, *_: index < self.count,
            add,
            [tf.constant(0), *(tf.zeros(shape, dtype) for shape in shapes)],
            parallel_iterations=1,
        )
        return sums

    @property
    def _missing_rows(self) -> Any:
        return self.bands * self.rows - self.places[0]

    @property
    def _others(self) -> list[list[int]]:
        """No padding of the other spatial axes and the channels."""
        return [[0, 0]] * self.window.rank

    def _cut(self, tensor: tf.Tensor, index: Any, first: Any, height: Any) -> tf.Tensor:
        if self.is_whole:
            return tensor
        others = self.window.rank
        begin = [index // self.bands * self.examples, first, *[0] * others]
        return tf.slice(tensor, begin, [self.examples, height, *[-1] * others])


def parts(whole: Any, part: Any) -> Any:
    """How many parts cover a whole, rounded up."""
    return -(-whole // part)


def greater(left: Any, right: Any) -> Any:
    """The greater of two sizes, ints or tensors."""
    if isinstance(left, int) and isinstance(right, int):
        return max(left, right)
    return tf.maximum(left, right)
