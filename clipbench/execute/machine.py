"""The machine that cells are trained on: what is recorded of it, and how many cores this process
may use.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

LIBRARIES = ("clipbench", "torch", "numpy", "scipy", "pandas", "pyarrow", "scikit-learn")


def environment(device: str) -> dict[str, Any]:
    """The machine and the libraries, as recorded beside every cell; it names no person and no path.

    :param device: ``cuda`` if any cell of the run is for it: the GPU is named then.
    """
    versions = {}
    for library in LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            versions[library] = "not installed"
    page: dict[str, Any] = {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "denormals": "flushed to zero",
        "libraries": versions,
    }
    if device == "cuda":
        page["cuda"] = card()
        page["denormals"] = "flushed to zero on the CPU, kept on CUDA"
    return page


def card() -> dict[str, Any]:
    """The CUDA device of this process, and how it counts."""
    about = torch.cuda.get_device_properties(torch.cuda.current_device())
    driver = getattr(torch._C, "_cuda_getDriverVersion", lambda: None)  # noqa: SLF001 - no other
    return {
        "device": about.name,
        "version": torch.version.cuda,
        "driver": driver(),
        "cudnn": torch.backends.cudnn.version(),
        "capability": f"{about.major}.{about.minor}",
        "memory_bytes": about.total_memory,
        "processors": about.multi_processor_count,
        "devices": torch.cuda.device_count(),
        "tf32": torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32,
    }


def key_of(environment: Mapping[str, Any]) -> str:
    """The key under which an environment is filed: 8 hex digits of its hash."""
    return hashlib.sha256(json.dumps(environment, sort_keys=True).encode()).hexdigest()[:8]


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )


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
