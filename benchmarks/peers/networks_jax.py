"""The networks of `benchmarks.peers.problems` as functions of JAX, and their losses.

Layers are numbered as Keras does, and made in the same order, so that every one finds its weights.
Outputs are logits. Normalisation is by the batch's own statistics, as in training; running averages
are not kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import kfac_jax

from benchmarks.peers.serving import LayerNames

Array = jax.Array
EPSILON = 1e-3
"""Added to variances, as Keras does."""
HEADS = 4
"""Of the transformer's attention."""


class Layers:
    """Layers by Keras' names and with Keras' weights, for one pass through a network.

    Args:
        weights: ``layer/variable`` → values.
    """

    def __init__(self, weights: Mapping[str, Array]) -> None:
        self._weights = weights
        self._names = LayerNames()

    def name(self, kind: str) -> str:
        """The name of the next layer of a kind."""
        return self._names.next(kind)

    def get(self, *path: str) -> Array:
        """A weight."""
        return self._weights["/".join(path)]

    def dense(self, x: Array, name: str | None = None) -> Array:
        """x·K + b."""
        name = name or self.name("dense")
        return x @ self.get(name, "kernel") + self.get(name, "bias")

    def conv(self, x: Array, strides: int = 1, *, bias: bool = True) -> Array:
        """A convolution with "same" padding."""
        name = self.name("conv2d")
        y = jax.lax.conv_general_dilated(
            x,
            self.get(name, "kernel"),
            (strides, strides),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y + self.get(name, "bias") if bias else y

    def normalised(self, x: Array, kind: str, axes: tuple[int, ...]) -> Array:
        """Mean 0 and variance 1 along some axes, then scale and shift."""
        name = self.name(kind)
        x = x - x.mean(axes, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(axes, keepdims=True) + EPSILON)
        return x * self.get(name, "gamma") + self.get(name, "beta")

    def attention(self, x: Array) -> Array:
        """Causal attention of x to itself, from dense layers: these kfac-jax knows."""
        name = self.name("multi_head_attention")
        query, key, value = (
            self.dense(x, f"{name}/{part}").reshape(*x.shape[:2], HEADS, -1)
            for part in ("query", "key", "value")
        )
        scores = jnp.einsum("bqhd,bkhd->bhqk", query / query.shape[-1] ** 0.5, key)
        seen = jnp.tril(jnp.ones(scores.shape[-2:], bool))
        shares = jax.nn.softmax(jnp.where(seen, scores, -1e9))
        mixed = jnp.einsum("bhqk,bkhd->bqhd", shares, value)
        return self.dense(mixed.reshape(*x.shape[:2], -1), f"{name}/attention_output")


def flat(name: str, weight: Array) -> Array:
    """A weight of Keras as the layers above have it: heads and their widths are one dimension.

    Args:
        name: ``layer/variable``.
        weight: Its values.
    """
    if "multi_head_attention" not in name or name.endswith("attention_output/bias"):
        return weight
    if name.endswith("bias"):
        return weight.reshape(-1)
    into = name.endswith("attention_output/kernel")
    return weight.reshape((-1, weight.shape[-1]) if into else (weight.shape[0], -1))


def autoencoder(layers: Layers, x: Array) -> Array:
    """Eight dense layers; the fourth, the code, is linear."""
    for number in range(8):
        x = layers.dense(x)
        x = x if number in (3, 7) else jnp.tanh(x)
    return x


def convnet(layers: Layers, x: Array) -> Array:
    """Three convolutions, the mean over the image, and a dense layer."""
    for strides in (1, 2, 2):
        x = jax.nn.relu(layers.conv(x, strides))
    return layers.dense(x.mean((1, 2)))


def resnet20(layers: Layers, x: Array) -> Array:
    """As `benchmarks.zoo.networks.resnet20`."""

    def normalised_conv(x: Array, strides: int = 1) -> Array:
        return layers.normalised(
            layers.conv(x, strides, bias=False), "batch_normalization", (0, 1, 2)
        )

    x = jax.nn.relu(normalised_conv(x))
    for first in (1, 2, 2):
        for strides in (first, 1, 1):
            inner = jax.nn.relu(normalised_conv(x, strides))
            inner = normalised_conv(inner)
            x = normalised_conv(x, strides) if strides > 1 else x
            x = jax.nn.relu(x + inner)
    return layers.dense(x.mean((1, 2)))


def transformer(layers: Layers, x: Array) -> Array:
    """As `benchmarks.zoo.networks.causal_transformer`."""
    x = layers.get("embedding", "embeddings")[x]
    x = x + layers.get("position_embedding", "positions")
    for _ in range(2):
        x = x + layers.attention(layers.normalised(x, "layer_normalization", (-1,)))
        normal = layers.normalised(x, "layer_normalization", (-1,))
        down, up = layers.name("dense"), layers.name("dense")  # Keras' order of making them.
        hidden = jax.nn.gelu(layers.dense(normal, up), approximate=False)
        x = x + layers.dense(hidden, down)
    out = layers.name("dense")
    return layers.dense(layers.normalised(x, "layer_normalization", (-1,)), out)


NETWORKS: dict[str, Callable[[Layers, Array], Array]] = {
    "autoencoder": autoencoder,
    "convnet": convnet,
    "resnet20": resnet20,
    "transformer": transformer,
}


def loss_of(problem: str) -> Callable[[Mapping[str, Array], tuple[Array, Array]], Array]:
    """The loss as a function of weights and a batch; it is registered with kfac-jax."""

    def loss(weights: Mapping[str, Array], batch: tuple[Array, Array]) -> Array:
        inputs, targets = batch
        logits = NETWORKS[problem](Layers(weights), inputs)
        of = pixels_loss if problem == "autoencoder" else classes_loss
        return of(logits, targets)

    return loss


def pixels_loss(logits: Array, targets: Array) -> Array:
    """Cross-entropy, summed over the pixels."""
    kfac_jax.register_sigmoid_cross_entropy_loss(logits, targets)
    entropy = jnp.maximum(logits, 0) - logits * targets + jnp.log1p(jnp.exp(-jnp.abs(logits)))
    return entropy.sum(-1).mean()


def classes_loss(logits: Array, targets: Array) -> Array:
    """Cross-entropy, the mean over examples and, of a text, over its characters."""
    units: Any = 1 if logits.ndim == 2 else logits.shape[1]
    kfac_jax.register_softmax_cross_entropy_loss(logits, targets, weight=1 / units)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)
    return -chosen.mean()
