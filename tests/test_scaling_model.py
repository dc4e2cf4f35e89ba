"""Predicted steps on many workers, against sums worked out by hand."""

from __future__ import annotations

import json
import pathlib

import keras
import pytest

from benchmarks.scaling_model import Machine, Network, main
from tfkfac.cost import WorkSchedule

MACHINE = Machine(flops=1e9, inverse_flops=1e8, inverse_latency=1e-5, bandwidth=1e6, latency=1e-3)
EVERY_STEP = WorkSchedule(1, 1)


@pytest.fixture(scope="module")
def network() -> Network:
    layers = [keras.layers.Dense(7, use_bias=False), keras.layers.Dense(7, use_bias=False)]
    return Network(keras.Sequential([keras.Input((7,)), *layers]), batch_size=16)


def test_one_worker_sends_nothing(network: Network) -> None:
    stages = network.step(1, "comm_opt", MACHINE, EVERY_STEP).stages
    assert all(value == 0 for stage, value in stages.items() if "sending" in stage)
    assert stages["passes"] == pytest.approx(5 * 2 * 16 * 7 * 7 / 1e9)  # no inputs' gradient: −1
    both = network.total.inverses / 1e8 + 4 * 7 * 1e-5
    assert stages["inverses"] == pytest.approx(both)


def test_two_workers_have_a_layer_each(network: Network) -> None:
    alone = network.step(1, "mem_opt", MACHINE, EVERY_STEP)
    step = network.step(2, "mem_opt", MACHINE, EVERY_STEP)
    stages = step.stages
    for stage in ("inverses", "preconditioning"):
        assert stages[stage] == pytest.approx(alone.stages[stage] / 2)
    assert step.kept == alone.kept / 2
    gradients = 2 * 49 * 4  # bytes; each worker sends ½·2 of them around the ring
    assert stages["sending gradients"] == pytest.approx(gradients / 1e6 + 2e-3)
    sums = (2 * 28 + 2) * 4  # triangles of A and G of the layer that the other worker owns; Σω, |T|
    assert stages["sending statistics"] == pytest.approx(sums / 1e6 + 1e-3)
    assert stages["sending inverses"] == 0
    assert stages["sending directions"] == pytest.approx(49 * 4 / 1e6 + 1e-3)


def test_a_schedule_spreads_what_it_does_seldom(network: Network) -> None:
    often = network.step(2, "comm_opt", MACHINE, EVERY_STEP)
    seldom = network.step(2, "comm_opt", MACHINE, WorkSchedule(10, 20))
    for stage in ("statistics", "sending statistics"):
        assert often.stages[stage] == pytest.approx(10 * seldom.stages[stage])
    for stage in ("inverses", "sending inverses"):
        assert often.stages[stage] == pytest.approx(20 * seldom.stages[stage])
    assert seldom.seconds < often.seconds


def test_trees_have_fewer_hops_than_rings() -> None:
    assert [Machine().hops(n) for n in (1, 2, 64)] == [0, 1, 63]
    assert [Machine(tree=True).hops(n) for n in (1, 2, 64)] == [0, 1, 6]


def test_the_command_writes_numbers_and_a_picture(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "scaling"
    arguments = ["--model", "MobileNet", "--workers", "1", "2", "--trade-off", "4", "--output"]
    main([*arguments, str(output)])
    report = json.loads(output.with_suffix(".json").read_text())
    assert [row["placement"] for row in report["predicted"][-3:]] == [1.0, 0.5, 0.25]
    assert output.with_suffix(".png").stat().st_size > 10_000
    assert "shortest step with" in capsys.readouterr().out
