"""The tables that ``optimizer.layer_collection.placement_summary()`` prints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import rich.console
import rich.table

from tfkfac.blocks import Block, CurvatureBlock
from tfkfac.roles import Roles
from tfkfac.summary import in_bytes
from tfkfac.traffic import predict


def print_placement(
    model_name: str,
    blocks: Sequence[Block],
    roles: Roles,
    *,
    factor_update_every: float,
    inverse_update_every: float,
    statistics_bytes: int | None = None,
    print_fn: Callable[[str], Any] | None = None,
) -> None:
    """Prints who has what, and what every worker keeps and sends.

    Args:
        model_name: For the title.
        blocks: All blocks.
        roles: Who does what.
        factor_update_every: Steps, for the average of a step.
        inverse_update_every: Steps, likewise.
        statistics_bytes: Of a number of the statistics that are sent.
        print_fn: Receives the text; prints to the terminal by default.
    """
    grid = roles.placement.grid
    console = rich.console.Console(highlight=False, width=None if print_fn is None else 100)
    with console.capture() as text:
        console.print(_blocks_table(model_name, blocks, roles))
        traffic = predict(blocks, roles, statistics_bytes=statistics_bytes)
        table = rich.table.Table(title=f"{grid.workers} workers, {_grid_in_words(roles)}")
        table.add_column("Worker", justify="right")
        for heading in ("Keeps", "Gradients", "Directions", "Statistics", "Inverses", "A step"):
            table.add_column(heading, justify="right")
        steps = traffic.of_step(factor_update_every, inverse_update_every)
        for worker in range(grid.workers):
            values = (
                traffic.kept[worker],
                traffic.gradients[worker],
                traffic.directions[worker],
                traffic.statistics[worker],
                traffic.inverses[worker],
                steps[worker],
            )
            table.add_row(str(worker), *map(in_bytes, values))
        console.print(table)
        console.print(
            f" Sent by a worker: gradients and directions in every step, statistics every "
            f"{factor_update_every:g}, inverses every {inverse_update_every:g}; a step on average",
            soft_wrap=True,
        )
    (print_fn or print)(text.get())


def _blocks_table(model_name: str, blocks: Sequence[Block], roles: Roles) -> Any:
    table = rich.table.Table(title=f'Placement of model "{model_name}"')
    for heading in ("Layer (type)", "Block"):
        table.add_column(heading, overflow="fold")
    table.add_column("Memory", justify="right")
    for heading in ("Owner", "Preconditioned by"):
        table.add_column(heading, overflow="fold")
    workers = range(roles.placement.grid.workers)
    for block in blocks:
        layer = f"{block.name} ({type(block.layers[0]).__name__})"
        if not isinstance(block, CurvatureBlock):
            table.add_row(layer, block.label, "–", "–", "all")
            continue
        by = [worker for worker in workers if roles.preconditions(block, worker)]
        memory = in_bytes(block.state_size * block.bytes_each)
        everyone = len(by) == len(workers)
        table.add_row(
            layer,
            block.label,
            memory,
            str(roles.owner_of(block)),
            "all" if everyone else ", ".join(map(str, by)),
        )
    return table


def _grid_in_words(roles: Roles) -> str:
    grid = roles.placement.grid
    names = {1: "MEM-OPT", grid.workers: "COMM-OPT"}
    kind = names.get(grid.rows, "HYBRID")
    return f"{grid.rows} × {grid.columns} ({kind}, f = {grid.fraction:g})"
