"""What is asked for of workers, and what is refused."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfkfac
from tfkfac.callbacks.stop_if_late import Position, late_workers, out_of_data
from tfkfac.distribution.agreement import require_same
from tfkfac.distribution.choice import workers_of
from tfkfac.distribution.workers import Alone


def test_alone_by_default() -> None:
    assert isinstance(workers_of("auto", tf.distribute.get_strategy()), Alone)


@pytest.mark.parametrize(
    ("distribution", "words"),
    [("strategy", "not in the scope"), ("horovod", "Horovod is not initialised")],
)
def test_insisting_on_what_is_not_there(distribution: str, words: str) -> None:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile(tfkfac.KFAC(distribution=distribution), "mse")
    with pytest.raises(ValueError, match=words):
        model.fit(np.ones([4, 3]), np.ones([4, 2]), verbose=0)


def test_replicas_within_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tfkfac.distribution.choice.ranks_of_horovod", lambda: 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with pytest.raises(ValueError, match=r"2 Horovod ranks.*with 2 replicas\. Use one of both"):
        workers_of("auto", strategy)


def test_horovod_that_was_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOROVOD_SIZE", "2")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile(tfkfac.KFAC(), "mse")
    with pytest.raises(ValueError, match=r"one of 2 processes.*hvd\.init\(\)"):
        model.fit(np.ones([4, 3]), np.ones([4, 2]), verbose=0)
    model.compile(tfkfac.KFAC(distribution="single"), "mse")
    model.fit(np.ones([4, 3]), np.ones([4, 2]), verbose=0)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("distribution", "mpi"),
        ("placement", "everywhere"),
        ("placement", 0.0),
        ("placement", 1.5),
        ("placement", True),
        ("communication_dtype", "int8"),
    ],
)
def test_arguments_that_are_refused(argument: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"(?s)`{argument}`.*{value}"):
        tfkfac.KFAC(**{argument: value})


def test_the_configuration_tells_of_them() -> None:
    arguments = {"distribution": "single", "placement": 0.5, "communication_dtype": "float16"}
    config = tfkfac.KFAC(**arguments).get_config()
    assert arguments.items() <= config.items()
    assert tfkfac.KFAC.from_config(config).get_config() == config


def test_a_fraction_that_does_not_go_with_one_worker() -> None:
    """One worker is all of them, whatever the fraction is."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile(tfkfac.KFAC(placement=0.25), "mse")
    model.fit(np.ones([4, 3]), np.ones([4, 2]), verbose=0)


class _Three(Alone):
    """Pretends that there are three workers, which say different things."""

    def __init__(self, *values: Any) -> None:
        self.values = values

    def tell_all(self, value: Any) -> list[Any]:
        return [value, *self.values]


def test_workers_that_agree() -> None:
    require_same(_Three([1, 2], [1, 2]), "shapes", [1, 2], "Do something.")


def test_workers_that_disagree_are_named() -> None:
    with pytest.raises(ValueError, match=r"worker 0 has 3, worker 2 has 4\. Do something\."):
        require_same(_Three([1, 3], [1, 4]), "shapes", [1, 3], "Do something.")
    with pytest.raises(ValueError, match=r"worker 0 has 2 of them, worker 1 has 1 of them"):
        require_same(_Three([1]), "shapes", [1, 3], "Do something.")
    with pytest.raises(ValueError, match=r"about the steps: worker 0 has 7, worker 1 has None"):
        require_same(_Three(None), "steps", 7, "Do something.")


def test_a_rank_between_two_batches_is_late() -> None:
    before = [Position(4, 1, 0, 1), Position(4, 0, 0, 1), Position(4, 1, 0, 1)]
    now = [Position(4, 1, 0, 2), Position(4, 0, 0, 2), Position(4, 1, 0, 2)]
    assert late_workers(before, now) == [1]


def test_a_silent_rank_is_late() -> None:
    before = [Position(4, 1, 0, 1), Position(4, 1, 0, 1), None]
    now = [Position(4, 1, 0, 2), Position(4, 1, 0, 1), None]
    assert late_workers(before, now) == [1, 2]


def test_ranks_that_wait_together() -> None:
    before = [Position(4, 1, 0, 1), Position(4, 1, 0, 1)]
    assert late_workers(before, [Position(4, 1, 0, 2), Position(4, 1, 0, 3)]) == []


def test_a_worker_without_data_is_not_one_that_is_ahead() -> None:
    in_last_batch = Position(5, 1, 0, 9)
    assert out_of_data(in_last_batch, [in_last_batch, Position(6, 0, 1, 9)]) == []
    assert out_of_data(in_last_batch, [in_last_batch, Position(5, 0, 1, 9), None]) == [1]
    between_batches = Position(5, 0, 0, 9)
    assert out_of_data(between_batches, [Position(5, 0, 1, 9)]) == []


@pytest.mark.parametrize("seconds", [0, -1.0, "long", True])
def test_stop_if_late_refuses(seconds: Any) -> None:
    with pytest.raises(ValueError, match=r"`seconds` must be a number > 0"):
        tfkfac.callbacks.StopIfLate(seconds)


@pytest.mark.parametrize("save_freq", [0, "batch", 1.5, True])
def test_gather_state_refuses(save_freq: Any) -> None:
    with pytest.raises(ValueError, match=r"`save_freq` must be 'epoch' or an integer >= 1"):
        tfkfac.callbacks.GatherState(save_freq)


def test_callbacks_of_ranks_do_no_harm_to_one_process() -> None:
    callbacks = [
        tfkfac.callbacks.GatherState(1),
        tfkfac.callbacks.CheckWorkers(1),
        tfkfac.callbacks.StopIfLate(60),
    ]
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile(tfkfac.KFAC(), "mse")
    model.fit(np.ones([8, 3]), np.ones([8, 2]), batch_size=4, verbose=0, callbacks=callbacks)


def test_they_look_at_kfac_only() -> None:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match=r"GatherState looks at tfkfac\.KFAC"):
        model.fit(
            np.ones([8, 3]), np.ones([8, 2]), verbose=0, callbacks=[tfkfac.callbacks.GatherState()]
        )
