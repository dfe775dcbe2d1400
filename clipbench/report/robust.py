"""The section on how hot a learning rate the methods survive."""

from __future__ import annotations

from clipbench.report.evidence import Evidence
from clipbench.report.frames import headed
from clipbench.report.parts import Part, Section, Table, Text
from clipbench.report.words import (
    Row,
    between,
    decimals,
    fixed,
    interval_of,
    metric_words,
    short,
    signed,
)
from clipbench.statistics import Interval
from clipbench.task import Task

HOW = (
    "A clip may help less at the best learning rate than at one that is too hot. Both arms of a "
    "pair ran on the same learning rates and seeds: the table gives the learning rate at which "
    "half of the seeds are lost (they diverge, collapse or stall), between two of the axis, and "
    "how far the clip moves it, in decades, with a 95 % interval over seeds drawn again. ≤ and ≥: "
    "beyond the axis, whose end stands for it. The last columns tell what an ill-chosen learning "
    "rate costs: how much less than the best one the whole axis reaches on average, at the last "
    "step."
)


def section(evidence: Evidence) -> Section:
    """How hot a learning rate the methods survive."""
    parts: list[Part] = []
    for task in evidence.tasks:
        if len(evidence.of(evidence.robust, task)):
            parts += headed(evidence, task, [_table(evidence, task)])
    return Section("robust", "How hot a learning rate may be", [Text(HOW), *parts] if parts else [])


def _table(evidence: Evidence, task: Task) -> Table:
    mine, about = evidence.of(evidence.robust, task), evidence.about(task)
    both = [*mine["sensitivity"], *mine["partner_sensitivity"]]
    places = decimals(both)
    rows = [
        [
            evidence.short(row["arm"]),
            half(row, "partner_"),
            half(row, ""),
            shift(row),
            str(int(row["n"])),
            fixed(row["partner_sensitivity"], places),
            fixed(row["sensitivity"], places),
        ]
        for row in mine.to_dict("records")
    ]
    head = [
        "clip",
        "half lost without it",
        "with it",
        "decades [95 %]",
        "seeds",
        f"{metric_words(about)} lost over the axis, without it",
        "with it",
    ]
    caption = f"{evidence.labels[task]}: the learning rate at which half of the seeds are lost."
    data = mine.assign(label=[evidence.short(arm) for arm in mine["arm"]])
    return Table(
        evidence.name("tables", "robust", evidence.labels[task]), caption, head, rows, data
    )


def half(row: Row, prefix: str) -> str:
    """A learning rate at which half of the seeds are lost."""
    mark = "≤ " if row[f"{prefix}below"] else "≥ " if row[f"{prefix}above"] else ""
    return mark + short(row[f"{prefix}half"])


def shift(row: Row) -> str:
    """How far a clip moves it, in decades."""
    bounds = interval_of({**row, "estimate": row["shift"]})
    return f"{signed(row['shift'], 2)} {between(Interval(*bounds), 2, sign=True)}".strip()
