"""The page of components, which a run writes before its first cell."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from clipbench import feed, metrics, registry
from clipbench.cell import Cell
from clipbench.engines.record import about


def components(cells: Iterable[Cell]) -> dict[str, Any]:
    """What a report must know of the components, so that it needs neither them nor torch."""
    page: dict[str, dict[str, Any]] = {"workloads": {}, "optimizers": {}, "clips": {}}
    for cell in cells:
        if cell.problem not in page["workloads"]:
            workload = registry.build("workload", cell.workload.name, cell.workload.own)
            page["workloads"][cell.problem] = {
                **_component_entry(type(workload)),
                "settings": dict(cell.workload.settings),
                **about(workload),
                "parameters": sum(one.numel() for one in feed.model(workload, 0).parameters()),
                "other_metrics": {
                    metrics.name_of(one): metrics.direction(one)
                    for one in getattr(workload, "other_metrics", ())
                },
                "success": getattr(workload, "success", None),
                "deterministic": bool(getattr(workload, "deterministic", False)),
            }
        if cell.optimizer.label not in page["optimizers"]:
            rule = registry.find("optimizer", cell.optimizer.name)
            page["optimizers"][cell.optimizer.label] = _component_entry(rule)
        if cell.clip.label not in page["clips"]:
            rule = registry.find("clip", cell.clip.name)
            page["clips"][cell.clip.label] = {
                **_component_entry(rule),
                "threshold": cell.clip.threshold,
            }
    return page


def _component_entry(cls: Any) -> dict[str, Any]:
    return {"name": cls.name, "version": cls.version, "about": registry.about(cls)}
