"""The section on how hot a learning rate the methods survive."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from clipbench.report import stable
from clipbench.report.evidence import Evidence
from clipbench.report.frames import by_optimizer, headed, lines
from clipbench.report.parts import Fold, Part, Picture, Section, Table
from clipbench.report.prose import paragraphs
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

TITLE = "Does it widen the range of learning rates?"


def section(evidence: Evidence) -> Section:
    """How hot a learning rate the methods survive."""
    parts: list[Part] = []
    for task in evidence.tasks:
        if len(evidence.of(evidence.robust, task)):
            parts += headed(evidence, task, [_table(evidence, task)])
    more = stable.subsection(evidence)
    folded = (
        [Fold("The learning rates at which every selection seed learned", more)] if more else []
    )
    if not parts:
        return Section("robust", TITLE, folded)
    moved = evidence.robust
    words = paragraphs(
        "robust",
        rows=len(moved),
        up=int((moved["low"] > 0).sum()),
        down=int((moved["high"] < 0).sum()),
    )
    return Section("robust", TITLE, [*words, *_picture(evidence), *parts, *folded])


def _picture(evidence: Evidence) -> list[Picture]:
    """The share of seeds that learn, along the learning rates."""

    def line(task: Task, arm: str) -> dict[str, Any] | None:
        axis = evidence.axes.get((task, arm, "last"))
        if axis is None:
            return None
        shares = 1 - pd.DataFrame(axis.lost).mean(axis=1, skipna=True)
        cells = axis.cells[np.isfinite(axis.lost)]
        return {"x": [float(lr) for lr in axis.points["lr"]], "y": list(shares), "cells": cells}

    panels = by_optimizer(evidence, line, lambda _: "seeds that learn", x="lr", log_x=True)
    caption = (
        "The share of seeds that learn at each learning rate, with each clip and without: where a "
        "line falls, runs diverge, collapse or stall."
    )
    return lines(evidence, panels, caption, "robust")


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
    data = evidence.labelled(mine)
    return Table(
        evidence.name("tables", "robust", evidence.labels[task]), caption, head, rows, data
    )


def half(row: Row, prefix: str) -> str:
    """A learning rate at which half of the seeds are lost."""
    mark = "≤ " if row[f"{prefix}below"] else "≥ " if row[f"{prefix}above"] else ""
    return mark + short(row[f"{prefix}half"])


def shift(row: Row) -> str:
    """How far a clip moves it, in decades."""
    if any(row[side] and row[f"partner_{side}"] for side in ("above", "below")):
        return "outside what was tried"
    bounds = interval_of({**row, "estimate": row["shift"]})
    return f"{signed(row['shift'], 2)} {between(Interval(*bounds), 2, sign=True)}".strip()
