"""The networks of `benchmarks.peers.problems` as modules of PyTorch, and their losses.

Layers are numbered as Keras does, and made in the same order, so that every one finds its weights.
Images are [batch, channels, height, width] here. Outputs are logits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.peers.serving import LayerNames

Tensor = torch.Tensor
Weights = Mapping[str, np.ndarray]
EPSILON = 1e-3
"""Added to variances, as Keras does."""


class Layers:
    """Makes layers with Keras' names and Keras' weights.

    Args:
        weights: ``layer/variable`` → values.
    """

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._names = LayerNames()

    def name(self, kind: str) -> str:
        """The name of the next layer of a kind."""
        return self._names.next(kind)

    def get(self, *path: str) -> nn.Parameter:
        """A weight."""
        return nn.Parameter(torch.tensor(self._weights["/".join(path)]))

    def dense(self, name: str | None = None, *, inputs: int | None = None) -> nn.Linear:
        """A dense layer; a kernel of more than two axes becomes a matrix.

        Args:
            name: Of the layer.
            inputs: Rows of the kernel, where not its first axis.
        """
        name = name or self.name("dense")
        kernel = self.get(name, "kernel").data
        kernel = kernel.reshape(inputs or len(kernel), -1)
        layer = nn.Linear(*kernel.shape)
        layer.weight.data = kernel.T.contiguous()
        layer.bias.data = self.get(name, "bias").data.reshape(-1)
        return layer

    def conv(self, strides: int = 1, *, bias: bool = True) -> nn.Module:
        """A convolution with "same" padding, of images whose sides the strides divide."""
        name = self.name("conv2d")
        kernel = self.get(name, "kernel").data.permute(3, 2, 0, 1).contiguous()
        outputs, inputs, size, _ = kernel.shape
        layer = nn.Conv2d(inputs, outputs, size, strides, bias=bias)
        layer.weight.data = kernel
        if bias:
            layer.bias.data = self.get(name, "bias").data
        missing = max(0, size - strides)
        before, after = missing // 2, missing - missing // 2
        return nn.Sequential(nn.ZeroPad2d((before, after, before, after)), layer)

    def normalised_conv(self, strides: int = 1) -> nn.Module:
        """Convolution and batch normalisation."""
        conv = self.conv(strides, bias=False)
        name = self.name("batch_normalization")
        layer = nn.BatchNorm2d(len(self.get(name, "gamma")), eps=EPSILON)
        layer.weight, layer.bias = self.get(name, "gamma"), self.get(name, "beta")
        return nn.Sequential(conv, layer)

    def normalisation(self) -> nn.Module:
        """Layer normalisation."""
        name = self.name("layer_normalization")
        layer = nn.LayerNorm(len(self.get(name, "gamma")), eps=EPSILON)
        layer.weight, layer.bias = self.get(name, "gamma"), self.get(name, "beta")
        return layer


class MeanOverImage(nn.Module):
    """[batch, channels]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, layers: Layers, strides: int) -> None:
        super().__init__()
        self.first, self.second = layers.normalised_conv(strides), layers.normalised_conv()
        self.shortcut = layers.normalised_conv(strides) if strides > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        inner = self.second(functional.relu(self.first(x)))
        return functional.relu(self.shortcut(x) + inner)


class Attention(nn.Module):
    """Causal attention to itself."""

    def __init__(self, layers: Layers) -> None:
        super().__init__()
        name = layers.name("multi_head_attention")
        self.heads = layers.get(name, "query", "kernel").shape[1]
        parts = [layers.dense(f"{name}/{part}") for part in ("query", "key", "value")]
        self.query, self.key, self.value = parts
        width = parts[0].out_features
        self.out = layers.dense(f"{name}/attention_output", inputs=width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Decoder(nn.Module):
    """A block of a transformer."""

    def __init__(self, layers: Layers) -> None:
        super().__init__()
        self.before, self.attention = layers.normalisation(), Attention(layers)
        self.between = layers.normalisation()
        self.down, self.up = layers.dense(), layers.dense()  # Keras' order of making them.

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.before(x))
        return x + self.down(functional.gelu(self.up(self.between(x))))


class Embedded(nn.Module):
    """Vectors of characters and of their positions."""

    def __init__(self, layers: Layers) -> None:
        super().__init__()
        table = layers.get("embedding", "embeddings")
        self.characters = nn.Embedding(*table.shape, _weight=table.data)
        self.positions = layers.get("position_embedding", "positions")

    def forward(self, x: Tensor) -> Tensor:
        return self.characters(x) + self.positions


def autoencoder(layers: Layers) -> nn.Module:
    """Eight dense layers; the fourth, the code, is linear."""
    parts: list[nn.Module] = []
    for number in range(8):
        parts += [layers.dense()] + ([] if number in (3, 7) else [nn.Tanh()])
    return nn.Sequential(*parts)


def convnet(layers: Layers) -> nn.Module:
    """Three convolutions, the mean over the image, and a dense layer."""
    parts: list[nn.Module] = []
    for strides in (1, 2, 2):
        parts += [layers.conv(strides), nn.ReLU()]
    return nn.Sequential(*parts, MeanOverImage(), layers.dense())


def resnet20(layers: Layers) -> nn.Module:
    """As `benchmarks.zoo.networks.resnet20`."""
    parts: list[nn.Module] = [layers.normalised_conv(), nn.ReLU()]
    for first in (1, 2, 2):
        parts += [Residual(layers, strides) for strides in (first, 1, 1)]
    return nn.Sequential(*parts, MeanOverImage(), layers.dense())


def transformer(layers: Layers) -> nn.Module:
    """As `benchmarks.zoo.networks.causal_transformer`."""
    parts = [Embedded(layers), *(Decoder(layers) for _ in range(2))]
    return nn.Sequential(*parts, layers.normalisation(), layers.dense())


NETWORKS: dict[str, Callable[[Layers], nn.Module]] = {
    "autoencoder": autoencoder,
    "convnet": convnet,
    "resnet20": resnet20,
    "transformer": transformer,
}


def loss_of(problem: str, logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy: summed over pixels, or the mean over classified units."""
    if problem == "autoencoder":
        total = functional.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
        return total / len(logits)
    return functional.cross_entropy(logits.flatten(0, -2), targets.flatten())
