"""Where records wait for the update: one for each trace and replica, not for each thread."""

from __future__ import annotations

from typing import Any

from tfkfac.distribution.replicas import current_replica
from tfkfac.record import Record
from tfkfac.variable_reads import current_graph

_RECORDS = "_tfkfac_records"
"""Attribute of a graph that holds the records made in it: they live and die with the graph."""


class RecordStore:
    """The records of one recorder."""

    def __init__(self) -> None:
        self._eager: dict[tuple[int, int], Record] = {}

    def __len__(self) -> int:
        """The number of records that wait in eager mode."""
        return len(self._eager)

    def find(self) -> Record | None:
        """The record of the current trace and replica.

        The update may run in an inner graph of the trace (a branch, a merged replica), never in
        an outer one.
        """
        graph, key = current_graph(), self._key()
        while graph is not None:
            found = getattr(graph, _RECORDS, {}).get(key)
            if found is not None:
                return found
            graph = getattr(graph, "outer_graph", None)
        return self._eager.get(key)

    def keep(self, record: Record) -> None:
        """Puts a record where `find` finds it."""
        self._of_graph(record.graph)[self._key()] = record

    def forget(self, record: Record) -> None:
        """Drops the record of this replica in the graph of `record`."""
        self._of_graph(record.graph).pop(self._key(), None)

    def forget_eager(self) -> None:
        """Drops the record of this replica in eager mode."""
        self._eager.pop(self._key(), None)

    def clear(self) -> None:
        """Drops all records of eager mode; those of graphs go with the graphs."""
        self._eager.clear()

    def _of_graph(self, graph: Any) -> dict[tuple[int, int], Record]:
        if graph is None:
            return self._eager
        if not hasattr(graph, _RECORDS):
            setattr(graph, _RECORDS, {})
        return getattr(graph, _RECORDS)

    def _key(self) -> tuple[int, int]:
        return id(self), current_replica()
