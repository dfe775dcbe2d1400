"""The section on the same study run again from weights that differ in their last digits."""

from __future__ import annotations

import pandas as pd

from clipbench.analysis import replicas
from clipbench.report import beside
from clipbench.report.evidence import Evidence
from clipbench.report.frames import headed
from clipbench.report.parts import Part, Section, Table, Text
from clipbench.report.words import gap_places
from clipbench.task import Task

TITLE = "Does it replicate?"
HOW = (
    "A replica is the same study, whose initial weights differ by 1e-7 of themselves: what another "
    "processor's rounding does, made on purpose. Runs near a cliff end otherwise then. What is "
    "said of a clip must not. Data, splits and seeds are the same, so that this shows what "
    "rounding does, and not what other data would."
)
HEAD = ["difference", "again", "verdict", "verdict again"]


def section(evidence: Evidence) -> Section:
    """Whether the answers hold for the replicas of the study that lie in its folder."""
    parts: list[Part] = []
    for number, gaps in sorted(evidence.replicas.items()):
        both = (
            replicas.beside(evidence.gaps, gaps)
            if isinstance(gaps, pd.DataFrame)
            else pd.DataFrame()
        )
        told = _told(number, both) if len(both) else _left_out(number, gaps)
        parts.append(Text(f"{HOW} " * (not parts) + told))
        for task in evidence.tasks if len(both) else ():
            if len(evidence.of(both, task)):
                parts += headed(evidence, task, [_table(evidence, task, number, both)])
    return Section("replicas", TITLE, parts)


def _left_out(number: int, gaps: pd.DataFrame | str) -> str:
    why = gaps if isinstance(gaps, str) else "it has no comparison that this study has"
    return f"Replica {number} is left out: {why}."


def _told(number: int, both: pd.DataFrame) -> str:
    return f"In replica {number}, {beside.told(both)}"


def _table(evidence: Evidence, task: Task, number: int, both: pd.DataFrame) -> Table:
    label = evidence.labels[task]
    caption = f"{label}: each comparison, and in replica {number}."
    places = gap_places(evidence.of(evidence.gaps, task))
    name = evidence.name("tables", "replicas", label)
    return beside.table(evidence, evidence.of(both, task), name, caption, places, HEAD)
