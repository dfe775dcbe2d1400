"""What a study commits itself to before its first report cell: margins, families, thresholds, seeds
and grade, each version with its hash.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from clipbench import tuning
from clipbench.cell import Cell
from clipbench.comparisons import families
from clipbench.protocol.plans import clipped
from clipbench.schema import RULES, Role
from clipbench.store import Store


def preregister(store: Store, cells: Sequence[Cell], protocol: Mapping[str, Any]) -> None:
    """Write down what the study commits itself to. A change is a version of its own, beside those
    before it, with the number of report cells that were stored by then.
    """
    said = _commitments(store.page("components"), cells, protocol)
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]
    versions = store.page("preregistered").get("versions", [])
    if versions and versions[-1]["hash"] == digest:
        return
    stored = store.read("cells")
    reported = int((stored["role"] == Role.REPORT).sum())
    version = {"hash": digest, "report_cells": reported, **said}
    store.write_page("preregistered", {"versions": [*versions, version]})


def _commitments(
    components: Mapping[str, Any], cells: Sequence[Cell], protocol: Mapping[str, Any]
) -> dict[str, Any]:
    workloads = components["workloads"]
    functions = [name for name, about in workloads.items() if about["reference_loss"] is None]
    declared = families(
        clipped(cells),
        functions,
        {cell.optimizer.name for cell in cells},
        protocol["schedule"],
    )
    return {
        "rules": RULES,
        "grade": protocol["grade"],
        "tuned_on": tuning.TUNED_ON,
        "percentile": protocol["percentile"],
        "seeds": protocol["seeds"],
        "margins": {name: about["margin"] for name, about in sorted(workloads.items())},
        "families": {
            family.name: {
                "level": family.level,
                "pairs": [f"{task.label}: {arm} against {of}" for task, arm, of in family.pairs],
            }
            for family in declared
        },
    }
