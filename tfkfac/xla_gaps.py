"""What TensorFlow can differentiate twice, but XLA cannot compile."""

from __future__ import annotations

import warnings
from typing import Any

import keras

from tfkfac import keras_internals

_MAXIMUM_POOLING = (
    keras.layers.MaxPooling1D,
    keras.layers.MaxPooling2D,
    keras.layers.MaxPooling3D,
)


def of(model: Any) -> list[str]:
    """The layers whose Jacobian-vector products cannot be compiled, by name.

    The second derivative of maximum pooling (``MaxPoolGradGrad``) is known to XLA in single
    precision only. Layers of one's own that pool are not seen.
    """
    return [
        layer.name
        for layer in keras_internals.flatten_layers(model)
        if isinstance(layer, _MAXIMUM_POOLING) and layer.compute_dtype != "float32"
    ]


def warn(names: list[str]) -> None:
    """Says why ``jit_compile=True`` is not followed, and what would let it be."""
    warnings.warn(
        "KFAC trains without XLA here (jit_compile=False): it measures with second derivatives, "
        "and XLA has that of maximum pooling in float32 only. Give dtype='float32' to the layers "
        f"{', '.join(names)}, or numbers to KFAC: learning_rate=0.1, momentum=0.9, damping=1e-3.",
        stacklevel=2,
    )
