"""Which builder is responsible for a layer: a function from a layer to its block or blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras

from tfkfac import keras_internals
from tfkfac.blocks import Block

Builder = Callable[..., "Block | Sequence[Block]"]
"""``(layer, **options) -> block(s)``; raises `NotCoveredError` where curvature would be wrong."""


class NotCoveredError(Exception):
    """Raised by a builder that has no correct block for a layer; says why."""


def register(layer_class: type) -> Callable[[Builder], Builder]:
    """Decorates the builder of the blocks of a layer class.

    Example:

    ```python
    @tfkfac.register(MyDense)
    def my_dense(layer, **options):
        return tfkfac.blocks.DenseBlock(layer, layer.kernel, layer.bias, **options)
    ```

    Args:
        layer_class: A Keras layer class. A subclass that overrides `call` is not covered by the
            builder of its parent: its computation may be another one.

    Raises:
        ValueError: It is no Keras layer class.
    """
    if not (isinstance(layer_class, type) and issubclass(layer_class, keras.layers.Layer)):
        raise ValueError(
            f"Argument `layer_class` must be a class derived from keras.layers.Layer, got "
            f"{layer_class!r}; write @tfkfac.register(MyLayer)."
        )

    def decorate(builder: Builder) -> Builder:
        _BUILDERS[layer_class] = builder
        return builder

    return decorate


def supported(layer: Any) -> bool:
    """Whether some builder is responsible for the layer (it may still refuse)."""
    return _registered_class(layer) is not None


def build_blocks(layer: Any, layers: Iterable[Any], **options: Any) -> list[Block]:
    """The blocks of one layer.

    Args:
        layer: The layer.
        layers: All layers of the model.
        **options: Passed on to the blocks.

    Raises:
        NotCoveredError: There is no correct one.
    """
    registered = _registered_class(layer)
    if registered is None:
        raise NotCoveredError(_HINTS.get(type(layer), type(layer).__name__))
    overridden = _overridden(type(layer), registered)
    if overridden is not None and type(layer).__module__.startswith("keras."):
        raise NotCoveredError(type(layer).__name__)
    if overridden is not None:
        raise NotCoveredError(
            f"{type(layer).__name__} overrides {registered.__name__}.{overridden}"
        )
    if keras_internals.is_rematerialised(layer):
        raise NotCoveredError("rematerialised: its activations are hidden")
    for other in layers:
        if isinstance(other, keras.layers.SpectralNormalization) and other.layer is layer:
            raise NotCoveredError("its kernel is reparameterised by SpectralNormalization")
    found = _BUILDERS[registered](layer, **options)
    blocks = list(found) if isinstance(found, Sequence) else [found]
    if not all(isinstance(block, Block) for block in blocks):
        raise ValueError(
            f"The function registered for {registered.__name__} returned {found!r} for layer "
            f"{layer.name!r}, not a block or a list of blocks (tfkfac.blocks)."
        )
    return blocks


def require_plain_variables(layer: Any) -> None:
    """Refuses layers whose weights are not the trained variables themselves.

    Raises:
        NotCoveredError: Saying why.
    """
    if not layer.built:
        raise NotCoveredError("not built")
    if getattr(layer, "lora_enabled", False):
        raise NotCoveredError("LoRA")
    if getattr(layer, "quantization_mode", None) is not None:
        raise NotCoveredError(f"quantised to {layer.quantization_mode}")


def require_trained(layer: Any, variable: Any) -> None:
    """Refuses layers whose kernel is frozen.

    Raises:
        NotCoveredError: It is.
    """
    if not trains(layer, variable):
        raise NotCoveredError("its kernel is frozen")


def if_trained(layer: Any, variable: Any) -> Any:
    """The variable, or None if there is none or it is frozen."""
    return variable if variable is not None and trains(layer, variable) else None


def trains(layer: Any, variable: Any) -> bool:
    """Whether the variable is among those that the layer trains."""
    return any(variable is trained for trained in layer.trainable_variables)


_HARMLESS = {"build", "get_config", "from_config", "get_build_config", "build_from_config"}
"""What a subclass may override without computing something else."""


def _overridden(layer_class: type, registered: type) -> str | None:
    """A method or property of the registered class of which a subclass has its own, or None.

    Whatever it is (`call`, `convolution_op`, a `kernel` of its own): the computation may be
    another one than the block is for.
    """
    subclasses = layer_class.__mro__[: layer_class.__mro__.index(registered)]
    for name in (name for subclass in subclasses for name in vars(subclass)):
        allowed = name.startswith("__") or name in _HARMLESS or name.startswith("compute_output")
        if not allowed and hasattr(registered, name):
            return name
    return None


def _registered_class(layer: Any) -> Any:
    return next((base for base in type(layer).__mro__ if base in _BUILDERS), None)


_BUILDERS: dict[type, Builder] = {}

_HINTS = {
    cell: f"{cell.__name__} called by itself; in keras.layers.RNN it has blocks"
    for cell in (keras.layers.LSTMCell, keras.layers.GRUCell, keras.layers.SimpleRNNCell)
}
