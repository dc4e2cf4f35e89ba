"""Embeddings."""

from __future__ import annotations

from typing import Any

import keras

from tfkfac.blocks import Block, DenseBlock, EmbeddingBlock, Use
from tfkfac.blocks.embedding import TiedEmbeddingBlock
from tfkfac.registry import (
    NotCoveredError,
    if_trained,
    register,
    require_plain_variables,
    require_trained,
)


@register(keras.layers.Embedding)
def embedding(layer: Any, **options: Any) -> Block:
    """Token frequencies on the one side, a dense factor on the other."""
    require_plain_variables(layer)
    require_trained(layer, layer.embeddings)
    return EmbeddingBlock(layer, layer.embeddings, **options)


def reversible_embedding(layer: Any, **options: Any) -> list[Block]:
    """Look-ups, and products with the same embeddings (or others) that make logits."""
    require_plain_variables(layer)
    if layer.logit_soft_cap is not None:
        raise NotCoveredError("logit_soft_cap")
    if layer.tie_weights:
        require_trained(layer, layer.embeddings)
        return [TiedEmbeddingBlock(layer, layer.embeddings, is_reverse=_is_reverse, **options)]
    blocks: list[Block] = []
    if if_trained(layer, layer.embeddings) is not None:
        blocks.append(_LookUps(layer, layer.embeddings, **options))
    if if_trained(layer, layer.reverse_embeddings) is not None:
        blocks.append(_Logits(layer, layer.reverse_embeddings, None, **options))
    if not blocks:
        raise NotCoveredError("its embeddings are frozen")
    return blocks


class _LookUps(EmbeddingBlock):
    """The embeddings of a layer whose logits have a matrix of their own."""

    def accepts(self, use: Use) -> bool:
        return not _is_reverse(use)


class _Logits(DenseBlock):
    """That matrix."""

    def accepts(self, use: Use) -> bool:
        return _is_reverse(use)


def _is_reverse(use: Use) -> bool:
    return bool(use.arguments.get("reverse", False))


if hasattr(keras.layers, "ReversibleEmbedding"):  # not in the oldest Keras
    register(keras.layers.ReversibleEmbedding)(reversible_embedding)
