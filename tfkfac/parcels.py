"""What is known of the tensors of a block before they are sent."""

from __future__ import annotations

from tfkfac.blocks import Block, CurvatureBlock
from tfkfac.distribution.packing import Parcel
from tfkfac.pooling import contribution_shapes


def statistics_parcels(block: CurvatureBlock) -> dict[str, Parcel]:
    """Name of a statistic → what is known of its sum."""
    return {
        name: Parcel(shape, name in block.triangles)
        for name, shape in contribution_shapes(block).items()
    }


def kept_parcels(block: CurvatureBlock) -> list[Parcel]:
    """What is known of the tensors that a block preconditions with."""
    pairs = zip(block.kept_shapes, block.kept_triangles, strict=True)
    return [Parcel(shape, symmetric) for shape, symmetric in pairs]


def gradient_parcels(block: Block) -> list[Parcel]:
    """What is known of the gradients of a block."""
    return [Parcel(tuple(variable.shape)) for variable in block.variables]
