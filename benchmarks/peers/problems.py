"""The networks on which the peers are compared, and the file from which all of them begin."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from benchmarks import problems as costs
from benchmarks.zoo import problems as zoo
from benchmarks.zoo.data import Examples


@dataclasses.dataclass(frozen=True)
class Problem:
    """A problem of the zoo, with the hyper-parameters of those that have fixed ones.

    Attributes:
        name: For tables; the workers know their networks by it.
        training: Network, loss, data and batch size.
        rates: First-order optimizer → learning rate, near the best of the zoo's.
        fixed: Learning rate, momentum and damping of K-FAC, the same in all frameworks.
        first_damping: With which kfac-jax' automatic damping begins.
        convolutions: Whether there are any.
        only_keras: Whether the peers have nothing for it: none knows recurrent layers.
    """

    name: str
    training: zoo.Problem
    rates: Mapping[str, float]
    fixed: Mapping[str, float]
    first_damping: float = 1.0
    convolutions: bool = False
    only_keras: bool = False


def _convnet() -> zoo.Problem:
    """Three convolutions, as in `benchmarks.step_cost`, on the images of the zoo."""
    network = costs.PROBLEMS["convnet"].network
    return dataclasses.replace(
        zoo.PROBLEMS["cifar-resnet20"], name="convnet", network=lambda _: network()
    )


PROBLEMS = {
    problem.name: problem
    for problem in (
        Problem(
            "autoencoder",
            zoo.PROBLEMS["mnist-autoencoder"],
            {"SGD": 3e-3, "Adam": 1e-3, "AdamW": 1e-3, "Muon": 1e-2},
            {"learning_rate": 0.05, "momentum": 0.9, "damping": 10.0},
        ),
        Problem(
            "convnet",
            _convnet(),
            {"SGD": 1e-1, "Adam": 3e-3, "AdamW": 3e-3, "Muon": 1e-2},
            {"learning_rate": 0.01, "momentum": 0.9, "damping": 0.1},
            convolutions=True,
        ),
        Problem(
            "resnet20",
            zoo.PROBLEMS["cifar-resnet20"],
            {"SGD": 1e-2, "Adam": 1e-3, "AdamW": 3e-3, "Muon": 1e-2},
            {"learning_rate": 0.03, "momentum": 0.9, "damping": 0.1},
            convolutions=True,
        ),
        Problem(
            "transformer",
            zoo.PROBLEMS["gpt-ptb"],
            {"SGD": 1e-1, "Adam": 3e-3, "AdamW": 3e-3, "Muon": 1e-2},
            {"learning_rate": 0.01, "momentum": 0.9, "damping": 0.1},
        ),
        Problem(
            "lstm",
            zoo.PROBLEMS["ptb-lstm"],
            {"SGD": 1e-1, "Adam": 1e-3, "AdamW": 3e-4, "Muon": 1e-2},
            {"learning_rate": 0.01, "momentum": 0.9, "damping": 0.1},
            only_keras=True,
        ),
    )
}


def named_variables(model: keras.Model) -> dict[str, Any]:
    """``layer/variable`` → every trainable variable, e.g. ``dense_1/kernel``.

    Layers of one kind are numbered in the order in which they are made, if nothing was made before
    (`keras.utils.clear_session`): so the workers find their weights.
    """
    return {
        f"{layer.name}/{variable.path.split(f'{layer.name}/')[-1]}": variable
        for layer in model.layers
        for variable in layer.trainable_variables
    }


def write_archive(
    problem: Problem, examples: Examples, seed: int, updates: int, path: pathlib.Path
) -> None:
    """Writes what all frameworks begin with: data, the order of the batches, first weights.

    Args:
        problem: Whose network it is.
        examples: Its data.
        seed: Of weights and order.
        updates: So many batches, in passes over the data; later ones repeat them.
        path: The .npz file.
    """
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    weights = named_variables(problem.training.network(examples))
    shared = examples.targets is examples.inputs
    size, count = problem.training.batch_size, len(examples.inputs)
    np.savez(
        path,
        order=order_of_batches(count, size, updates, seed, streams=examples.streams),
        inputs=examples.inputs,
        classes=np.int64(examples.classes),
        **({} if shared else {"targets": examples.targets}),
        **{f"weight:{name}": variable.numpy() for name, variable in weights.items()},
    )


def order_of_batches(
    examples: int, size: int, updates: int, seed: int, *, streams: bool = False
) -> np.ndarray:
    """The numbers [updates, size] of the examples in each batch.

    Args:
        examples: How many there are.
        size: Of a batch.
        updates: How many batches.
        seed: Of the order, which is another one in every pass.
        streams: Whether examples stay as they are: each batch goes on where the last one ends.

    Raises:
        ValueError: There are fewer examples than a batch has.
    """
    in_a_pass = examples // size
    if not in_a_pass:
        raise ValueError(
            f"The data has {examples} examples, a batch of this problem {size}; use the whole data "
            "set."
        )
    random = np.random.default_rng(seed)
    passes = [
        (np.arange(examples) if streams else random.permutation(examples))[
            : in_a_pass * size
        ].reshape(in_a_pass, size)
        for _ in range(-(-updates // in_a_pass))
    ]
    return np.concatenate(passes)[:updates].astype("int32")
