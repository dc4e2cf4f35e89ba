"""Memory of a process; imports nothing, for processes without TensorFlow."""

from __future__ import annotations

import pathlib
import resource


def peak_megabytes() -> float:
    """Peak memory of this process so far.

    Linux' own count is of this program alone; ``getrusage`` would begin with what the parent held.
    """
    return _megabytes("VmHWM")


def megabytes() -> float:
    """Memory of this process now; where that is not told, the peak so far."""
    return _megabytes("VmRSS")


def _megabytes(name: str) -> float:
    status = pathlib.Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    line = next(line for line in status.read_text().splitlines() if line.startswith(name))
    return float(line.split()[1]) / 1024
