"""Strategies over the devices of one process."""

from __future__ import annotations

import tensorflow as tf


def mirrored(replicas: int) -> tf.distribute.Strategy:
    """A strategy over logical devices; in one process each needs collective keys of its own."""
    tf.distribute.MirroredStrategy._collective_key_base += 100_000
    return tf.distribute.MirroredStrategy([f"CPU:{index}" for index in range(replicas)])
