"""The section on the same study run again from weights that differ in their last digits."""

from __future__ import annotations

import pandas as pd

from clipbench.analysis.replicas import beside
from clipbench.report.evidence import Evidence
from clipbench.report.frames import headed
from clipbench.report.parts import Part, Section, Table, Text
from clipbench.report.words import fixed, gap_places, plural, signed
from clipbench.task import Task

TITLE = "The same study again"
HOW = (
    "A replica is the same study, whose initial weights differ by 1e-7 of themselves: what another "
    "processor's rounding does, made on purpose. Runs near a cliff end otherwise then. What is "
    "said of a clip must not."
)


def section(evidence: Evidence) -> Section:
    """Whether the answers hold for the replicas of the study that lie in its folder."""
    parts: list[Part] = []
    for number, gaps in sorted(evidence.replicas.items()):
        both = beside(evidence.gaps, gaps)
        if both.empty:
            continue
        parts.append(Text(f"{HOW} " * (not parts) + _told(number, both)))
        for task in evidence.tasks:
            if len(evidence.of(both, task)):
                parts += headed(evidence, task, [_table(evidence, task, number, both)])
    return Section("replicas", TITLE, parts)


def _told(number: int, both: pd.DataFrame) -> str:
    turned, alike = int(both["turned"].sum()), int((both["verdict"] == both["verdict_again"]).sum())
    known = both[both["allowed"].notna()]
    inside = int((known["moved"].abs() <= known["allowed"]).sum())
    turns = f"**{plural(turned, 'verdict')} turn{'s' * (turned == 1)}**"
    words = turns if turned else "no verdict turns"
    return (
        f"In replica {number}, {alike} of {len(both)} comparisons have the same words, and {words} "
        f"(better against worse, or either against no difference that matters). {inside} of "
        f"{len(known)} estimates with an error moved by no more than 95 % of two independent ones "
        "would."
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
    data = mine.assign(label=[evidence.short(arm) for arm in mine["arm"]])
    return Table(
        evidence.name("tables", "replicas", evidence.labels[task]), caption, head, rows, data
    )
