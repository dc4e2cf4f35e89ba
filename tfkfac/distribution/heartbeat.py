"""Where each process is, told beside the exchanges: those wait for late ones, and say nothing."""

from __future__ import annotations

import abc
import base64
import os
import pickle
from typing import Any

import tensorflow as tf


class Heartbeat:
    """What processes tell each other of how far they are.

    Args:
        process: This one.
        processes: The number of all.
        store: Where they tell it.
    """

    def __init__(self, process: int, processes: int, store: Store) -> None:
        self._process = process
        self._processes = processes
        self._store = store

    def tell(self, value: Any) -> None:
        """Puts what this process has to say in the place of what it said before.

        Args:
            value: Anything that can be pickled.
        """
        self._store.put(str(self._process), value)

    def of_all(self) -> list[Any]:
        """What every process said last, None of those that never spoke."""
        return [self._store.get(str(process)) for process in range(self._processes)]


class Store(abc.ABC):
    """Keys and values that all processes see."""

    @abc.abstractmethod
    def put(self, key: str, value: Any) -> None:
        """Writes or overwrites."""

    @abc.abstractmethod
    def get(self, key: str) -> Any:
        """What was put there last, None if there is nothing."""


def store_of_all() -> Store | None:
    """The store that the processes have, or None (Horovod with MPI has none)."""
    address = os.environ.get("HOROVOD_GLOO_RENDEZVOUS_ADDR", "")
    port = os.environ.get("HOROVOD_GLOO_RENDEZVOUS_PORT", "")
    if address and port:
        return _GlooStore(address, port)
    from tensorflow.python.eager import context

    return _CoordinationStore() if context.context().coordination_service is not None else None


class _GlooStore(Store):
    """That with which ``horovodrun`` has introduced the ranks; it runs as long as they do."""

    _SCOPE = "tfkfac_heartbeat"

    def __init__(self, address: str, port: str) -> None:
        self._where = (address, port, self._SCOPE)

    def put(self, key: str, value: Any) -> None:
        from horovod.runner.http.http_client import put_data_into_kvstore

        put_data_into_kvstore(*self._where, key, value)

    def get(self, key: str) -> Any:
        from horovod.runner.http.http_client import read_data_from_kvstore

        try:
            return read_data_from_kvstore(*self._where, key)
        except RuntimeError:
            return None


class _CoordinationStore(Store):
    """TensorFlow's coordination service, which MultiWorkerMirroredStrategy starts.

    It cannot overwrite: a value is deleted first, and a reader waits a moment for the next one.
    """

    _PATIENCE = 2000
    """Milliseconds."""

    def put(self, key: str, value: Any) -> None:
        from tensorflow.python.eager import context

        text = base64.b64encode(pickle.dumps(value)).decode()
        try:
            context.context().delete_config_key_value(self._path(key))
            context.context().set_config_key_value(self._path(key), text)
        except tf.errors.OpError:  # It is gone, which ends the exchanges too.
            return

    def get(self, key: str) -> Any:
        from tensorflow.python.eager import context

        try:
            text = context.context().get_config_key_value(self._path(key), self._PATIENCE)
        except tf.errors.OpError:
            return None
        return pickle.loads(base64.b64decode(text))

    def _path(self, key: str) -> str:
        return f"tfkfac/heartbeat/{key}"
