"""Peak memory of a process; imports nothing, for processes without TensorFlow."""

from __future__ import annotations

import pathlib
import resource


def peak_megabytes() -> float:
    """Peak memory of this process so far.

    Linux' own count is of this program alone; ``getrusage`` would begin with what the parent held.
    """
    status = pathlib.Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return float(peak.split()[1]) / 1024
