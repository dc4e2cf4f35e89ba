"""Random numbers that are the same in graph mode, in eager mode and under XLA.

TensorFlow's Philox *bits* agree everywhere, but its transforms of bits to floats do not (XLA takes
the high bits where the CPU kernel takes the low ones). So the bits are transformed here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

_PHILOX = 1
"""``tf.random.Algorithm.PHILOX``, as the raw operations want it."""

_WORDS = 4
"""Numbers of 32 bits that one step of the Philox counter gives."""

_LANES = 16
"""Floats of the widest vector instruction. What does not fill one is inverted by other ones, which
round differently; so that a number does not depend on how many are drawn with it, all are full."""

_SEEDS = 2**31 - 1
"""All seeds are below this prime: other samplers want 32 bits, and XLA cuts longer ones off."""

_FAR_APART = 1327217884
"""`_SEEDS` over the golden ratio. Multiples of it keep their distance modulo `_SEEDS` (Knuth, The
Art of Computer Programming 3, §6.4): of a batch of 10⁶ examples, 900 draws share no seed."""


class PhiloxNoise:
    """Counter-based noise: a function of seed, step, draw and global position.

    The first axis of what is drawn runs over examples. A micro-batch or a replica that says which
    example of the whole batch its first one is gets its rows of the draw of the whole batch, bit
    for bit, at the cost of its own rows.

    Args:
        seed: The optimizer's seed.
        step: The count of steps; each step has its own numbers.
        first_example: Position in the whole batch of the first example here, an int or an integer
            scalar.
    """

    def __init__(
        self, seed: int | tf.Tensor, step: tf.Tensor, first_example: int | tf.Tensor = 0
    ) -> None:
        self._seed = tf.cast(tf.convert_to_tensor(seed), tf.int64)
        self._step = tf.cast(step, tf.int64)
        self._first_example = tf.cast(first_example, tf.int64)
        self._draws = 0

    def uniform(self, shape: Any, dtype: Any) -> tf.Tensor:
        """Numbers in (0, 1): odd multiples of 2⁻²⁴, which float32 holds exactly.

        Args:
            shape: ``[n, ...]``, the examples first.
            dtype: Of the result.
        """
        return tf.cast(tf.reshape(self._uniform(shape, _size(shape)), shape), dtype)

    def normal(self, shape: Any, dtype: Any) -> tf.Tensor:
        """Standard normal numbers, by inversion; `shape` as for `uniform`."""
        size = _size(shape)
        numbers = tf.math.ndtri(self._uniform(shape, size + -size % _LANES))
        return tf.cast(tf.reshape(numbers[:size], shape), dtype)

    def seed(self) -> tf.Tensor:
        """A stateless seed for samplers that are not ours.

        Slices of a batch have seeds of their own: no slice repeats the numbers of another, but
        they are not those of the whole batch either.
        """
        fold = tf.stack([self._first_example % _SEEDS * _FAR_APART, tf.constant(0, tf.int64)])
        return tf.cast((self._next_seed() + fold % _SEEDS) % _SEEDS, tf.int32)

    def _next_seed(self) -> tf.Tensor:
        """A seed of its own for each draw of a step."""
        self._draws += 1
        return tf.stack([self._seed * 1_000_003 + self._draws, self._step]) % _SEEDS

    def _uniform(self, shape: Any, count: tf.Tensor) -> tf.Tensor:
        """The first numbers of a draw of a shape, and those behind it if `count` is larger."""
        before = self._first_example * _size(tf.convert_to_tensor(shape)[1:])
        high = tf.bitwise.right_shift(_bits(self._next_seed(), before, count), np.uint32(9))
        return (tf.cast(high, tf.float32) + 0.5) * 2.0**-23


def _size(shape: Any) -> tf.Tensor:
    """The number of entries of a tensor of a shape, ``int64``."""
    return tf.reduce_prod(tf.cast(shape, tf.int64))


def _bits(seed: tf.Tensor, before: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """Random ``uint32`` numbers: `count` of a seed's stream, behind the first `before` of it.

    The counter steps over most of those; of the numbers of one step, some in front are cut off.
    """
    key, counter = tf.raw_ops.StatelessRandomGetKeyCounter(seed=seed)
    steps = tf.stack([before // _WORDS, tf.constant(0, tf.int64)])
    bits = tf.raw_ops.StatelessRandomUniformFullIntV2(
        shape=count[None] + (_WORDS - 1),  # however many are cut off: XLA has to know the shape
        key=key,
        counter=counter + tf.cast(steps, tf.uint64),
        alg=_PHILOX,
        dtype=tf.uint32,
    )
    return tf.slice(bits, (before % _WORDS)[None], count[None])
