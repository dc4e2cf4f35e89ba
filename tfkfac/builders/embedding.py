"""Embeddings."""

from __future__ import annotations

from typing import Any

import keras

from tfkfac.blocks import Block, EmbeddingBlock
from tfkfac.registry import register, require_plain_variables, require_trained


@register(keras.layers.Embedding)
def embedding(layer: Any, **options: Any) -> Block:
    """Token frequencies on the one side, a dense factor on the other."""
    require_plain_variables(layer)
    require_trained(layer, layer.embeddings)
    return EmbeddingBlock(layer, layer.embeddings, **options)
