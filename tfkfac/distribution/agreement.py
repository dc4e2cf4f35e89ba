"""What all workers must have alike, checked before it goes wrong."""

from __future__ import annotations

from typing import Any

from tfkfac.distribution.workers import Workers


def require_same(workers: Workers, what: str, value: Any, remedy: str) -> None:
    """Raises on all workers if one of them has something else than worker 0.

    Args:
        workers: All workers; they have to come here together.
        what: Of which the value is, in words.
        value: Something that can be sent and compared.
        remedy: What to do about it.

    Raises:
        ValueError: Naming the first worker that differs, and how.
    """
    values = workers.tell_all(value)
    for worker, other in enumerate(values):
        if other != values[0]:
            theirs, ours = _difference(other, values[0])
            raise ValueError(
                f"The workers disagree about the {what}: worker 0 has {ours}, worker {worker} has "
                f"{theirs}. {remedy}"
            )


def _difference(other: Any, first: Any) -> tuple[Any, Any]:
    """Two values, of lists the first entries that differ."""
    if isinstance(other, list) and isinstance(first, list):
        if len(other) != len(first):
            return f"{len(other)} of them", f"{len(first)} of them"
        return next((a, b) for a, b in zip(other, first, strict=True) if a != b)
    return other, first
