"""Which block each layer of a model gets.

A new layer family takes one builder: a function from a layer to its block, under
``@register(LayerClass)``.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfkfac import keras_internals
from tfkfac.blocks import Block, Conv2DBlock, DenseBlock, KroneckerBlock, PlainGradient
from tfkfac.blocks.conv import Window
from tfkfac.cost import StepCost, block_costs, total
from tfkfac.summary import print_summary

Builder = Callable[..., Block]
"""``(layer, *, method) -> block``; raises `NotCoveredError` where the curvature would be wrong."""


class NotCoveredError(Exception):
    """Raised by a builder that has no correct block for a layer; says why."""


def register(layer_class: type) -> Callable[[Builder], Builder]:
    """Decorates the builder of the blocks of a layer class.

    Args:
        layer_class: A Keras layer class. A subclass that overrides `call` is not covered by the
            builder of its parent: its computation may be another one.
    """

    def decorate(builder: Builder) -> Builder:
        _BUILDERS[layer_class] = builder
        return builder

    return decorate


class LayerCollection:
    """The blocks of a model: every trainable variable is in exactly one.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> collection = tfkfac.LayerCollection.scan(model)
    >>> collection.coverage()
    1.0

    Args:
        model: The model, only for its name and size.
        blocks: The blocks.
        method: How inverses are kept.
    """

    def __init__(self, model: Any, blocks: Sequence[Block], method: str) -> None:
        self.blocks = list(blocks)
        self.method = method
        self._model_name = model.name

    @classmethod
    def scan(
        cls, model: Any, *, method: str = "cholesky", skip: Sequence[str] = ()
    ) -> LayerCollection:
        """Finds the block of every layer, nested to any depth.

        Args:
            model: A built Keras model.
            method: How inverses are kept: "cholesky" or "eigen".
            skip: Regular expressions; layers whose path one of them matches get no curvature.

        Raises:
            ValueError: The model has no weights yet, or a pattern matches no layer.
        """
        if not model.built and not model.trainable_variables:
            raise ValueError(
                f"Model {model.name!r} has no weights yet: call it on data, or "
                "model.build(input_shape), before it is scanned."
            )
        layers = keras_internals.flatten_layers(model)
        skipped = _matching(layers, skip)
        blocks: list[Block] = []
        reasons: dict[int, str] = {}
        for layer in layers:
            try:
                if id(layer) in skipped:
                    raise NotCoveredError("skipped by the user")
                blocks.append(_build(layer, layers, method))
            except NotCoveredError as why:
                reasons[id(layer)] = str(why)
        blocks = _without_conflicts(blocks, reasons)
        return cls(model, [*blocks, *_fallbacks(model, layers, blocks, reasons)], method)

    def __getitem__(self, layer_name: str) -> Block:
        """The block of the layer with this name or path."""
        for block in self.blocks:
            if layer_name in {name for layer in block.layers for name in (layer.name, layer.path)}:
                return block
        names = ", ".join(block.name for block in self.blocks)
        raise KeyError(f"No block has a layer named {layer_name!r}. There are: {names}.")

    def __iter__(self) -> Iterator[Block]:
        """The blocks, in the order of the layers."""
        return iter(self.blocks)

    def __len__(self) -> int:
        """The number of blocks."""
        return len(self.blocks)

    @property
    def kronecker_blocks(self) -> list[KroneckerBlock]:
        """The blocks with Kronecker factors."""
        return [block for block in self.blocks if isinstance(block, KroneckerBlock)]

    @property
    def fallbacks(self) -> list[PlainGradient]:
        """The blocks that follow the plain gradient."""
        return [block for block in self.blocks if isinstance(block, PlainGradient)]

    def coverage(self) -> float:
        """The share of trainable parameters under a Kronecker block (1 without parameters)."""
        total = sum(block.parameters for block in self.blocks)
        covered = sum(block.parameters for block in self.kronecker_blocks)
        return covered / total if total else 1.0

    def precondition(
        self, gradients: Sequence[tf.Tensor], variables: Sequence[Any]
    ) -> list[tf.Tensor]:
        """p = F̂⁻¹g, block by block, with the inverses that training uses.

        Args:
            gradients: One for each of `variables`.
            variables: The trainable variables; one that is missing has a gradient of zero.
        """
        given = {id(v): gradient for v, gradient in zip(variables, gradients, strict=True)}
        directions: dict[int, tf.Tensor] = {}
        for block in self.blocks:
            keys = [id(variable) for variable in block.variables]
            if any(key in given for key in keys):
                of_block = [
                    given[key] if key in given else tf.zeros(variable.shape, variable.dtype)
                    for key, variable in zip(keys, block.variables, strict=True)
                ]
                directions.update(zip(keys, block.precondition(of_block), strict=True))
        return [directions[id(variable)] for variable in variables]

    def cost(self, *, batch_size: int) -> StepCost:
        """The operations of a step, of the layers whose number of uses Keras knows.

        Args:
            batch_size: Examples in a batch.
        """
        return total(block_costs(self.blocks, self.method, batch_size).values())

    def factor_bytes(self) -> int:
        """Bytes of one copy of all factors."""
        return sum(block.factor_size * block.bytes_each for block in self.kronecker_blocks)

    def summary(
        self,
        *,
        batch_size: int = 128,
        factor_update_every: int = 1,
        inverse_update_every: int = 10,
        print_fn: Callable[[str], Any] | None = None,
    ) -> None:
        """Prints a table of the blocks, in the manner of ``model.summary()``.

        Args:
            batch_size: For the predicted cost of a step.
            factor_update_every: Likewise.
            inverse_update_every: Likewise.
            print_fn: Receives the text; prints to the terminal by default.
        """
        print_summary(
            self._model_name,
            self.blocks,
            coverage=self.coverage(),
            method=self.method,
            batch_size=batch_size,
            factor_update_every=factor_update_every,
            inverse_update_every=inverse_update_every,
            print_fn=print_fn,
        )

    def warn_of_fallbacks(self) -> None:
        """One warning that names all that trains without curvature; none if nothing does."""
        if not self.fallbacks:
            return
        names = ", ".join(f"{block.name} ({block.reason})" for block in self.fallbacks)
        warnings.warn(
            f"tfkfac keeps no curvature for {names}: trained by plain gradient steps. "
            "`optimizer.layer_collection.summary()` shows all.",
            stacklevel=2,
        )


_BUILDERS: dict[type, Builder] = {}


@register(keras.layers.Dense)
def _dense(layer: Any, *, method: str) -> Block:
    _require_plain_kernel(layer)
    return DenseBlock(layer, layer.kernel, _trainable_bias(layer), method=method)


@register(keras.layers.Conv2D)
def _conv2d(layer: Any, *, method: str) -> Block:
    _require_plain_kernel(layer)
    window = Window(
        size=tuple(layer.kernel_size),
        strides=tuple(layer.strides),
        dilation=tuple(layer.dilation_rate),
        padding=layer.padding,
        channels_first=layer.data_format == "channels_first",
    )
    return Conv2DBlock(
        layer,
        layer.kernel,
        _trainable_bias(layer),
        window=window,
        groups=layer.groups,
        method=method,
    )


def supported(layer: Any) -> bool:
    """Whether some builder is responsible for the layer (it may still refuse)."""
    return _registered_class(layer) is not None


def _build(layer: Any, layers: Sequence[Any], method: str) -> Block:
    """The block of one layer.

    Raises:
        NotCoveredError: There is no correct one.
    """
    registered = _registered_class(layer)
    if registered is None:
        raise NotCoveredError(type(layer).__name__)
    if type(layer).call is not registered.call:
        raise NotCoveredError(f"{type(layer).__name__} overrides {registered.__name__}.call")
    for other in layers:
        if isinstance(other, keras.layers.SpectralNormalization) and other.layer is layer:
            raise NotCoveredError("its kernel is reparameterised by SpectralNormalization")
    return _BUILDERS[registered](layer, method=method)


def _registered_class(layer: Any) -> Any:
    return next((base for base in type(layer).__mro__ if base in _BUILDERS), None)


def _require_plain_kernel(layer: Any) -> None:
    """Refuses layers whose kernel is not the trained variable itself."""
    if not layer.built:
        raise NotCoveredError("not built")
    if getattr(layer, "lora_enabled", False):
        raise NotCoveredError("LoRA")
    if layer.quantization_mode is not None:
        raise NotCoveredError(f"quantised to {layer.quantization_mode}")
    if not _trains(layer, layer.kernel):
        raise NotCoveredError("its kernel is frozen")


def _trainable_bias(layer: Any) -> Any:
    return layer.bias if layer.bias is not None and _trains(layer, layer.bias) else None


def _trains(layer: Any, variable: Any) -> bool:
    return any(variable is trained for trained in layer.trainable_variables)


def _matching(layers: Sequence[Any], patterns: Sequence[str]) -> set[int]:
    """ids of the layers whose path is matched by one of the patterns."""
    matched: set[int] = set()
    for pattern in patterns:
        found = {id(layer) for layer in layers if re.search(pattern, layer.path or layer.name)}
        if not found:
            paths = ", ".join(layer.path or layer.name for layer in layers)
            raise ValueError(
                f"Argument `skip`: pattern {pattern!r} matches no layer. The layers' paths are: "
                f"{paths}."
            )
        matched |= found
    return matched


def _without_conflicts(blocks: Sequence[Block], reasons: dict[int, str]) -> list[Block]:
    """Drops blocks that claim a variable together with another: it is used in two places."""
    owners: dict[int, list[Block]] = {}
    for block in blocks:
        for variable in block.variables:
            owners.setdefault(id(variable), []).append(block)
    shared = {id(block) for claims in owners.values() if len(claims) > 1 for block in claims}
    for block in blocks:
        if id(block) in shared:
            reasons[id(block.layers[0])] = "shares a variable with another layer"
    return [block for block in blocks if id(block) not in shared]


def _fallbacks(
    model: Any, layers: Sequence[Any], blocks: Sequence[Block], reasons: dict[int, str]
) -> list[Block]:
    """Plain gradients for every trainable variable that no block covers, a block a layer."""
    covered = {id(variable) for block in blocks for variable in block.variables}
    left = {id(v): v for v in model.trainable_variables if id(v) not in covered}
    owners = {id(v): model for v in left.values()}
    for layer in layers:  # parents come before their children: the innermost layer wins
        owners.update({id(v): layer for v in layer.trainable_variables if id(v) in left})
    grouped: dict[int, tuple[Any, list[Any]]] = {}
    for key, variable in left.items():
        grouped.setdefault(id(owners[key]), (owners[key], []))[1].append(variable)
    return [
        PlainGradient([layer], variables, reasons.get(id(layer), "its own variables"))
        for layer, variables in grouped.values()
    ]
