"""Which workers make the steps."""

from __future__ import annotations

import os
import sys

import tensorflow as tf

from tfkfac.distribution.horovod import Ranks
from tfkfac.distribution.replicas import Replicas
from tfkfac.distribution.workers import Alone, Workers

DISTRIBUTIONS = ("auto", "single", "strategy", "horovod")
"""The values of ``KFAC(distribution=...)``."""


def workers_of(distribution: str, strategy: tf.distribute.Strategy) -> Workers:
    """The workers that a step has.

    Args:
        distribution: "auto" looks for the scope of a ``tf.distribute`` strategy and for an
            initialised Horovod; "single", "strategy" and "horovod" insist.
        strategy: In the scope of which the model was made.

    Raises:
        ValueError: What was insisted on is not there, or both are.
    """
    ranks = ranks_of_horovod()
    mirrored = has_replicas(strategy)
    if distribution == "auto" and not mirrored:
        _require_initialised_horovod()
    if distribution == "single" or (distribution == "auto" and ranks == 1 and not mirrored):
        return Alone()
    if distribution == "strategy" or (distribution == "auto" and ranks == 1):
        if not mirrored:
            raise ValueError(
                'Argument `distribution` is "strategy", but the model is not in the scope of a '
                "MirroredStrategy or a MultiWorkerMirroredStrategy. Build model and optimizer "
                "within `with strategy.scope():`."
            )
        return Replicas(strategy)
    if mirrored:
        raise ValueError(
            f"There are {ranks} Horovod ranks, and in each a {type(strategy).__name__} with "
            f"{strategy.num_replicas_in_sync} replicas. Use one of both: make the model outside of "
            "the strategy's scope, or start the program without horovodrun."
        )
    horovod = sys.modules.get("horovod.tensorflow")
    if horovod is None or not horovod.is_initialized():
        raise ValueError(
            'Argument `distribution` is "horovod", but Horovod is not initialised. Put '
            "`import horovod.tensorflow as hvd; hvd.init()` in front."
        )
    return Ranks(horovod) if ranks > 1 else Alone()


def has_replicas(strategy: tf.distribute.Strategy) -> bool:
    """Whether a strategy has replicas that are merged, be it one.

    Args:
        strategy: Any.
    """
    kinds = tf.distribute.MirroredStrategy, tf.distribute.MultiWorkerMirroredStrategy
    return isinstance(strategy, kinds)


def is_over_horovod(distribution: str) -> bool:
    """Whether the workers are ranks of Horovod.

    Args:
        distribution: As for `workers_of`.
    """
    return distribution in ("auto", "horovod") and ranks_of_horovod() > 1


def ranks_of_horovod() -> int:
    """The number of ranks; 1 where Horovod is not initialised."""
    horovod = sys.modules.get("horovod.tensorflow")
    return horovod.size() if horovod is not None and horovod.is_initialized() else 1


def _require_initialised_horovod() -> None:
    """Raises if ``horovodrun`` has started several processes that know nothing of each other.

    Raises:
        ValueError: Each of them would train a model of its own.
    """
    ranks = os.environ.get("HOROVOD_SIZE", "1")
    horovod = sys.modules.get("horovod.tensorflow")
    if ranks not in ("", "1") and (horovod is None or not horovod.is_initialized()):
        raise ValueError(
            f"This is one of {ranks} processes that horovodrun has started, but Horovod is not "
            "initialised: each of them would train a model of its own. Put `import "
            "horovod.tensorflow as hvd; hvd.init()` in front; if they are to train apart, use "
            'KFAC(distribution="single").'
        )


def require_unwrapped(optimizer_class: type) -> None:
    """Refuses to be wrapped by ``hvd.DistributedOptimizer``.

    Raises:
        ValueError: Saying why.
    """
    if hasattr(optimizer_class, "_HAS_AGGREGATE_GRAD"):
        raise ValueError(
            "tfkfac.KFAC adds up gradients over the ranks by itself; do not wrap it in "
            "hvd.DistributedOptimizer, which with Keras 3 does not average gradients, and says "
            "nothing of it. Compile the model with the KFAC."
        )
