"""2-D convolutions: every output location is a use of the kernel on one patch."""

from __future__ import annotations

import dataclasses
from typing import Any

import tensorflow as tf

from tfkfac.blocks.block import UseWeights
from tfkfac.blocks.kronecker import KroneckerBlock

PATCH_BYTES = 32 * 2**20
"""What the patches of one chunk may take; with their weighted copy, 64 MB."""


@dataclasses.dataclass(frozen=True)
class Window:
    """The geometry of a 2-D convolution.

    Attributes:
        size: Kernel height and width.
        strides: Vertical and horizontal.
        dilation: Vertical and horizontal.
        padding: "valid" or "same", in TensorFlow's sense.
        channels_first: Whether images are ``[N, channels, height, width]``.
    """

    size: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: str = "valid"
    channels_first: bool = False

    @property
    def extent(self) -> tuple[int, int]:
        """Height and width of the input that one output location sees."""
        height, width = (
            (size - 1) * dilation + 1
            for size, dilation in zip(self.size, self.dilation, strict=True)
        )
        return height, width

    def pad(self, images: tf.Tensor) -> tf.Tensor:
        """Pads ``[N, height, width, C]`` so that a "valid" convolution gives the same output."""
        if self.padding == "valid":
            return images
        paddings = [
            self._same_padding(tf.shape(images)[axis + 1], images.shape[axis + 1], axis)
            for axis in range(2)
        ]
        return tf.pad(images, [[0, 0], *paddings, [0, 0]])

    def outputs(self, padded: Any, axis: int) -> Any:
        """Output locations along an axis of the padded input (an int or a tensor)."""
        return (padded - self.extent[axis]) // self.strides[axis] + 1

    def _same_padding(self, length: tf.Tensor, static: int | None, axis: int) -> list[Any]:
        """Padding before and after, as TensorFlow's "SAME"."""
        size: Any = length if static is None else static
        stride, extent = self.strides[axis], self.extent[axis]
        needed = (-(-size // stride) - 1) * stride + extent - size
        needed = tf.maximum(needed, 0) if static is None else max(needed, 0)
        return [needed // 2, needed - needed // 2]


class Conv2DBlock(KroneckerBlock):
    """Kronecker factors for convolutions (Grosse & Martens 2016), patches ``[kh, kw, cin]``.

    With groups each group is a convolution of its own, with its own pair of factors.

    Args:
        layer: The Keras layer.
        kernel: ``[kh, kw, cin / groups, cout]``.
        bias: ``[cout]`` or None.
        window: The geometry.
        groups: Number of groups.
        **options: As for `KroneckerBlock`: `method`, `max_factor_size`.
    """

    label = "Conv2D"

    def __init__(
        self,
        layer: Any,
        kernel: Any,
        bias: Any,
        *,
        window: Window,
        groups: int = 1,
        **options: Any,
    ) -> None:
        height, width, channels, filters = kernel.shape
        super().__init__(
            layer,
            kernel,
            bias,
            input_dim=height * width * channels,
            output_dim=filters // groups,
            groups=groups,
            **options,
        )
        self.window = window
        self.channel_axis = 1 if window.channels_first else -1
        self._kernel_shape = tuple(kernel.shape)

    def input_moment(self, inputs: tf.Tensor, weights: UseWeights) -> tf.Tensor:
        """Sums over chunks of examples (and bands of rows), so that patches stay small."""
        images = self.window.pad(self._channels_last(inputs))
        chunks = _Chunks.of(images, self.window, self._patch_size, self.dtype)
        omega = weights.omega
        if omega is None and not chunks.are_exact:
            omega = tf.ones([1, 1, 1], self.dtype)
        if omega is not None:
            places = [tf.shape(inputs)[0], *chunks.places]
            omega = chunks.pad_weights(tf.broadcast_to(omega, places)[..., None])
        images = chunks.pad_images(images)

        def moment_of_chunk(index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            rows = self._rows(chunks.images(images, index))
            root = None if omega is None else tf.sqrt(chunks.weights(omega, index))
            if root is not None:
                rows *= root
            sums = tf.reduce_sum(rows if root is None else rows * root, axis=-2)
            return self.input_form.second_moment(rows), sums

        moment, sums = chunks.sum(moment_of_chunk)
        if not self.has_bias:
            return moment
        return self.input_form.border(moment, sums, tf.broadcast_to(weights.total, sums.shape[:-1]))

    @property
    def _patch_size(self) -> int:
        """Numbers in the patch that one output location sees, over all groups."""
        return self.groups * (self.input_dim - self.has_bias)

    def output_rows(self, gradients: tf.Tensor) -> tf.Tensor:
        """Every location is a row; the channels of a group are contiguous."""
        rows = tf.reshape(self._channels_last(gradients), [-1, self.groups * self.output_dim])
        return self._split_groups(rows, self.output_dim)

    def kernel_to_matrix(self, kernel: tf.Tensor) -> tf.Tensor:
        """``[kh, kw, cin / groups, cout]`` → ``[kh·kw·cin / groups, cout]`` (stacked by group)."""
        rows = tf.reshape(kernel, [-1, self.groups * self.output_dim])
        return self._split_groups(rows, self.output_dim)

    def matrix_to_kernel(self, matrix: tf.Tensor) -> tf.Tensor:
        """The reverse."""
        if self.groups > 1:
            matrix = tf.transpose(matrix, [1, 0, 2])
        return tf.reshape(matrix, self._kernel_shape)

    def _channels_last(self, images: tf.Tensor) -> tf.Tensor:
        """Images with the channels as the last axis."""
        if self.window.channels_first:
            return tf.transpose(images, [0, 2, 3, 1])
        return images

    def _rows(self, images: tf.Tensor) -> tf.Tensor:
        """Patches of padded images as rows, ``[places, kh·kw·cin]`` (stacked by group)."""
        patches = tf.image.extract_patches(
            images,
            sizes=[1, *self.window.size, 1],
            strides=[1, *self.window.strides, 1],
            rates=[1, *self.window.dilation, 1],
            padding="VALID",
        )
        kernel_places = self.window.size[0] * self.window.size[1]
        channels = self._kernel_shape[2]
        rows = tf.reshape(patches, [-1, kernel_places * channels * self.groups])
        if self.groups == 1:
            return rows
        rows = tf.reshape(rows, [-1, kernel_places, self.groups, channels])
        rows = tf.transpose(rows, [2, 0, 1, 3])
        return tf.reshape(rows, [self.groups, -1, kernel_places * channels])

    def _split_groups(self, rows: tf.Tensor, width: int) -> tf.Tensor:
        """``[n, groups·width]`` → ``[groups, n, width]``; unchanged without groups."""
        if self.groups == 1:
            return rows
        return tf.transpose(tf.reshape(rows, [-1, self.groups, width]), [1, 0, 2])


@dataclasses.dataclass(frozen=True, eq=False)
class _Chunks:
    """Equal pieces of a batch of padded images, whose patches fit `PATCH_BYTES`.

    A chunk is `examples` whole images or, where one image is too large, a band of `rows` output
    rows of one image. All chunks have one shape, so that the loop over them compiles with XLA; the
    batch is filled up with zero images and the images with rows of weight zero, which add nothing.
    Every size is an int where it is known when the graph is made, else a tensor.
    """

    window: Window
    batch: Any
    examples: Any
    rows: Any
    places: tuple[Any, Any]

    @classmethod
    def of(cls, images: tf.Tensor, window: Window, patch: int, dtype: str) -> _Chunks:
        """Chooses the pieces.

        Args:
            images: Padded, ``[N, height, width, C]``.
            window: The convolution's geometry.
            patch: Numbers in a patch.
            dtype: Of the images.
        """
        batch, padded_height, padded_width = (
            tf.shape(images)[axis] if images.shape[axis] is None else images.shape[axis]
            for axis in range(3)
        )
        height, width = window.outputs(padded_height, 0), window.outputs(padded_width, 1)
        row_bytes = width * (patch * tf.dtypes.as_dtype(dtype).size)
        fitting = _greater(1, PATCH_BYTES // row_bytes)
        bands = _parts(height, fitting)
        pieces = _parts(batch, _greater(1, fitting // height))
        return cls(window, batch, _parts(batch, pieces), _parts(height, bands), (height, width))

    @property
    def bands(self) -> Any:
        """Bands of rows that an image is cut into."""
        return _parts(self.places[0], self.rows)

    @property
    def count(self) -> Any:
        """The number of chunks."""
        return _parts(self.batch, self.examples) * self.bands

    @property
    def are_exact(self) -> bool:
        """Whether the bands are known to cover the images' rows exactly."""
        missing = self._missing_rows
        return isinstance(missing, int) and missing == 0

    @property
    def _missing_rows(self) -> Any:
        return self.bands * self.rows - self.places[0]

    def pad_images(self, images: tf.Tensor) -> tf.Tensor:
        """Fills batch and images up to whole chunks, with zeros."""
        below = self._missing_rows * self.window.strides[0]
        return tf.pad(images, [[0, -self.batch % self.examples], [0, below], [0, 0], [0, 0]])

    def pad_weights(self, omega: tf.Tensor) -> tf.Tensor:
        """Fills the weights of the places up to whole chunks, with zeros."""
        missing = [[0, -self.batch % self.examples], [0, self._missing_rows], [0, 0], [0, 0]]
        return tf.pad(omega, missing)

    def images(self, images: tf.Tensor, index: Any) -> tf.Tensor:
        """The part of the padded images that the chunk's output locations see."""
        stride, extent = self.window.strides[0], self.window.extent[0]
        first = (index % self.bands) * self.rows * stride
        height = (self.rows - 1) * stride + extent
        begin = [index // self.bands * self.examples, first, 0, 0]
        return tf.slice(images, begin, [self.examples, height, -1, -1])

    def weights(self, omega: tf.Tensor, index: Any) -> tf.Tensor:
        """The weights of the chunk's places, ``[places, 1]``."""
        begin = [index // self.bands * self.examples, (index % self.bands) * self.rows, 0, 0]
        piece = tf.slice(omega, begin, [self.examples, self.rows, -1, -1])
        return tf.reshape(piece, [-1, 1])

    def sum(self, of_chunk: Any) -> Any:
        """The sum of ``of_chunk(index)``, a tuple of tensors, over all chunks."""
        if isinstance(self.count, int) and self.count == 1:
            return of_chunk(0)
        first = of_chunk(tf.constant(0))

        def add(index: tf.Tensor, *sums: tf.Tensor) -> tuple[tf.Tensor, ...]:
            return (
                index + 1,
                *(
                    tf.ensure_shape(total + piece, total.shape)
                    for total, piece in zip(sums, of_chunk(index), strict=True)
                ),
            )

        _, *sums = tf.while_loop(
            lambda index, *_: index < self.count,
            add,
            [tf.constant(1), *first],
            parallel_iterations=1,
        )
        return sums


def _parts(whole: Any, part: Any) -> Any:
    """How many parts cover a whole, rounded up."""
    return -(-whole // part)


def _greater(left: Any, right: Any) -> Any:
    """The greater of two sizes, ints or tensors."""
    if isinstance(left, int) and isinstance(right, int):
        return max(left, right)
    return tf.maximum(left, right)
