"""Curvature blocks, one file for each layer family.

A block turns what was recorded of its layers (inputs a, backpropagated g) into statistics, and a
gradient into a preconditioned one. It knows no Keras layer and no communication.
"""

from tfkfac.blocks.block import Block, Use
from tfkfac.blocks.conv import Conv2DBlock
from tfkfac.blocks.dense import DenseBlock
from tfkfac.blocks.kronecker import KroneckerBlock
from tfkfac.blocks.plain import PlainGradient

__all__ = ["Block", "Conv2DBlock", "DenseBlock", "KroneckerBlock", "PlainGradient", "Use"]
