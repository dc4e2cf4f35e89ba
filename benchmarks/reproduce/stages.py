"""The stages of a distributed step, on ranks of Horovod: seconds of each, exchanges by themselves.

Osawa et al. (2019) divide a step into forward and backward passes, the averages of the factors,
which are reduced and scattered to their owners, inverses, and the preconditioned gradients, which
are gathered. Here the same step is timed with everything in it, without inverses, and without
statistics, and beside it SGD's, in alternating blocks; the exchanges of each stage are timed alone,
with vectors of the same size.

    horovodrun --gloo -np 4 python -m benchmarks.reproduce.stages
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.communication import said_by_ranks, tell

PER_RANK = 64
"""Examples of a step on every rank."""


def of_ranks(setting: Mapping[str, Any]) -> dict[str, Any]:
    """Starts ranks, and returns medians of what they have found, in seconds."""
    arguments = ["benchmarks.reproduce.stages", "--rounds", str(setting["rounds"])]
    return {**setting, **said_by_ranks(setting["ranks"], arguments)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures on this rank; the first tells."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="alternations")
    parser.add_argument("--steps", type=int, default=4, help="steps of a block")
    chosen = parser.parse_args(arguments)
    import horovod.tensorflow as hvd

    hvd.init(process_sets="dynamic")
    found = measured(hvd, chosen.rounds, chosen.steps)
    if hvd.rank() == 0:
        tell(found)


def measured(hvd: Any, rounds: int, steps: int) -> dict[str, float]:
    """Medians of the steps' seconds, of the differences between them, and of the exchanges."""
    import keras
    import tensorflow as tf

    import tfkfac
    from benchmarks.late import NEVER, make_late
    from benchmarks.zoo import networks
    from tfkfac.traffic import predict

    random = np.random.default_rng(hvd.rank())
    batch = (
        tf.constant(random.normal(size=(PER_RANK, 28, 28, 1)), tf.float32),
        tf.constant(random.integers(10, size=PER_RANK)),
    )

    def compiled(optimizer: Any) -> Callable[[], Any]:
        keras.utils.set_random_seed(0)
        model = networks.normalised_convnet()
        model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        model.train_on_batch(*batch)
        return tf.function(lambda: model.train_step(batch)["loss"])

    kfac = tfkfac.KFAC(
        0.01,
        0.9,
        1e-2,
        placement="mem_opt",  # As in the paper: a layer's owner sends its preconditioned gradient.
        factor_update_every=1,
        inverse_update_every=1,
        kl_clip=None,
        seed=0,
    )
    sgd_step, kfac_step = compiled(keras.optimizers.SGD(0.01, momentum=0.9)), compiled(kfac)
    kfac_step()
    make_late(kfac)

    def kfac_block(factors: int, inverses: int) -> list[float]:
        kfac.factor_update_every, kfac.inverse_update_every = factors, inverses
        return [seconds(kfac_step, hvd) for _ in range(steps)]

    blocks: dict[str, Callable[[], list[float]]] = {
        "sgd": lambda: [seconds(sgd_step, hvd) for _ in range(steps)],
        "no statistics": lambda: kfac_block(NEVER, NEVER),
        "no inverses": lambda: kfac_block(1, NEVER),
        "everything": lambda: kfac_block(1, 1),
    }
    taken: dict[str, list[float]] = {name: [] for name in blocks}
    for turn in range(rounds + 1):
        for name, block in blocks.items():
            found = block()
            taken[name] += found if turn else []  # The first round traces.
    medians = {name: float(np.median(each)) for name, each in taken.items()}
    collection = kfac.layer_collection
    traffic = predict(collection.blocks, collection.roles) if hvd.size() > 1 else None
    return medians | exchanges(hvd, traffic, rounds * steps)


def exchanges(hvd: Any, traffic: Any, repeats: int) -> dict[str, float]:
    """Medians of an exchange alone: gradients, statistics, directions; as many bytes as predicted.

    A ring's all-reduce sends ``2n(W − 1)/W`` of n bytes, its gathering about ``n(W − 1)/W``.
    """
    if traffic is None:
        return dict.fromkeys(
            ("exchange gradients", "exchange statistics", "exchange directions"), 0.0
        )
    import tensorflow as tf

    ranks = hvd.size()

    def floats(sent: Sequence[float], share: float) -> Any:
        return tf.zeros([max(1, round(max(sent) / share / 4))])

    ring = (ranks - 1) / ranks
    gradients = floats(traffic.gradients, 2 * ring)
    statistics = floats(traffic.statistics, ring)
    directions = floats(traffic.directions, ring)
    statistics = statistics[: len(statistics) // ranks * ranks]
    of_each = tf.fill([ranks], len(statistics) // ranks)
    own = directions[: max(1, len(directions) // ranks)]
    operations: dict[str, Callable[[], Any]] = {
        "exchange gradients": lambda: hvd.allreduce(gradients, op=hvd.Sum, name="gradients"),
        "exchange statistics": lambda: hvd.alltoall(statistics, of_each, name="statistics")[0],
        "exchange directions": lambda: hvd.allgather(own, name="directions"),
    }
    return {
        name: float(np.median([seconds(operation, hvd) for _ in range(repeats)]))
        for name, operation in operations.items()
    }


def seconds(step: Callable[[], Any], hvd: Any) -> float:
    """Of a step that all ranks begin together."""
    hvd.allreduce(np.zeros(1, "float32"), name="together")
    start = time.perf_counter()
    np.asarray(step())
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
