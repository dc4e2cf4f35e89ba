"""What a measurement was made on: the machine's own rate, versions, commit."""

from __future__ import annotations

import functools
import os
import pathlib
import platform
import subprocess
import time
from importlib import metadata
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks.memory import peak_megabytes as peak_megabytes


def matmul_rate(size: int = 1000, repeats: int = 15) -> float:
    """Operations per second of the machine's matrix product (the best of several runs).

    Args:
        size: Rows and columns of the matrices.
        repeats: Runs.
    """
    left, right = tf.random.normal([size, size]), tf.random.normal([size, size])
    product = tf.function(lambda: tf.reduce_sum(tf.matmul(left, right)))
    product()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        product().numpy()
        seconds.append(time.perf_counter() - start)
    return 2.0 * size**3 / float(np.min(seconds))


class OtherWork:
    """What else the machine does while something is measured: other programs, other guests.

    By the kernel's own count, on Linux; elsewhere nothing is known of it.

    Args:
        counts: Where the kernel tells.
    """

    def __init__(self, counts: pathlib.Path = pathlib.Path("/proc/stat")) -> None:
        self._counts = counts
        self._before = self._now()

    def share(self) -> float | None:
        """Of all processors since the beginning, in [0, 1]; None if unknown."""
        if self._before is None:
            return None
        busy, own, whole = (b - a for a, b in zip(self._before, self._now(), strict=True))
        return max(0.0, busy - own) / max(whole, 1e-9)

    def _now(self) -> tuple[float, float, float] | None:
        """Seconds of all processors: at work, at work for this program, altogether."""
        if not self._counts.exists():
            return None
        ticks = [int(number) for number in self._counts.read_text().split("\n")[0].split()[1:9]]
        idle, second = ticks[3] + ticks[4], os.sysconf("SC_CLK_TCK")
        return (sum(ticks) - idle) / second, sum(os.times()[:4]), sum(ticks) / second


@functools.cache
def description() -> dict[str, Any]:
    """Machine, versions and commit, as they are when it is first asked for."""
    return {
        "processor": _processor(),
        "devices": [device.device_type for device in tf.config.list_physical_devices()],
        "threads": len(_cpu_set()),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("tensorflow", "keras")},
        "commit": _commit(),
    }


def _processor(information: pathlib.Path = pathlib.Path("/proc/cpuinfo")) -> str:
    """Its name and widest vectors, by which TensorFlow chooses kernels, where Linux tells them."""
    kind = platform.processor() or platform.machine()
    if not information.exists():
        return kind
    lines = (line.partition(":") for line in information.read_text().splitlines())
    told = {key.strip(): value.strip() for key, _, value in lines}
    flags = told.get("flags", "").split()
    vectors = [name for flag, name in (("avx2", "AVX2"), ("avx512f", "AVX-512")) if flag in flags]
    return ", ".join([told.get("model name", kind), *vectors[-1:]])


def _cpu_set() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else {0}


PROGRAM = ("benchmarks", "examples", "tfkfac")
"""What a measurement comes from: other changes do not make a commit another one."""


def _commit(root: pathlib.Path = pathlib.Path(__file__).parent.parent) -> str:
    try:
        commit = _git(root, "describe", "--always")
        return commit + ("-dirty" if _git(root, "status", "--porcelain", "--", *PROGRAM) else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(root: pathlib.Path, *arguments: str) -> str:
    found = subprocess.run(
        ["git", *arguments], cwd=root, capture_output=True, text=True, check=True
    )
    return found.stdout.strip()
