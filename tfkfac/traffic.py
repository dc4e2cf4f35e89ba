"""What a placement makes each worker keep and send, predicted from shapes alone.

Bytes are those of ring algorithms: an all-reduce of n bytes sends ``2n(W − 1)/W`` from each worker,
a gathering all that the members have made but what the next one in the ring has, and what goes to
owners is sent once, to them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from tfkfac.blocks import Block, CurvatureBlock
from tfkfac.distribution.packing import size_of
from tfkfac.parcels import gradient_parcels, kept_parcels, statistics_parcels
from tfkfac.roles import Roles


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Bytes of each worker.

    Attributes:
        kept: Averages, inverses and eigenvectors that it keeps.
        gradients: Sent in a step, of gradients.
        directions: Sent in a step, of preconditioned gradients.
        statistics: Sent in an update of the factors.
        inverses: Sent while every inverse is made anew once.
    """

    kept: list[float]
    gradients: list[float]
    directions: list[float]
    statistics: list[float]
    inverses: list[float]

    def of_step(self, factor_update_every: float, inverse_update_every: float) -> list[float]:
        """Sent in a step, on average.

        Args:
            factor_update_every: Steps.
            inverse_update_every: Steps.
        """
        parts = zip(self.gradients, self.directions, self.statistics, self.inverses, strict=True)
        return [
            gradients
            + directions
            + statistics / factor_update_every
            + inverses / inverse_update_every
            for gradients, directions, statistics, inverses in parts
        ]


def predict(
    blocks: Sequence[Block], roles: Roles, *, statistics_bytes: int | None = None
) -> Traffic:
    """The traffic of a placement.

    Args:
        blocks: All blocks of the model.
        roles: Who does what.
        statistics_bytes: Of a number in statistics that are sent; None for that of the blocks.
    """
    grid = roles.placement.grid
    workers = range(grid.workers)
    curved = [block for block in blocks if isinstance(block, CurvatureBlock)]
    each = max((block.bytes_each for block in curved), default=4)
    ring = 2.0 * (grid.workers - 1) / grid.workers
    whole = ring * sum(block.parameters * block.bytes_each for block in blocks)

    shared = [block for block in curved if roles.all_keep_averages(block)]
    sizes = {id(b): size_of(list(statistics_parcels(b).values())) for b in curved}
    sent = statistics_bytes or each
    for_all = ring * sent * sum(sizes[id(block)] for block in shared)
    statistics = [
        for_all
        + sent
        * sum(sizes[id(b)] for b in curved if b not in shared and roles.owner_of(b) != worker)
        for worker in workers
    ]

    inverses = [0.0 for _ in workers]
    for everywhere, groups in ((True, roles.everyone), (False, roles.columns)):
        made = [
            each
            * sum(
                size_of(kept_parcels(block))
                for block in curved
                if roles.all_keep_inverse(block) == everywhere and roles.owner_of(block) == worker
            )
            for worker in workers
        ]
        inverses = _added(inverses, _gathered(made, groups, alike=roles.alike))

    told = [block for block in curved if not roles.all_precondition(block)]
    made = [
        each * sum(size_of(gradient_parcels(b)) for b in told if roles.preconditions(b, worker))
        for worker in workers
    ]
    return Traffic(
        [float(sum(_kept(block, roles, worker) for block in curved)) for worker in workers],
        [whole for _ in workers],
        _gathered(made, roles.rows, alike=roles.alike),
        statistics,
        inverses,
    )


def _kept(block: CurvatureBlock, roles: Roles, worker: int) -> int:
    """Bytes of a block's state on a worker."""
    inverse = sum(math.prod(shape) for shape in block.kept_shapes)
    numbers = (block.state_size - inverse) * roles.keeps_averages(block, worker)
    numbers += inverse * roles.keeps_inverse(block, worker)
    return numbers * block.bytes_each


def _gathered(
    made: Sequence[float], groups: Sequence[tuple[int, ...]], *, alike: bool
) -> list[float]:
    """Sent by each worker when the members of each group tell each other what they have made."""
    if alike:  # as sums of what is zero for all but one
        number = len(made)
        return [2.0 * (number - 1) / number * sum(made)] * number
    sent = [0.0] * len(made)
    for group in groups:
        total = sum(made[worker] for worker in group)
        for position, worker in enumerate(group):
            following = group[(position + 1) % len(group)]
            sent[worker] = total - made[following] if len(group) > 1 else 0.0
    return sent


def _added(left: Sequence[float], right: Sequence[float]) -> list[float]:
    return [a + b for a, b in zip(left, right, strict=True)]
