"""The section on the same study run again from weights that differ in their last digits."""

from __future__ import annotations

import pandas as pd

from clipbench.analysis.replicas import beside
from clipbench.report.evidence import Evidence
from clipbench.report.frames import headed
from clipbench.report.parts import Part, Section, Table, Text
from clipbench.report.words import fixed, gap_places, signed
from clipbench.schema import Verdict
from clipbench.task import Task

TITLE = "Does it replicate?"
HOW = (
    "A replica is the same study, whose initial weights differ by 1e-7 of themselves: what another "
    "processor's rounding does, made on purpose. Runs near a cliff end otherwise then. What is "
    "said of a clip must not. Data, splits and seeds are the same, so that this shows what "
    "rounding does, and not what other data would."
)


def section(evidence: Evidence) -> Section:
    """Whether the answers hold for the replicas of the study that lie in its folder."""
    parts: list[Part] = []
    for number, gaps in sorted(evidence.replicas.items()):
        both = beside(evidence.gaps, gaps) if isinstance(gaps, pd.DataFrame) else pd.DataFrame()
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
    whole = both[(both[["verdict", "verdict_again"]] != Verdict.INCOMPLETE).all(axis=1)]
    turned = int(whole["turned"].sum())
    alike = int((whole["verdict"] == whole["verdict_again"]).sum())
    decided = int(whole["decided"].sum())
    known = both[both["allowed"].notna()]
    inside = int((known["moved"].abs() <= known["allowed"]).sum())
    lacking = len(both) - len(whole)
    turns = f"**{turned} {'turns' if turned == 1 else 'turn'}**" if turned else "none turns"
    return (
        f"In replica {number}, {alike} of {len(whole)} comparisons have the same words"
        f"{f', and {lacking} more lack runs' if lacking else ''}. Of {decided} that are decided in "
        f"both {turns} (better against worse, or either against no difference that matters). "
        f"{inside} of {len(known)} estimates with an error moved by no more than 95 % of two "
        "independent ones would."
    )


def _table(evidence: Evidence, task: Task, number: int, both: pd.DataFrame) -> Table:
    mine = evidence.of(both, task)
    digits = gap_places(evidence.of(evidence.gaps, task))
    rows = [
        [
            evidence.short(row["arm"]),
            signed(row["difference"], digits),
            signed(row["difference_again"], digits),
            signed(row["moved"], digits),
            fixed(row["allowed"], digits),
            str(row["verdict"]),
            str(row["verdict_again"]) + " (turned)" * row["turned"],
        ]
        for row in mine.to_dict("records")
    ]
    head = ["clip", "difference", "again", "moved", "allowed", "verdict", "verdict again"]
    caption = f"{evidence.labels[task]}: each comparison, and in replica {number}."
    data = evidence.labelled(mine)
    return Table(
        evidence.name("tables", "replicas", evidence.labels[task]), caption, head, rows, data
    )
