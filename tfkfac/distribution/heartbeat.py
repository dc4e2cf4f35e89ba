"""Where each rank is, told beside the exchanges: those wait for late ranks, and say nothing.

The key-value store with which ``horovodrun`` has introduced the ranks to each other (Gloo) runs as
long as they do.
"""

from __future__ import annotations

import os
from typing import Any

_SCOPE = "tfkfac_heartbeat"


class Heartbeat:
    """What ranks tell each other of how far they are.

    Args:
        rank: This one.
        ranks: The number of all.
    """

    def __init__(self, rank: int, ranks: int) -> None:
        self._rank = rank
        self._ranks = ranks
        self._address = os.environ.get("HOROVOD_GLOO_RENDEZVOUS_ADDR", "")
        self._port = os.environ.get("HOROVOD_GLOO_RENDEZVOUS_PORT", "")

    @property
    def is_possible(self) -> bool:
        """Whether there is a store (not with MPI)."""
        return bool(self._address and self._port)

    def tell(self, value: Any) -> None:
        """Puts what this rank has to say in the place of what it said before.

        Args:
            value: Anything that can be pickled.
        """
        from horovod.runner.http.http_client import put_data_into_kvstore

        put_data_into_kvstore(self._address, self._port, _SCOPE, str(self._rank), value)

    def of_all(self) -> list[Any]:
        """What every rank said last, None of those that never spoke."""
        return [self._of(rank) for rank in range(self._ranks)]

    def _of(self, rank: int) -> Any:
        from horovod.runner.http.http_client import read_data_from_kvstore

        try:
            return read_data_from_kvstore(self._address, self._port, _SCOPE, str(rank))
        except RuntimeError:
            return None
