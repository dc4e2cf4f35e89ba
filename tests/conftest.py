"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import random
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

from collections.abc import Iterator

import keras
import pytest
import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 4
)  # for MirroredStrategy


_STARTED = time.monotonic()


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--within``, for runs that must end in time."""
    told = "skip tests that would begin later than so many seconds after the start"
    parser.addoption("--within", type=float, metavar="SECONDS", help=told)
    told = "run the tests in an order that is drawn with this seed"
    parser.addoption("--shuffled", type=int, metavar="SEED", help=told)
    told = "run each Nth test only, from the Kth on: N such runs have all tests, each once"
    parser.addoption("--share", metavar="K/N", help=told)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Shuffles, so that a run that must end in time is not always the same head of the list.

    Then keeps a share, of what ``-m`` and ``-k`` left.
    """
    seed = config.getoption("--shuffled")
    if seed is not None:
        random.Random(seed).shuffle(items)
    share = config.getoption("--share")
    if share is not None:
        first, number = map(int, share.split("/"))
        kept = items[first - 1 :: number]
        del items[first - 1 :: number]
        config.hook.pytest_deselected(items=list(items))
        items[:] = kept


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips what would begin too late, and says so."""
    limit = item.config.getoption("--within")
    if limit is not None and time.monotonic() - _STARTED > limit:
        pytest.skip(f"no time left for {item.nodeid} (--within {limit:g})")


@pytest.fixture
def float64() -> Iterator[None]:
    """Keras in double precision, losses included, for claims that are exact."""
    before = keras.config.floatx()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx(before)
    keras.config.set_dtype_policy(before)


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    """Every test starts from the same random numbers."""
    keras.utils.set_random_seed(0)
