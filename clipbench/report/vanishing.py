"""Does clipping cure vanishing gradients? How many runs stall, and how long the gradient is."""

from __future__ import annotations

from typing import Any

import pandas as pd

from clipbench.analysis.vanishing import stalled
from clipbench.report.divergence import points
from clipbench.report.evidence import Evidence
from clipbench.report.frames import by_optimizer, foldable, lines
from clipbench.report.parts import Section, Table
from clipbench.report.prose import paragraphs
from clipbench.report.words import percent, short
from clipbench.task import Task

TITLE = "Does it cure vanishing gradients?"


def section(evidence: Evidence) -> Section:
    """Whether fewer runs stall with a clip."""
    pairs = stalled(evidence.cells, evidence.arms, evidence.choices)
    if pairs.empty:
        return Section("vanishing", TITLE, [])
    cells = evidence.cells[evidence.cells["outcome"].notna()]

    def line(task: Task, arm: str) -> dict[str, Any] | None:
        mine = evidence.of(cells, task)
        mine = mine[mine["arm"] == arm]
        share = mine.assign(stalled=(mine["outcome"] == "stalled").astype(float))
        by_lr = share.groupby(share["lr"].astype(float))["stalled"].mean()
        line = {"x": list(by_lr.index), "y": list(by_lr), "cells": list(mine["cell"])}
        return line if len(by_lr) else None

    panels = by_optimizer(evidence, line, lambda _: "runs that stall", x="lr", log_x=True)
    caption = "The share of runs that never learn, by learning rate, over all seeds and thresholds."
    words = paragraphs(
        "vanishing",
        pairs=len(pairs),
        fewer=int((pairs["low"] > 0).sum()),
        more=int((pairs["high"] < 0).sum()),
        seeds=int(pairs["n"].max()),
    )
    shown = lines(evidence, panels, caption, "vanishing")
    return Section("vanishing", TITLE, [*words, *shown, foldable(_table(evidence, pairs))])


def _table(evidence: Evidence, pairs: pd.DataFrame) -> Table:
    rows = [
        [
            evidence.labels[Task.of(row)],
            evidence.short(row["arm"]),
            f"{percent(row['stalled_without'])} → {percent(row['stalled'])}",
            points(row, "fewer"),
            short(row["ratio"]),
            str(row["n"]),
        ]
        for row in pairs.to_dict("records")
    ]
    caption = (
        "Without the clip → with it, at the same seeds and learning rates, up to the one that is "
        "chosen without the clip."
    )
    head = ["problem", "clip", "stalled", "fewer, points [95 %]", "gradient norm, with ÷ without"]
    name = evidence.name("tables", "vanishing")
    return Table(name, caption, [*head, "seeds"], rows, evidence.labelled(pairs), words=2)
