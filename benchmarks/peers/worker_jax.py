"""Trains with kfac-jax, or with optax' SGD, as the parent asks (`serving`)."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import kfac_jax
import numpy as np
import optax
from kfac_jax._src import patches_second_moment

from benchmarks.peers.networks_jax import flat, loss_of
from benchmarks.peers.serving import Archive, Trainer, serve


class JaxTrainer(Trainer):
    """Weights and the state of an optimizer."""

    def __init__(self, problem: str, archive: Archive) -> None:
        self.versions = {name: metadata.version(name) for name in ("jax", "kfac-jax")}
        self._loss_and_gradients = jax.value_and_grad(loss_of(problem))
        self._weights: Any = {
            name: flat(name, jnp.array(value)) for name, value in archive.weights.items()
        }
        self._state: Any = None
        self._compiling = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, seconds: float, **_: Any) -> None:
        """Is told by JAX of all that it measures."""
        if event.endswith("backend_compile_duration"):
            self._compiling += seconds

    def compiling(self) -> float:
        """As JAX tells: kfac-jax compiles a second function when it first adapts the damping."""
        return self._compiling

    def place(self, inputs: np.ndarray, targets: np.ndarray) -> Any:
        """Arrays of JAX."""
        return jax.block_until_ready((jnp.asarray(inputs), jnp.asarray(targets)))


class SgdTrainer(JaxTrainer):
    """SGD with Nesterov's momentum, one compiled function."""

    def __init__(self, problem: str, _: str, options: Mapping[str, Any], archive: Archive) -> None:
        super().__init__(problem, archive)
        self._optimizer = optax.sgd(options["learning_rate"], 0.9, nesterov=True)

        def update(weights: Any, state: Any, batch: Any) -> Any:
            loss, gradients = self._loss_and_gradients(weights, batch)
            change, state = self._optimizer.update(gradients, state)
            return optax.apply_updates(weights, change), state, loss

        self._update = jax.jit(update, donate_argnums=(0, 1))

    def step(self, batch: Any) -> float:
        """One call of the function."""
        if self._state is None:
            self._state = self._optimizer.init(self._weights)
        made = self._update(self._weights, self._state, batch)
        self._weights, self._state, loss = jax.block_until_ready(made)
        return float(loss)


class KfacTrainer(JaxTrainer):
    """kfac-jax' own optimizer."""

    def __init__(
        self, problem: str, optimizer: str, options: Mapping[str, Any], archive: Archive
    ) -> None:
        super().__init__(problem, archive)
        if optimizer == "kfac-im2col":
            patches_second_moment.patches_moments = moments_of_patches
        automatic = options["automatic"]
        self._given = {}
        if not automatic:
            names = ("learning_rate", "momentum", "damping")
            self._given = {name: jnp.array(options[name]) for name in names}
        self._optimizer = kfac_jax.Optimizer(
            self._loss_and_gradients,
            l2_reg=0.0,
            use_adaptive_learning_rate=automatic,
            use_adaptive_momentum=automatic,
            use_adaptive_damping=automatic,
            initial_damping=options.get("first_damping"),
            curvature_ema=options["factor_decay"],
            curvature_update_period=options["factor_update_every"],
            inverse_update_period=options["inverse_update_every"],
            num_burnin_steps=0,
        )
        self._random = jax.random.PRNGKey(0)
        self._made = 0

    def step(self, batch: Any) -> float:
        """One call of its `step`."""
        self._random, now = jax.random.split(self._random)
        if self._state is None:
            self._state = self._optimizer.init(self._weights, now, batch)
        made = self._optimizer.step(
            self._weights,
            self._state,
            now,
            batch=batch,
            global_step_int=self._made,
            **self._given,
        )
        self._weights, self._state, told = jax.block_until_ready(made)
        self._made += 1
        return float(told["loss"])


def moments_of_patches(
    inputs: Any,
    kernel_spatial_shape: Any,
    strides: Any,
    padding: Any,
    data_format: Any = None,
    dim_numbers: Any = None,
    precision: Any = None,
    weighting_array: Any = None,
) -> Any:
    """What kfac-jax' `patches_moments` returns, by one matrix product of all patches (im2col).

    Args:
        inputs: [batch, height, width, c].
        kernel_spatial_shape: (k, l).
        strides: Of the convolution.
        padding: Of the convolution.
        data_format: None.
        dim_numbers: Of the convolution.
        precision: Of the product.
        weighting_array: None.

    Returns:
        Sums over all patches, of their products [k, l, c, k, l, c] and of themselves [k, l, c].
    """
    if data_format is not None or weighting_array is not None or dim_numbers.lhs_spec[1] != 3:
        raise NotImplementedError("moments_of_patches: only plain convolutions of NHWC images")
    patches = jax.lax.conv_general_dilated_patches(
        inputs, kernel_spatial_shape, strides, padding, dimension_numbers=dim_numbers
    )
    k, m = kernel_spatial_shape
    c = inputs.shape[-1]
    rows = patches.reshape(-1, c * k * m)  # The channel comes first in a patch.
    products = jnp.matmul(rows.T, rows, precision=precision).reshape(c, k, m, c, k, m)
    return products.transpose(1, 2, 0, 4, 5, 3), rows.sum(0).reshape(c, k, m).transpose(1, 2, 0)


def begin(problem: str, optimizer: str, options: Mapping[str, Any], archive: Archive) -> Trainer:
    """A trainer for this optimizer."""
    kind = KfacTrainer if optimizer.startswith("kfac") else SgdTrainer
    return kind(problem, optimizer, options, archive)


if __name__ == "__main__":
    serve(begin, wake=lambda: jnp.zeros(()) + 1.0)
