"""What if the threshold is too strict? The best that a clip reaches at each of its thresholds."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from clipbench.analysis.strict import by_threshold
from clipbench.report.evidence import Evidence
from clipbench.report.frames import by_optimizer, foldable, lines
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
        return Section(
            "strict",
            TITLE,
            paragraphs("strict", arms=0, others=len(evidence.other_thresholds)) if untried else [],
        )
    strictest = rows.groupby(["problem", "batch", "device", "dtype", "arm"], sort=False).first()
    tried = evidence.cells[evidence.cells["role"] == Role.SELECT]
    tried = tried[~tried["extended"].astype(bool)]

    def line(task: Task, arm: str) -> dict[str, Any] | None:
        mine = evidence.of(rows, task)
        mine = mine[mine["arm"] == arm]
        if mine.empty:
            return None
        ran = evidence.of(tried, task)
        ran = ran[ran["arm"].isin({arm, *mine["partner"]})]
        x, y = list(mine["threshold"]), list(mine["difference"])
        return {"x": x, "y": y, "cells": list(ran["cell"])}

    panels = by_optimizer(
        evidence,
        line,
        lambda task: f"gain, {metric_words(evidence.about(task))}",
        x="threshold",
        log_x=True,
        level=0.0,
    )
    words = paragraphs(
        "strict",
        arms=len(strictest),
        behind=int((strictest["difference"] < 0).sum()),
        fired=percent(float(strictest["fired"].median())),
        seeds=int(rows["n"].max()),
    )
    caption = (
        "What each threshold gains over no clip, at the learning rate that suits it best; the "
        "strictest is at the left. Means over selection seeds."
    )
    shown = lines(evidence, panels, caption, "strict")
    return Section("strict", TITLE, [*words, *shown, foldable(_table(evidence, rows))])


def _table(evidence: Evidence, rows: pd.DataFrame) -> Table:
    shown = []
    for task in evidence.tasks:
        mine, about = evidence.of(rows, task), evidence.about(task)
        places = decimals([*mine["estimate"].dropna(), *mine["without"].dropna()])
        shown += [
            [
                evidence.labels[task],
                evidence.short(row["arm"]),
                threshold_words(Threshold.of({**row, "percentile": math.nan})),
                f"{metric_words(about)} {fixed(row['estimate'], places)}",
                signed(row["difference"], places),
                short(row["lr"]),
                percent(row["fired"]),
            ]
            for row in mine.to_dict("records")
        ]
    head = ["problem", "clip", "threshold", "reaches", "over no clip", "at lr", "fired"]
    caption = "Each threshold at its best learning rate, on selection seeds: it chose and is shown."
    name = evidence.name("tables", "strict")
    return Table(name, caption, head, shown, evidence.labelled(rows), words=3)
