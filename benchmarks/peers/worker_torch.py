"""Trains with kfac-pytorch, or with PyTorch's SGD, as the parent asks (`serving`)."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from typing import Any

import numpy as np
import torch

from benchmarks.peers.networks_torch import NETWORKS, Layers, loss_of
from benchmarks.peers.serving import Archive, Trainer, serve


class TorchTrainer(Trainer):
    """A module, SGD, and, before it, what preconditions the gradients.

    kfac-pytorch has no momentum of its own: that of SGD comes after it, as its documentation asks
    for.
    """

    def __init__(
        self, problem: str, optimizer: str, options: Mapping[str, Any], archive: Archive
    ) -> None:
        self.versions = {"torch": metadata.version("torch")}
        self._problem = problem
        self._model = NETWORKS[problem](Layers(archive.weights)).train()
        self._preconditioner: Any = None
        kfac = optimizer == "kfac"
        if kfac:
            self._preconditioner = _preconditioner(self._model, options)
            (distribution,) = set(metadata.packages_distributions()["kfac"])
            self.versions["kfac-pytorch"] = metadata.version(distribution)
        self._optimizer = torch.optim.SGD(
            self._model.parameters(),
            options["learning_rate"],
            momentum=options.get("momentum", 0.9),
            nesterov=not kfac,
        )

    def place(self, inputs: np.ndarray, targets: np.ndarray) -> Any:
        """Tensors; channels come first, classes are 64-bit integers."""
        x, y = torch.from_numpy(inputs), torch.from_numpy(targets)
        x = x.permute(0, 3, 1, 2).contiguous() if x.ndim == 4 else x
        return (x if x.is_floating_point() else x.long(), y if y.is_floating_point() else y.long())

    def step(self, batch: Any) -> float:
        """Forwards, backwards, update."""
        inputs, targets = batch
        self._optimizer.zero_grad()
        loss = loss_of(self._problem, self._model(inputs), targets)
        loss.backward()
        if self._preconditioner is not None:
            self._preconditioner.step()
        self._optimizer.step()
        return loss.item()


def _preconditioner(model: torch.nn.Module, options: Mapping[str, Any]) -> Any:
    from kfac.preconditioner import KFACPreconditioner

    if options["automatic"]:
        raise NotImplementedError("kfac-pytorch finds no hyper-parameters by itself")
    return KFACPreconditioner(
        model,
        factor_update_steps=options["factor_update_every"],
        inv_update_steps=options["inverse_update_every"],
        factor_decay=options["factor_decay"],
        damping=options["damping"],
        lr=options["learning_rate"],
        kl_clip=lambda step: None,  # None itself is refused.
        compute_method="inverse",
    )


if __name__ == "__main__":
    serve(TorchTrainer, wake=lambda: torch.zeros(()) + 1.0)
