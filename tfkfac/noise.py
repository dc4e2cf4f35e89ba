"""Random numbers that are the same in graph mode, in eager mode and under XLA.

TensorFlow's Philox *bits* agree everywhere, but its transforms of bits to floats do not (XLA takes
the high bits where the CPU kernel takes the low ones). So the bits are transformed here.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf


class PhiloxNoise:
    """Counter-based noise: a function of seed, step, draw and position.

    Args:
        seed: The optimizer's seed.
        step: The count of steps; each step has its own numbers.
    """

    def __init__(self, seed: int, step: tf.Tensor) -> None:
        self._seed = seed
        self._step = tf.cast(step, tf.int64)
        self._draws = 0

    def uniform(self, shape: Any, dtype: Any) -> tf.Tensor:
        """Numbers in (0, 1): odd multiples of 2⁻²⁴, which float32 holds exactly."""
        bits = tf.random.stateless_uniform(
            shape, self._next_seed(), minval=None, maxval=None, dtype=tf.uint32, alg="philox"
        )
        high = tf.bitwise.right_shift(bits, tf.constant(9, tf.uint32))
        return tf.cast((tf.cast(high, tf.float32) + 0.5) * 2.0**-23, dtype)

    def normal(self, shape: Any, dtype: Any) -> tf.Tensor:
        """Standard normal numbers, by inversion."""
        return tf.cast(tf.math.ndtri(self.uniform(shape, tf.float32)), dtype)

    def seed(self) -> tf.Tensor:
        """A stateless seed for samplers that are not ours."""
        return tf.cast(self._next_seed() % (2**31 - 1), tf.int32)

    def _next_seed(self) -> tf.Tensor:
        """A seed of its own for each draw of a step."""
        self._draws += 1
        return tf.stack([tf.constant(self._seed * 1_000_003 + self._draws, tf.int64), self._step])
