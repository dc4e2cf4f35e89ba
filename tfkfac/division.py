"""Who does which part of the work on the blocks, and what they send one another.

The factors of a block are added up on the worker that owns it, which makes its inverse and hands it
to the gradient workers of its column; these precondition, and each hands the result to its row
(Osawa et al. 2018, §4; Pauloski et al. 2021, §3; mathematics.md §7).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfkfac import block_gradients
from tfkfac.blocks import Block, CurvatureBlock
from tfkfac.blocks.block import ALL, Kept
from tfkfac.distribution.packing import Parcel, pack, size_of, unpack
from tfkfac.distribution.workers import Workers
from tfkfac.parcels import gradient_parcels, kept_parcels, statistics_parcels
from tfkfac.roles import Roles

SumsOfBlocks = dict[str, dict[str, tf.Tensor]]
"""Name of a block's state → name of a statistic → sum over shares of a batch."""

COMMUNICATION_DTYPES = ("float16", "bfloat16")
"""The values of ``KFAC(communication_dtype=...)`` beside None."""


class Division:
    """The work on the blocks, as it is divided among the workers.

    Args:
        workers: Who there is.
        blocks: All blocks with curvature.
        placement: A value of ``KFAC(placement=...)``.
        communication_dtype: In which sums of statistics are sent; None for their own.

    Attributes:
        blocks: The blocks.
        roles: Who does what.
    """

    def __init__(
        self,
        workers: Workers,
        blocks: Sequence[CurvatureBlock],
        placement: str | float,
        communication_dtype: str | None = None,
    ) -> None:
        self.blocks = list(blocks)
        self._workers = workers
        self._communication_dtype = communication_dtype
        double = any(block.dtype == "float64" for block in blocks)
        self._dtype = "float64" if double else "float32"
        self.roles = Roles(blocks, workers.number, placement, alike=workers.keep_all_alike)
        for groups in (self.roles.columns, self.roles.rows):
            workers.form(groups)

    def kept_here(self, block: Block) -> Kept:
        """Which variables of a block there are on this worker."""
        if self._workers.keep_all_alike or not isinstance(block, CurvatureBlock):
            return ALL
        here = self._workers.here()
        return Kept(self.roles.keeps_averages(block, here), self.roles.keeps_inverse(block, here))

    # --- factors -----------------------------------------------------------------------------

    def add_up(
        self, contributions: Any, blocks: Sequence[CurvatureBlock], examples: tf.Tensor
    ) -> Any:
        """Adds up what shares of a batch contribute to factors, for those that keep the averages.

        Args:
            contributions: `SumsOfBlocks` of every worker.
            blocks: Of these blocks.
            examples: N, the examples of all workers.

        Returns:
            `SumsOfBlocks` of every worker, of the blocks whose averages it keeps.
        """
        number = self._workers.number
        if number == 1:
            return contributions
        shared = [block for block in blocks if self.roles.all_keep_averages(block)]
        owned = [
            [b for b in blocks if b not in shared and self.roles.owner_of(b) == worker]
            for worker in range(number)
        ]

        def sent(own: SumsOfBlocks) -> list[tf.Tensor]:
            return [self._packed(of_owner, own, examples) for of_owner in [*owned, shared]]

        *for_owners, for_all = self._workers.each(sent, contributions)
        totals = self._workers.each(dict)
        if shared:
            (sums,) = self._workers.sum([for_all])
            totals = self._workers.each(lambda s: self._unpacked(shared, s, examples), sums)
        if any(owned):
            sums = self._workers.to_owners(for_owners, [self._numbers(each) for each in owned])
            totals = self._workers.each(
                lambda t, s: t | self._unpacked(owned[self._workers.here()], s, examples),
                totals,
                sums,
            )
        return totals

    def _packed(
        self, blocks: Sequence[CurvatureBlock], sums: SumsOfBlocks, examples: tf.Tensor
    ) -> tf.Tensor:
        """Of all blocks in one vector; means instead of sums if they could overflow."""
        vector = _vector(
            [parcel for block in blocks for parcel in statistics_parcels(block).values()],
            [
                sums[block.state_name][name]
                for block in blocks
                for name in statistics_parcels(block)
            ],
            self._dtype,
        )
        if self._communication_dtype is None:
            return vector
        return tf.cast(vector / tf.cast(examples, vector.dtype), self._communication_dtype)

    def _unpacked(
        self, blocks: Sequence[CurvatureBlock], numbers: tf.Tensor, examples: tf.Tensor
    ) -> SumsOfBlocks:
        numbers = tf.cast(numbers, self._dtype)
        if self._communication_dtype is not None:
            numbers *= tf.cast(examples, numbers.dtype)
        names = [(block, name) for block in blocks for name in statistics_parcels(block)]
        values = unpack([statistics_parcels(block)[name] for block, name in names], numbers)
        sums: SumsOfBlocks = {block.state_name: {} for block in blocks}
        for (block, name), value in zip(names, values, strict=True):
            sums[block.state_name][name] = tf.cast(value, block.dtype)
        return sums

    @staticmethod
    def _numbers(blocks: Sequence[CurvatureBlock]) -> int:
        return sum(size_of(list(statistics_parcels(block).values())) for block in blocks)

    # --- inverses ----------------------------------------------------------------------------

    def refresh(self, blocks: Sequence[CurvatureBlock], dampings: Sequence[tf.Tensor]) -> None:
        """Makes the inverses of some blocks anew, each on its owner, and hands them on.

        Args:
            blocks: Blocks with an inverse.
            dampings: λ of each.
        """
        for everywhere, groups in ((True, self.roles.everyone), (False, self.roles.columns)):
            turn = [
                (block, damping)
                for block, damping in zip(blocks, dampings, strict=True)
                if self.roles.all_keep_inverse(block) == everywhere
            ]
            if turn:
                self._refresh(turn, groups)

    def _refresh(
        self, turn: Sequence[tuple[CurvatureBlock, tf.Tensor]], groups: Sequence[tuple[int, ...]]
    ) -> None:
        owned = [
            [(block, damping) for block, damping in turn if self.roles.owner_of(block) == worker]
            for worker in range(self._workers.number)
        ]
        parcels = [
            [parcel for block, _ in each for parcel in kept_parcels(block)] for each in owned
        ]
        sent = _Sent(self._workers, parcels, groups, self._dtype)

        def make() -> Any:
            own = owned[self._workers.here()]
            return sent.wrapped([made for block, damping in own for made in block.fresh(damping)])

        def keep(made: Sequence[Sequence[tf.Tensor]]) -> None:
            for of_worker, tensors in zip(owned, made, strict=True):
                values = iter(tensors)
                for block, _ in of_worker if tensors else ():
                    block.keep([next(values) for _ in kept_parcels(block)])

        self._workers.each(keep, sent.handed_on(self._workers.each(make)))

    # --- gradients ---------------------------------------------------------------------------

    def precondition(
        self,
        blocks: Sequence[Block],
        gradients: Any,
        variables: Sequence[Any],
        dampings: Sequence[tf.Tensor],
    ) -> Any:
        """p = F̂⁻¹g, of every worker.

        Args:
            blocks: All blocks of the model.
            gradients: g, of every worker.
            variables: The variables that have a gradient.
            dampings: λ of each block.
        """
        damping_of = {id(block): each for block, each in zip(blocks, dampings, strict=True)}
        blocks = block_gradients.with_gradients(blocks, variables)
        told = [
            block
            for block in blocks
            if isinstance(block, CurvatureBlock) and not self.roles.all_precondition(block)
        ]
        made_by = [
            [block for block in told if self.roles.preconditions(block, worker)]
            for worker in range(self._workers.number)
        ]
        parcels = [
            [parcel for block in each for parcel in gradient_parcels(block)] for each in made_by
        ]
        sent = _Sent(self._workers, parcels, self.roles.rows, self._dtype)

        def make(gradients: Sequence[Any]) -> list[Any]:
            """What all make by themselves, and what this worker makes for others."""
            of_blocks = block_gradients.take_apart(blocks, gradients, variables)
            mine = [
                block for block, _ in of_blocks if block not in told or block in made_by[here()]
            ]
            made = {
                id(block): block.direction(own, damping_of[id(block)])
                for block, own in of_blocks
                if block in mine
            }
            alone = [d for block, _ in of_blocks if block not in told for d in made[id(block)]]
            for_others = [d for block in made_by[here()] for d in made[id(block)]]
            return [alone, sent.wrapped(for_others)]

        def assemble(alone: Sequence[Any], told_of: Sequence[Sequence[tf.Tensor]]) -> list[Any]:
            directions: dict[int, list[Any]] = {}
            for of_worker, tensors in zip(made_by, told_of, strict=True):
                values = iter(tensors)
                for made in of_worker if tensors else ():
                    directions[id(made)] = [next(values) for _ in made.variables]
            values = iter(alone)
            for block in blocks:
                if block not in told:
                    directions[id(block)] = [next(values) for _ in block.variables]
            return block_gradients.put_together(blocks, directions, variables)

        here = self._workers.here
        alone, for_others = self._workers.each(make, gradients)
        return self._workers.each(assemble, alone, sent.handed_on(for_others))


class _Sent:
    """What every worker gives to the members of its group.

    Args:
        workers: Who there is.
        parcels: What is known of the tensors that each worker gives.
        groups: Every worker is in one.
        dtype: In which they are sent.
    """

    def __init__(
        self,
        workers: Workers,
        parcels: Sequence[Sequence[Parcel]],
        groups: Sequence[tuple[int, ...]],
        dtype: str,
    ) -> None:
        self._workers = workers
        self._parcels = parcels
        self._groups = groups
        self._dtype = dtype
        self._sizes = [size_of(each) for each in parcels]
        self._needless = all(len(group) == 1 for group in groups) or not any(self._sizes)

    def wrapped(self, tensors: list[tf.Tensor]) -> Any:
        """A worker's own tensors, as they are if there is nobody to give them to."""
        if self._needless:
            return tensors
        return _vector(self._parcels[self._workers.here()], tensors, self._dtype)

    def handed_on(self, wrapped: Any) -> Any:
        """For every worker a list of the tensors of each worker, empty for other groups.

        Args:
            wrapped: Of every worker.
        """
        here, number = self._workers.here, self._workers.number
        if self._needless:
            return self._workers.each(
                lambda own: [own if worker == here() else [] for worker in range(number)], wrapped
            )
        vectors = self._workers.collect(wrapped, self._sizes, self._groups)
        return self._workers.each(
            lambda own: [
                [] if vector is None else unpack(of_worker, vector)
                for of_worker, vector in zip(self._parcels, own, strict=True)
            ],
            vectors,
        )


def _vector(parcels: Sequence[Parcel], tensors: Sequence[tf.Tensor], dtype: str) -> tf.Tensor:
    """`pack`, in a dtype, of any number of tensors."""
    if not parcels:
        return tf.zeros([0], dtype)
    return pack(parcels, [tf.cast(tensor, dtype) for tensor in tensors])
