"""What a placement is predicted to keep and to send."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import tfkfac
from tfkfac.roles import Roles
from tfkfac.traffic import predict


def collection() -> tfkfac.LayerCollection:
    layers = [keras.layers.Dense(width, name=f"wide{width}") for width in (30, 20, 10, 5)]
    return tfkfac.LayerCollection.scan(keras.Sequential([keras.Input((40,)), *layers]))


def bytes_of(blocks: list) -> list[int]:
    return [block.state_size * block.bytes_each for block in blocks]


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_mem_opt_keeps_everything_once(workers: int) -> None:
    blocks = collection().curvature_blocks
    kept = predict(blocks, Roles(blocks, workers, "mem_opt")).kept
    assert sum(kept) == sum(bytes_of(blocks))
    assert max(kept) <= sum(bytes_of(blocks)) / workers + max(bytes_of(blocks))


def test_comm_opt_keeps_inverses_everywhere_and_factors_once() -> None:
    blocks = collection().curvature_blocks
    traffic = predict(blocks, Roles(blocks, 4, "comm_opt"))
    inverses = sum(int(np.prod(shape)) * 4 for block in blocks for shape in block.kept_shapes)
    assert sum(traffic.kept) == sum(bytes_of(blocks)) + 3 * inverses
    assert traffic.directions == [0.0] * 4
    assert sum(traffic.inverses) > 0


def test_mem_opt_sends_directions_instead_of_inverses() -> None:
    blocks = collection().curvature_blocks
    traffic = predict(blocks, Roles(blocks, 4, "mem_opt"))
    parameters = sum(block.parameters for block in blocks)
    assert traffic.inverses == [0.0] * 4
    assert sum(traffic.directions) == 3 * 4 * parameters


def test_hybrid_is_between() -> None:
    blocks = collection().curvature_blocks
    of = {
        name: predict(blocks, Roles(blocks, 4, name)) for name in ("mem_opt", "hybrid", "comm_opt")
    }
    kept = [sum(of[name].kept) for name in ("mem_opt", "hybrid", "comm_opt")]
    directions = [sum(of[name].directions) for name in ("mem_opt", "hybrid", "comm_opt")]
    assert kept == sorted(kept) and len(set(kept)) == 3
    assert directions == sorted(directions, reverse=True) and len(set(directions)) == 3


def test_one_worker_sends_nothing() -> None:
    blocks = collection().curvature_blocks
    traffic = predict(blocks, Roles(blocks, 1, "comm_opt"))
    assert traffic.of_step(10, 20) == [0.0]


def test_statistics_travel_as_triangles() -> None:
    blocks = collection().curvature_blocks
    traffic = predict(blocks, Roles(blocks, 2, "mem_opt"))
    dims = [(41, 30), (31, 20), (21, 10), (11, 5)]
    numbers = sum(a * (a + 1) // 2 + g * (g + 1) // 2 + 2 for a, g in dims)  # |T| and the mass too
    assert sum(traffic.statistics) == 4 * numbers


def test_the_summary_tells_owners_and_bytes() -> None:
    lines: list[str] = []
    collection().placement_summary(workers=4, placement="mem_opt", print_fn=lines.append)
    text = "\n".join(lines)
    assert "1 × 4 (MEM-OPT, f = 0.25)" in text
    assert all(f"wide{width} (Dense)" in text for width in (30, 20, 10, 5))


def test_the_summary_of_a_scan_needs_a_number() -> None:
    with pytest.raises(ValueError, match=r"`workers` is needed"):
        collection().placement_summary()


def test_a_placement_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"nearest fractions are 1/4 = 0.25 and 2/4 = 0.5"):
        collection().placement_summary(workers=4, placement=0.3)
