"""The second moment of a convolution's patches without making the patches.

Let output locations run over all places at which a patch touches the image. Then the blocks of
``Σ_o patch(o) patch(o)ᵀ`` depend on the difference of two kernel offsets only,
``Σ_i x[i] x[i + d]ᵀ``: a k×k kernel has (2k−1)² differences, half of them by symmetry, instead of
k⁴ pairs. The places beyond the real outputs are a thin rim; their patches are made and taken off.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import tensorflow as tf

from tfkfac.blocks.window import Window

WORTHWHILE = 0.85
"""Take shifted moments if they need at most this share of the operations (measured, see docs)."""


def is_worthwhile(window: Window, images: tf.TensorShape) -> bool:
    """Whether the count of operations speaks for shifted moments.

    Args:
        window: The geometry.
        images: The shape of the images, channels last, not padded.
    """
    return share_of_operations(window, images) <= WORTHWHILE


def share_of_operations(window: Window, images: tf.TensorShape) -> float:
    """The operations of shifted moments over those of one triangle of the patches' moment.

    Infinite where there are no shifted moments.
    """
    plain = window.strides == window.dilation == (1,) * window.rank and not window.transposed
    if window.rank != 2 or not plain or None in images[1:3] or max(window.size) == 1:
        return math.inf
    height, width = window.size
    pairs = (height * width) ** 2 / 2
    places = with_rim = 1
    for axis in range(2):
        touching = images[axis + 1] + window.size[axis] - 1
        places *= touching - sum(window.rim(axis))
        with_rim *= touching
    return height * (2 * width - 1) / pairs + (with_rim - places) / places


def second_moment(
    images: tf.Tensor, window: Window, of_patches: Callable[[tf.Tensor], tf.Tensor]
) -> tf.Tensor:
    """``Σ_o patch(o) patch(o)ᵀ``, the lower triangle.

    Args:
        images: ``[N, height, width, C]``, not padded.
        window: Strides and dilation are 1.
        of_patches: The second moment of the patches of padded images, for the rim.

    Returns:
        ``[kh·kw·C, kh·kw·C]``; above the diagonal blocks it is unspecified.
    """
    moment = _everywhere(images, window)
    margins = [[size - 1, size - 1] for size in window.size]
    padded = tf.pad(images, [[0, 0], *margins, [0, 0]])
    cuts: dict[tuple[int, int], list[tf.Tensor]] = {}
    for rows, columns in _rim(images.shape, window):
        cut = padded[:, rows, columns]
        cuts.setdefault((cut.shape[1], cut.shape[2]), []).append(cut)
    for alike in cuts.values():  # opposite sides are one batch
        moment -= of_patches(alike[0] if len(alike) == 1 else tf.concat(alike, axis=0))
    return moment


def sums(padded: tf.Tensor, window: Window) -> tf.Tensor:
    """``Σ_o patch(o)``, ``[kh·kw·C]``, of padded images."""
    whole = tf.reduce_sum(padded, axis=0, keepdims=True)
    return tf.concat([tf.reduce_sum(part, axis=[0, 1, 2]) for part in window.patches(whole)], 0)


def _everywhere(images: tf.Tensor, window: Window) -> tf.Tensor:
    """The moment over all places at which a patch touches the image.

    The differences d of two offsets, the later less the earlier, are what the gradient of a
    convolution's kernel runs over: ``R[d] = Σ_i x[i + d] x[i]ᵀ``.
    """
    height, width = window.size
    channels = images.shape[-1]
    shifted = tf.pad(images, [[0, 0], [0, height - 1], [width - 1, width - 1], [0, 0]])
    correlations = tf.raw_ops.Conv2DBackpropFilter(
        input=shifted,
        filter_sizes=[height, 2 * width - 1, channels, channels],
        out_backprop=images,
        strides=[1, 1, 1, 1],
        padding="VALID",
    )
    offsets = list(itertools.product(range(height), range(width)))
    which = [
        [max(p[0] - q[0], 0) * (2 * width - 1) + p[1] - q[1] + width - 1 for q in offsets]
        for p in offsets
    ]
    blocks = tf.gather(tf.reshape(correlations, [-1, channels, channels]), which)
    side = len(offsets) * channels
    return tf.reshape(tf.transpose(blocks, [0, 2, 1, 3]), [side, side])


def _rim(shape: tf.TensorShape, window: Window) -> Iterator[tuple[slice, slice]]:
    """Cuts of the padded images that hold the patches of the places beyond the real outputs."""
    spans = [shape[axis + 1] + window.size[axis] - 1 for axis in range(2)]
    (top, bottom), (left, right) = window.rim(0), window.rim(1)
    rows, columns = spans
    for places in (
        (0, top, 0, columns),
        (rows - bottom, rows, 0, columns),
        (top, rows - bottom, 0, left),
        (top, rows - bottom, columns - right, columns),
    ):
        first_row, last_row, first_column, last_column = places
        if last_row > first_row and last_column > first_column:
            yield (
                slice(first_row, last_row + window.size[0] - 1),
                slice(first_column, last_column + window.size[1] - 1),
            )
