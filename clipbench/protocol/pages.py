"""What a run writes down before its first cell: the machine, and what a report must know of the components."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from clipbench import metrics, registry
from clipbench.cell import Cell

LIBRARIES = ("clipbench", "torch", "numpy", "scipy", "pandas", "pyarrow", "scikit-learn")


def environment(cells: Iterable[Cell]) -> dict[str, Any]:
    """The machine and the libraries, as recorded beside every cell; nothing that names a person or a place."""
    versions = {}
    for library in LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            versions[library] = "not installed"
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "denormals": "flushed to zero",
        "libraries": versions,
    }
    if any(cell.device == "cuda" for cell in cells):
        found["cuda"] = {"device": torch.cuda.get_device_name(), "version": torch.version.cuda}
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


def components(cells: Iterable[Cell]) -> dict[str, Any]:
    """What a report must know of the components, so that it needs neither them nor torch."""
    page: dict[str, dict[str, Any]] = {"workloads": {}, "optimizers": {}, "clips": {}}
    for cell in cells:
        if cell.problem not in page["workloads"]:
            workload = registry.build("workload", cell.workload.name, cell.workload.own)
            page["workloads"][cell.problem] = {
                **_named(type(workload)),
                "settings": dict(cell.workload.settings),
                "metric": metrics.name_of(workload.metric),
                "higher_is_better": metrics.direction(workload.metric),
                "other_metrics": {metrics.name_of(one): metrics.direction(one) for one in getattr(workload, "other_metrics", ())},
                "target": getattr(workload, "target", None),
                "reference_loss": workload.reference_loss,
                "optimum": getattr(workload, "optimum", None),
                "unbounded": bool(getattr(workload, "unbounded", False)),
                "success": getattr(workload, "success", None),
                "deterministic": bool(getattr(workload, "deterministic", False)),
            }
        page["optimizers"].setdefault(cell.optimizer.label, _named(registry.find("optimizer", cell.optimizer.name)))
        page["clips"].setdefault(
            cell.clip.label, _named(registry.find("clip", cell.clip.name)) | {"threshold": cell.clip.threshold}
        )
    return page


def _named(cls: Any) -> dict[str, Any]:
    return {"name": cls.name, "version": cls.version, "about": registry.about(cls)}
