"""The section on where the numbers come from."""

from __future__ import annotations

from typing import Any

import pandas as pd

from clipbench.report.evidence import Evidence, flat
from clipbench.report.parts import Part, Section, Table, Text
from clipbench.report.words import DASH, listed
from clipbench.schema import RULES
from clipbench.store import remarks

OLDER = {
    1: "Outcomes were judged by the training loss of the last steps, and not, as today, by what "
    "the model can do: an accurate model that is too sure of itself has learned.",
    2: "Test was evaluated after the last step alone, so that no run can be graded by its best "
    "checkpoint.",
}


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
                f"**Rules {evidence.rules}.** {OLDER[evidence.rules]} The next `clipbench run` "
                f"judges by today's rules, {RULES}, and trains every cell anew."
            )
        )
    versions_said = evidence.store.page("preregistered").get("versions", [])
    if versions_said:
        parts.append(Text(_preregistered(versions_said)))
    parts += [
        Text(f"**Arms apart.** {sentence[0].upper()}{sentence[1:]}.")
        for sentence in remarks.apart(
            evidence.cells,
            evidence.environment.get("environments", {}),
            evidence.plan.get("parts", []),
        )
    ]
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


def _preregistered(versions: list[dict[str, Any]]) -> str:
    """What was fixed before the first report cell, and what was changed later."""
    first, *later = versions
    before = (
        "before the first report cell"
        if not first["report_cells"]
        else f"after {first['report_cells']:,} report cells"
    )
    told = (
        f"**Committed in advance.** Margins, families, thresholds, seeds and grade are in "
        f"`preregistered.json`, written {before}: version `{first['hash']}`."
    )
    for version in later:
        told += (
            f" Changed after {version['report_cells']:,} report cells: version `{version['hash']}`."
        )
    return told


def _environments(evidence: Evidence, environments: dict[str, dict[str, Any]]) -> Table:
    cells, blocks = (
        frame["environment"].value_counts() for frame in (evidence.cells, evidence.throughput)
    )
    keys = sorted({*environments, *cells.index, *blocks.index})
    counted = {
        key: {"cells": int(cells.get(key, 0)), "timed blocks": int(blocks.get(key, 0))}
        for key in keys
    }
    fields = sorted({name for entry in environments.values() for name in entry})
    rows = [
        [
            key,
            *(f"{count:,}" for count in counted[key].values()),
            *(str(environments.get(key, {}).get(name, DASH)) for name in fields),
        ]
        for key in keys
    ]
    frame = pd.DataFrame(
        [{"environment": key, **counted[key], **environments.get(key, {})} for key in keys]
    )
    turned = [
        [name, *(row[index] for row in rows)]
        for index, name in enumerate(["environment", "cells", "timed blocks", *fields])
    ]
    lost = [key for key in keys if key not in environments]
    caption = "Where the cells were made, and where clips and steps were timed."
    if lost:
        caption += f" The folder names {listed(lost)} and does not describe it."
    return Table(
        evidence.name("tables", "environments"),
        caption,
        ["", *[""] * len(rows)],
        turned,
        frame,
        words=1 + len(rows),
    )
