"""The machine that cells are trained on: what is recorded of it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping
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
