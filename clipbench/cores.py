"""How many cores this process may use. It must not know what for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def cores() -> int:
    """The cores that this process may use: the least of what the machine has, affinity, cgroup
    and Slurm allow; at least 1.
    """
    return max(1, min(_core_limits()))


def _core_limits() -> Iterator[int]:
    yield os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        yield len(os.sched_getaffinity(0))
    # cgroup 2: "200000 100000" is two cores, "max 100000" no limit
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        yield int(quota) // int(period)
    with suppress(OSError, ValueError):  # cgroup 1: -1 is no limit
        folder = Path("/sys/fs/cgroup/cpu")
        quota, period = (
            (folder / f"cpu.cfs_{word}_us").read_text(encoding="ascii")
            for word in ("quota", "period")
        )
        if int(quota) > 0:
            yield int(quota) // int(period)
    with suppress(KeyError, ValueError):
        yield int(os.environ["SLURM_CPUS_PER_TASK"])
