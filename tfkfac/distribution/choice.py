"""Which workers make the steps."""

from __future__ import annotations

import sys

import tensorflow as tf

from tfkfac.distribution.replicas import Replicas
from tfkfac.distribution.workers import Alone, Workers

DISTRIBUTIONS = ("auto", "single", "strategy", "horovod")
"""The values of ``KFAC(distribution=...)``."""


def workers_of(distribution: str) -> Workers:
    """The workers that a step has.

    Args:
        distribution: "auto" looks for the scope of a ``tf.distribute`` strategy and for an
            initialised Horovod; "single", "strategy" and "horovod" insist.

    Raises:
        ValueError: What was insisted on is not there, or both are.
    """
    strategy = tf.distribute.get_strategy()
    replicas = strategy.num_replicas_in_sync
    ranks = ranks_of_horovod()
    if distribution == "single" or (distribution == "auto" and max(replicas, ranks) == 1):
        return Alone()
    if ranks > 1:
        raise ValueError(
            f"KFAC does not train over Horovod yet, but there are {ranks} ranks. Start one process."
        )
    return Replicas(strategy)


def ranks_of_horovod() -> int:
    """The number of ranks; 1 where Horovod is not initialised."""
    horovod = sys.modules.get("horovod.tensorflow")
    return horovod.size() if horovod is not None and horovod.is_initialized() else 1
