"""Who is compared with whom."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from benchmarks.peers.problems import Problem

FACTORS_EVERY, INVERSES_EVERY, DECAY = 1, 5, 0.95
"""The equal schedule of all K-FACs: updates of factors and inverses, decay of the factors."""


@dataclasses.dataclass(frozen=True)
class Contender:
    """An optimizer of a framework.

    Attributes:
        name: For tables.
        peer: To which it belongs, one of `PEERS`, or "tfkfac".
        worker: The module that trains.
        optimizer: As the worker knows it.
        sgd: Name of the SGD of the same framework, whose step is the unit of its steps.
        against: Name of ours to compare it with, that of the same schedule; None of an SGD.
        environment: In which it runs, see `benchmarks.peers.environments`; None is this one.
        automatic: Whether it finds learning rate, momentum and damping by itself.
        only_convolutions: Whether it differs from another contender in convolutions only.
        quick: Whether it takes part where half a minute is to be enough.
    """

    name: str
    peer: str
    worker: str
    optimizer: str
    sgd: str
    against: str | None = "tfkfac default"
    environment: str | None = None
    automatic: bool = False
    only_convolutions: bool = False
    quick: bool = False


def _keras(name: str, **more: Any) -> Contender:
    """One of Keras' own, or of ours."""
    settings = {"peer": "keras", "optimizer": name, "sgd": "SGD"} | more
    return Contender(name, worker="benchmarks.peers.worker_keras", **settings)


def _jax(name: str, **more: Any) -> Contender:
    settings = {"peer": "kfac-jax", "sgd": "JAX SGD", "environment": "kfac-jax"} | more
    return Contender(name, worker="benchmarks.peers.worker_jax", **settings)


def _torch(name: str, **more: Any) -> Contender:
    settings = {"peer": "kfac-pytorch", "sgd": "PyTorch SGD"} | more
    return Contender(name, worker="benchmarks.peers.worker_torch", **settings)


FIXED: dict[str, Any] = {"against": "tfkfac fixed"}
AUTOMATIC: dict[str, Any] = {"against": "tfkfac auto", "automatic": True}
OURS: dict[str, Any] = {"peer": "tfkfac", "optimizer": "kfac", "against": None}
IM2COL: dict[str, Any] = {"optimizer": "kfac-im2col", "only_convolutions": True}

CONTENDERS = {
    contender.name: contender
    for contender in (
        _keras("tfkfac fixed", **OURS, quick=True),
        _keras("tfkfac auto", **OURS, automatic=True),
        _keras("tfkfac default", **OURS | {"optimizer": "kfac-default"}),
        _keras("SGD", against=None, quick=True),
        _keras("Adam"),
        _keras("AdamW"),
        _keras("Muon"),
        _jax("JAX SGD", optimizer="SGD", against=None, quick=True),
        _jax("kfac-jax fixed", optimizer="kfac", **FIXED, quick=True),
        _jax("kfac-jax auto", optimizer="kfac", **AUTOMATIC),
        _jax("kfac-jax (im2col) fixed", **IM2COL, **FIXED),
        _jax("kfac-jax (im2col) auto", **IM2COL, **AUTOMATIC),
        _torch("PyTorch SGD", optimizer="SGD", environment="pytorch", against=None, quick=True),
        _torch("kfac-pytorch fixed", optimizer="kfac", environment="kfac-pytorch", **FIXED),
    )
}

PEERS = tuple(dict.fromkeys(c.peer for c in CONTENDERS.values() if c.peer != "tfkfac"))
"""Against which ours can be compared."""


def contenders_of(problem: Problem, peers: Sequence[str], *, quick: bool = False) -> list[str]:
    """The names of those that take part, ours and Keras' SGD always.

    Args:
        problem: Without convolutions, what differs in these only is left out; all of another
            framework are, where the problem is Keras' alone.
        peers: Some of `PEERS`.
        quick: Leaves out all but one of ours and one of each peer, with its SGD.

    Raises:
        ValueError: There is no peer of a name.
    """
    unknown = [name for name in peers if name not in PEERS]
    if unknown:
        raise ValueError(
            f"Argument `peers` must be some of {', '.join(PEERS)}; got {', '.join(unknown)}."
        )
    return [
        name
        for name, contender in CONTENDERS.items()
        if (contender.peer in ("tfkfac", *peers) or name == "SGD")
        and (problem.convolutions or not contender.only_convolutions)
        and (contender.peer in ("tfkfac", "keras") or not problem.only_keras)
        and (contender.quick or not quick)
    ]


def options(contender: Contender, problem: Problem) -> dict[str, Any]:
    """What the worker is told about the optimizer, as JSON."""
    if contender.optimizer == "kfac-default":
        return {}
    if not contender.optimizer.startswith("kfac"):
        return {"learning_rate": problem.rates[contender.optimizer]}
    schedule = {
        "factor_update_every": FACTORS_EVERY,
        "inverse_update_every": INVERSES_EVERY,
        "factor_decay": DECAY,
    }
    if contender.automatic:
        return {**schedule, "automatic": True, "first_damping": problem.first_damping}
    return {**schedule, "automatic": False, **problem.fixed}
