"""MirroredStrategy: replicas that share a batch make the steps of one device that has it all."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from cases import CASES, train


def mirrored(replicas: int) -> tf.distribute.Strategy:
    """A strategy over logical devices; in one process every one needs collective keys of its own."""
    tf.distribute.MirroredStrategy._collective_key_base += 100_000
    return tf.distribute.MirroredStrategy([f"CPU:{index}" for index in range(replicas)])


@pytest.mark.parametrize("replicas", [2, 4])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("float64")
def test_as_on_one_device(name: str, replicas: int) -> None:
    alone, losses, _ = train(CASES[name])
    with mirrored(replicas).scope():
        together, of_all, optimizer = train(CASES[name])
    assert optimizer.counts()["updates"] >= 20
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-9)
    del losses, of_all
