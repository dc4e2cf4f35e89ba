"""The table that ``optimizer.layer_collection.summary()`` prints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import rich.console
import rich.table

from tfkfac import cost
from tfkfac.blocks import Block, KroneckerBlock


def print_summary(
    model_name: str,
    blocks: Sequence[Block],
    *,
    coverage: float,
    batch_size: int,
    schedule: cost.WorkSchedule,
    print_fn: Callable[[str], Any] | None = None,
) -> None:
    """Prints a table of blocks, totals, and what falls back.

    Args:
        model_name: For the title.
        blocks: The blocks.
        coverage: Share of the parameters under a Kronecker block.
        batch_size: For the predicted cost.
        schedule: Likewise.
        print_fn: Receives the text; prints to the terminal by default.
    """
    costs = cost.block_costs(blocks, batch_size)
    table = rich.table.Table(title=f'KFAC blocks of model "{model_name}"', show_lines=False)
    for heading in ("Layer (type)", "Block", "Factors"):
        table.add_column(heading, overflow="fold")
    for heading in ("Param #", "Memory", "Step / SGD"):
        table.add_column(heading, justify="right")
    parts = _parts(blocks)
    for block in blocks:
        table.add_row(*_row(parts[id(block)], block, costs.get(id(block)), schedule))
    console = rich.console.Console(highlight=False, width=None if print_fn is None else 100)
    with console.capture() as text:
        console.print(table)
        for line in _totals(blocks, parts, costs, coverage, batch_size, schedule):
            console.print(line, soft_wrap=True)
    (print_fn or print)(text.get())


def _parts(blocks: Sequence[Block]) -> dict[int, str]:
    """id of a block → which part of its layer it is, where the layer has several blocks."""
    of_layer: dict[int, list[Block]] = {}
    for block in blocks:
        of_layer.setdefault(id(block.layers[0]), []).append(block)
    parts = {id(block): "" for block in blocks}
    for together in of_layer.values():
        several_cells = len({id(block.layers[-1]) for block in together}) > 1
        for block in together if len(together) > 1 else ():
            path = str(block.variables[0].path).split("/")
            parts[id(block)] = " " + "/".join(path[-2 if several_cells else -1 :])
    return parts


def _row(
    part: str, block: Block, block_cost: cost.StepCost | None, schedule: cost.WorkSchedule
) -> tuple[str, ...]:
    shapes = ", ".join(
        f"{key} {'×'.join(map(str, shape))}{' (diagonal)' if len(shape) == 1 else ''}"
        for key, shape in block.factor_shapes.items()
    )
    return (
        f"{block.name} ({type(block.layers[0]).__name__}){part}",
        block.label,
        block.reason or shapes,
        f"{block.parameters:,}",
        in_bytes(_memory(block)),
        _ratio(block_cost, schedule),
    )


def _totals(
    blocks: Sequence[Block],
    parts: dict[int, str],
    costs: dict[int, cost.StepCost],
    coverage: float,
    batch_size: int,
    schedule: cost.WorkSchedule,
) -> list[str]:
    parameters = sum(block.parameters for block in blocks)
    memory = sum(_memory(block) for block in blocks)
    ratio = _ratio(cost.total(costs.values()), schedule)
    unknown = any(isinstance(b, KroneckerBlock) and id(b) not in costs for b in blocks)
    without = ", without what has a –" if unknown else ""
    fallbacks = [block for block in blocks if block.reason]
    lines = [
        f" Trainable params: {parameters:,}, {100 * coverage:.1f}% under a Kronecker block",
        f" Memory of averages and inverses: {in_bytes(memory)}",
        f" Predicted step: {ratio} of an SGD step (operations; batch {batch_size}, factors every "
        f"{schedule.factor_update_every}, inverses every {schedule.inverse_update_every}, learning "
        f"rate {'automatic' if schedule.tangents else 'fixed'}){without}",
    ]
    cut = [
        f"{b.name}{parts[id(b)]} ({', '.join(b.cut_to_diagonal)})"
        for b in blocks
        if b.cut_to_diagonal
    ]
    if cut:
        lines.append(f" Larger than max_factor_size, only the diagonal is kept: {', '.join(cut)}")
    together = [f"{b.name}{parts[id(b)]}" for b in blocks if b.without_examples]
    if together:
        lines.append(f' Examples are not told apart, "eigen" for "ekfac": {", ".join(together)}')
    if fallbacks:
        fallen = ", ".join(f"{b.name} ({b.reason}: {b.label})" for b in fallbacks)
        lines.append(f" Without Kronecker structure: {fallen}")
    return lines


def _memory(block: Block) -> int:
    return block.state_size * block.bytes_each


def _ratio(block_cost: cost.StepCost | None, schedule: cost.WorkSchedule) -> str:
    if block_cost is None or not block_cost.sgd:
        return "–"
    return f"{block_cost.kfac(schedule) / block_cost.sgd:.2f}×"


def in_bytes(count: float) -> str:
    """A number of bytes in words."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1024 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1024
    raise AssertionError
