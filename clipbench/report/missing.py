"""The section on what was not run, or is not compared."""

from __future__ import annotations

import pandas as pd

from clipbench.analysis.missing import failures, mixtures, valueless
from clipbench.figures.style import setting
from clipbench.report.evidence import Evidence
from clipbench.report.frames import LISTED
from clipbench.report.parts import List, Part, Section, Table, Text
from clipbench.report.words import listed, plural
from clipbench.task import ARM, Task


def section(evidence: Evidence) -> Section:
    """What is missing, failed, kept aside or mixed."""
    items = [
        Text(
            (
                f"{plural(int(entry['cells']), 'cell')} for {entry['device']}: {entry['reason']}."
            ).replace("..", ".")
        )
        for entry in evidence.plan.get("not_run", [])
    ]
    stored = set(evidence.cells["cell"])
    for phase, asked in sorted(evidence.plan.get("cells", {}).items()):
        lacking = sum(cell not in stored for cell in asked)
        if lacking:
            items.append(
                Text(
                    f"{lacking:,} of {plural(len(asked), f'{phase} cell')} not stored yet: "
                    f"`clipbench run` makes them."
                )
            )
    if len(evidence.cells) and not evidence.plan.get("cells", {}).get("report"):
        items.append(Text("The report phase: its settings are to be chosen."))
    items += [
        Text(f"{plural(count, 'stored cell')} kept but not compared: {reason}.")
        for reason, count in evidence.kept.items()
    ]
    items += [
        Text(f"Damaged file left out: {name} {damage}.")
        for name, damage in sorted(evidence.store.bad.items())
    ]
    items += _doubtful(evidence)
    parts: list[Part] = (
        [List(items)] if items else [Text("Everything the study asks for is stored, and compared.")]
    )
    lost = failures(evidence.cells)
    if len(lost):
        parts.append(_failed(evidence, lost))
    return Section("missing", "What was not run, or is not compared", parts)


def _doubtful(evidence: Evidence) -> list[Text]:
    """Cells that differ in more than their settings, and report runs without a value."""
    items = []
    for one in mixtures(evidence.cells):
        values = listed(
            [f"{value} ({plural(count, 'cell')})" for value, count in one["values"].items()]
        )
        label = evidence.labels[Task.of(one)]
        items.append(
            Text(
                f"**Mixed**: the {one['role']} cells of {label} come from more than one "
                f"{one['column']}: {values}. Read their comparison with care."
            )
        )
    for arm, mine in valueless(evidence.drawn, evidence.components).groupby(ARM, sort=True):
        runs = (
            f"{plural(len(mine), 'report run')} of {evidence.labels[Task(*arm[:-1])]}, {arm[-1]},"
        )
        named = listed([f"seed {row.seed} ({row.ended})" for row in mine.head(LISTED).itertuples()])
        items.append(
            Text(
                f"**No value**: {runs} did not diverge and yet ended without a usable metric: "
                f"{named}. What they would have reached is unknown, so that nothing is concluded "
                "where they take part."
            )
        )
    return items


def _failed(evidence: Evidence, lost: pd.DataFrame) -> Table:
    rows = [
        [
            evidence.labels[Task.of(row)],
            f"{row['arm']}, {setting(row)}",
            f"{row['role']} {row['seed']}",
            str(row["attempt"]),
            str(row["reason"] or "no reason was recorded"),
            row["cell"],
        ]
        for row in lost.head(LISTED).to_dict("records")
    ]
    caption = (
        f"{plural(len(lost), 'failed cell')} (the first {min(LISTED, len(lost))}); the "
        f"next run tries them again."
    )
    return Table(
        evidence.name("tables", "failed"),
        caption,
        ["workload", "arm and setting", "seed", "attempt", "reason", "cell"],
        rows,
        lost,
        words=6,
    )
