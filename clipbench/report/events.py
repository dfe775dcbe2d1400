"""How cells ended, and the events on the way: a part of the section on divergence."""

from __future__ import annotations

import pandas as pd

from clipbench.analysis.events import event_counts, events
from clipbench.figures.style import setting
from clipbench.report.evidence import Evidence
from clipbench.report.frames import LISTED
from clipbench.report.parts import Part, Table, Text
from clipbench.report.words import plural, short
from clipbench.schema import Kind, Outcome
from clipbench.task import Task


def subsection(evidence: Evidence) -> list[Part]:
    """How cells ended, and the events on the way; for the section on divergence."""
    recorded = events(evidence.events, evidence.cells)
    counted = event_counts(recorded, evidence.cells)
    parts: list[Part] = [
        Text(
            "Cells of both phases, by how they ended, and how many of them met each kind of "
            "event at least once. A diverged cell is never dropped, filled in or run again."
        )
    ]
    parts.append(_outcomes(evidence, counted))
    if recorded.empty:
        parts.append(Text("No event was recorded."))
        return parts
    parts.append(_events(evidence, recorded))
    return parts


def _outcomes(evidence: Evidence, counted: pd.DataFrame) -> Table:
    kinds = [kind for kind in Kind if counted[kind].sum()]
    rows = [
        [
            evidence.labels[Task.of(row)],
            row["arm"],
            str(row["cells"]),
            *(str(row[name]) for name in (*Outcome, "failed", *kinds)),
        ]
        for row in counted.to_dict("records")
    ]
    head = [
        "workload",
        "arm",
        "cells",
        *Outcome,
        "failed",
        *(kind.replace("_", " ") for kind in kinds),
    ]
    return Table(
        evidence.name("tables", "outcomes"),
        "How the cells ended.",
        head,
        rows,
        counted,
        words=2,
    )


def _events(evidence: Evidence, recorded: pd.DataFrame) -> Table:
    rows = [
        [
            row["kind"].replace("_", " "),
            evidence.labels[Task.of(row)],
            f"{row['arm']}, {setting(row)}",
            f"{row['role']} {row['seed']}",
            str(row["step"]),
            short(row["value"]),
            str(row["detail"] or ""),
            str(row["outcome"] or "failed"),
            row["cell"],
        ]
        for row in recorded.head(LISTED).to_dict("records")
    ]
    head = [
        "event",
        "workload",
        "arm and setting",
        "seed",
        "step",
        "value",
        "rule",
        "cell ended",
        "cell",
    ]
    caption = (
        f"The first {min(LISTED, len(recorded))} of {plural(len(recorded), 'event')}, worst "
        f"kinds first; the CSV holds all."
    )
    return Table(evidence.name("tables", "events"), caption, head, rows, recorded, words=9)
