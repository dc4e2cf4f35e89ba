"""Who keeps what of a block, and who does what with it (mathematics.md §7)."""

from __future__ import annotations

from collections.abc import Sequence

from tfkfac.blocks import CurvatureBlock, KroneckerBlock
from tfkfac.distribution.placement import Placement, grid_of, place


class Roles:
    """Who keeps the averages and the inverses of a block, and who preconditions with them.

    Args:
        blocks: All blocks with curvature.
        workers: W, the number of workers.
        placement: A value of ``KFAC(placement=...)``.
        alike: Whether all workers keep everything, as the replicas of a strategy do.

    Attributes:
        alike: As given.
        placement: The grid, and the owners of the blocks.
    """

    def __init__(
        self,
        blocks: Sequence[CurvatureBlock],
        workers: int,
        placement: str | float,
        *,
        alike: bool = False,
    ) -> None:
        self.alike = alike
        self._positions = {block.state_name: at for at, block in enumerate(blocks)}
        self.placement: Placement = place(
            grid_of(workers, placement),
            [float(block.state_size * block.bytes_each) for block in blocks],
            [block.refresh_cost for block in blocks],
        )

    @property
    def everyone(self) -> list[tuple[int, ...]]:
        """One group of all workers."""
        return [tuple(range(self.placement.grid.workers))]

    @property
    def columns(self) -> list[tuple[int, ...]]:
        """Groups within which inverses are handed on."""
        return self.everyone if self.alike else self.placement.grid.all_columns

    @property
    def rows(self) -> list[tuple[int, ...]]:
        """Groups within which preconditioned gradients are."""
        return self.everyone if self.alike else self.placement.grid.all_rows

    def position_of(self, block: CurvatureBlock) -> int:
        """Of a block among all with curvature, as they were when training began."""
        return self._positions[block.state_name]

    def owner_of(self, block: CurvatureBlock) -> int:
        """The worker that makes the inverse."""
        return self.placement.owners[self.position_of(block)]

    def all_keep_averages(self, block: CurvatureBlock) -> bool:
        """Whether not only the owner keeps the averages.

        So it is where workers have everything alike, where all measure in the eigenbases of the
        block (EKFAC), and of blocks without an inverse: these precondition with the averages.
        """
        if self.alike:
            return True
        if isinstance(block, KroneckerBlock):
            return block.inverse.takes_examples
        return self.placement.grid.rows > 1

    def all_keep_inverse(self, block: CurvatureBlock) -> bool:
        """Whether not only the gradient workers keep the inverse.

        So it is where all keep the averages, and of layers that look rows up: what is made of some
        rows of a gradient has no size that others could know.
        """
        looks_up = isinstance(block, KroneckerBlock) and block.looks_up
        one_column = self.placement.grid.columns == 1
        return one_column or looks_up or self.all_keep_averages(block)

    def all_precondition(self, block: CurvatureBlock) -> bool:
        """Whether nobody has to be told what others have made of the gradients."""
        looks_up = isinstance(block, KroneckerBlock) and block.looks_up
        if not self.alike or looks_up or not block.refresh_cost:
            return self.all_keep_inverse(block)
        return self.placement.grid.columns == 1

    def keeps_averages(self, block: CurvatureBlock, worker: int) -> bool:
        """Whether a worker keeps the averages."""
        return self.all_keep_averages(block) or worker == self.owner_of(block)

    def keeps_inverse(self, block: CurvatureBlock, worker: int) -> bool:
        """Whether a worker keeps the inverse."""
        grid = self.placement.grid
        in_column = grid.column_of(worker) == grid.column_of(self.owner_of(block))
        return in_column or self.all_keep_inverse(block)

    def preconditions(self, block: CurvatureBlock, worker: int) -> bool:
        """Whether a worker preconditions the gradients; the others of its row are told."""
        if self.all_precondition(block):
            return True
        if self.alike:
            return worker == self.owner_of(block)
        return self.keeps_inverse(block, worker)
