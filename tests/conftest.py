"""Fixtures shared by all tests."""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

from collections.abc import Iterator

import keras
import pytest
import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 4
)  # for MirroredStrategy


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
