"""Curvature blocks, one file for each layer family.

A block turns what was recorded of its layers (inputs a, backpropagated g) into statistics, and a
gradient into a preconditioned one. It knows no Keras layer and no communication.
"""

from tfkfac.blocks.block import Block
from tfkfac.blocks.conv import ConvBlock
from tfkfac.blocks.curvature_block import CurvatureBlock
from tfkfac.blocks.dense import DenseBlock
from tfkfac.blocks.diagonal import DiagonalBlock
from tfkfac.blocks.einsum import EinsumDenseBlock
from tfkfac.blocks.embedding import EmbeddingBlock
from tfkfac.blocks.kronecker import KroneckerBlock
from tfkfac.blocks.plain import PlainGradient
from tfkfac.blocks.recurrent import RecurrentBlock
from tfkfac.blocks.scale_shift import ScaleShiftBlock
from tfkfac.blocks.use import Use

__all__ = [
    "Block",
    "ConvBlock",
    "CurvatureBlock",
    "DenseBlock",
    "DiagonalBlock",
    "EinsumDenseBlock",
    "EmbeddingBlock",
    "KroneckerBlock",
    "PlainGradient",
    "RecurrentBlock",
    "ScaleShiftBlock",
    "Use",
]
