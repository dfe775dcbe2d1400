"""The section on where the numbers come from."""

from __future__ import annotations

from typing import Any

import pandas as pd

from clipbench.report.evidence import Evidence, flat
from clipbench.report.parts import Part, Section, Table, Text
from clipbench.schema import RULES


def section(evidence: Evidence) -> Section:
    """Where the numbers come from."""
    store, environments = (
        evidence.store,
        {key: flat(entry) for key, entry in evidence.environment.get("environments", {}).items()},
    )
    parts: list[Part] = [
        Text(
            f"`clipbench report results/{store.name}` drew this page from the folder's files "
            "alone, wherever they lie; the same files give the same bytes."
        )
    ]
    if evidence.environment.get("curves") == "report":
        parts.append(
            Text(
                "This copy of the store keeps the curves of report cells only; tables and heat "
                "maps need no others."
            )
        )
    if evidence.rules < RULES:
        parts.append(
            Text(
                f"**Rules {evidence.rules}.** Outcomes were judged by the training loss of the "
                f"last steps. Today's rules, {RULES}, look at what the model can do: an accurate "
                "model that is too sure of itself has learned. The next `clipbench run` judges by "
                "them, and trains every cell anew."
            )
        )
    if environments:
        parts.append(_environments(evidence, environments))
    versions = [
        f"{entry['name']} {entry['version']}"
        for kind in ("workloads", "optimizers")
        for entry in evidence.components.get(kind, {}).values()
    ]
    versions += [
        f"{name} {entry['version']}" for name, entry in evidence.components.get("clips", {}).items()
    ]
    if versions:
        parts.append(Text(f"Versions of the mathematics: {', '.join(sorted(set(versions)))}."))
    parts.append(Text(store.study, kind="code"))
    return Section("provenance", "Provenance", parts)


def _environments(evidence: Evidence, environments: dict[str, dict[str, Any]]) -> Table:
    used = evidence.cells["environment"].value_counts()
    fields = sorted({name for entry in environments.values() for name in entry})
    rows = [
        [
            key,
            f"{int(used.get(key, 0)):,}",
            *(str(environments[key].get(name, "")) for name in fields),
        ]
        for key in sorted(environments)
    ]
    frame = pd.DataFrame(
        [{"environment": key, **environments[key]} for key in sorted(environments)]
    )
    turned = [
        [name, *(row[index] for row in rows)]
        for index, name in enumerate(["environment", "cells", *fields])
    ]
    return Table(
        evidence.name("tables", "environments"),
        "Where the cells were made.",
        ["", *[""] * len(rows)],
        turned,
        frame,
        words=1 + len(rows),
    )
