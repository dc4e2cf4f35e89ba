"""Names of Horovod's exchanges and its process sets, on one rank, with a Horovod that is none."""

from __future__ import annotations

from typing import Any

import pytest
import tensorflow as tf

from tfkfac.distribution.horovod import Ranks

COLUMNS = [(0, 2), (1, 3)]


class Pretended:
    """Rank 0 of four; notes the names of what it is asked to gather."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.sets: list[list[int]] = []

    class ProcessSet:
        def __init__(self, ranks: list[int]) -> None:
            self.ranks = ranks
            self.process_set_id = -1

    def size(self) -> int:
        return 4

    def rank(self) -> int:
        return 0

    def add_process_set(self, ranks: list[int]) -> Any:
        """As Horovod's: no second set of the same ranks."""
        if ranks in self.sets:
            raise ValueError("duplicate process set")
        self.sets.append(ranks)
        return self.ProcessSet(ranks)

    def allgather(self, tensor: tf.Tensor, name: str, **options: Any) -> tf.Tensor:
        del options
        self.names.append(name)
        return tf.concat([tensor, tensor], axis=0)


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Pretended:
    horovod = Pretended()
    numbers = staticmethod(lambda: {tuple(ranks): i for i, ranks in enumerate(horovod.sets)})
    monkeypatch.setattr(Ranks, "_numbers_of_process_sets", numbers)
    return horovod


@pytest.mark.parametrize("own", [[2, 0, 2, 0], [0, 3, 0, 3]])
def test_a_group_with_nothing_to_gather_counts_the_exchange_of_the_others(
    own: list[int], pretended: Pretended
) -> None:
    """The next exchange has the same name on all ranks, or all would wait for ever."""
    ranks = Ranks(pretended)
    ranks.form(COLUMNS)
    ranks.collect(tf.zeros([own[0]]), own, COLUMNS)
    ranks.collect(tf.zeros([1]), [1, 1, 1, 1], COLUMNS)
    assert pretended.names[-1] == "tfkfac.1"


def test_two_optimizers_have_their_process_sets_in_common(pretended: Pretended) -> None:
    Ranks(pretended).form(COLUMNS)
    Ranks(pretended).form(COLUMNS)
    assert pretended.sets == [[0, 2], [1, 3]]


def test_a_horovod_without_process_sets_says_what_to_do(pretended: Pretended) -> None:
    pretended.sets = [[0, 2]]
    Ranks._numbers_of_process_sets = staticmethod(dict)  # put back by the fixture
    with pytest.raises(ValueError, match=r'`placement`.*process_sets="dynamic".*duplicate'):
        Ranks(pretended).form(COLUMNS)
