"""What if the threshold is too strict? The best that a clip reaches at each of its thresholds."""

from __future__ import annotations

from functools import partial
from typing import Any

from clipbench.analysis.strict import by_threshold
from clipbench.figures.panels import draw
from clipbench.report.evidence import Evidence
from clipbench.report.frames import by_optimizer, foldable, picture
from clipbench.report.parts import Section, Table
from clipbench.report.prose import paragraphs
from clipbench.report.words import (
    decimals,
    fixed,
    metric_words,
    percent,
    short,
    signed,
    threshold_words,
)
from clipbench.schema import Role
from clipbench.task import Task, Threshold

TITLE = "What if it is too strict?"


def section(evidence: Evidence) -> Section:
    """What the strictest thresholds reach."""
    rows = by_threshold(evidence.cells, evidence.arms, evidence.components)
    if rows.empty:
        untried = evidence.arms["partner"].notna().any()
        return Section("strict", TITLE, paragraphs("strict", arms=0) if untried else [])
    strictest = rows.groupby(["problem", "batch", "device", "dtype", "arm"], sort=False).first()

    def line(task: Task, arm: str) -> dict[str, Any] | None:
        mine = evidence.of(rows, task)
        mine = mine[mine["arm"] == arm]
        return {"x": list(mine["threshold"]), "y": list(mine["difference"])} if len(mine) else None

    panels = by_optimizer(
        evidence,
        line,
        lambda task: f"gain, {metric_words(evidence.about(task))}",
        x="threshold",
        log_x=True,
        level=0.0,
    )
    parts = paragraphs(
        "strict",
        arms=len(strictest),
        behind=int((strictest["difference"] < 0).sum()),
        fired=percent(float(strictest["fired"].median())),
        seeds=int(rows["n"].max()),
    )
    shown = []
    if panels:
        cells = evidence.cells[evidence.cells["role"] == Role.SELECT]
        caption = (
            "What each threshold gains over no clip, at the learning rate that suits it best; the "
            "strictest is at the left. Means over selection seeds."
        )
        figure = partial(draw, panels, evidence.footer(cells))
        shown.append(picture(evidence, figure, caption, cells, "strict"))
    table = []
    for task in evidence.tasks:
        mine, about = evidence.of(rows, task), evidence.about(task)
        places = decimals([*mine["estimate"].dropna(), *mine["without"].dropna()])
        table += [
            [
                evidence.labels[task],
                evidence.short(row["arm"]),
                threshold_words(Threshold.of({**row, "percentile": float("nan")})),
                f"{metric_words(about)} {fixed(row['estimate'], places)}",
                signed(row["difference"], places),
                short(row["lr"]),
                percent(row["fired"]),
            ]
            for row in mine.to_dict("records")
        ]
    head = ["problem", "clip", "threshold", "reaches", "over no clip", "at lr", "fired"]
    data = rows.assign(label=[evidence.short(arm) for arm in rows["arm"]])
    caption = "Each threshold at its best learning rate, on selection seeds: it chose and is shown."
    return Section(
        "strict",
        TITLE,
        [
            *parts,
            *shown,
            foldable(Table(evidence.name("tables", "strict"), caption, head, table, data, words=3)),
        ],
    )
