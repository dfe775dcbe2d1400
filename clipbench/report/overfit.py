"""Does clipping overfit less? What an early stop gains, with a clip and without."""

from __future__ import annotations

from typing import Any

import pandas as pd

from clipbench.analysis.overfit import going_on, stopping, validation
from clipbench.report.evidence import Evidence
from clipbench.report.frames import by_optimizer, foldable, lines
from clipbench.report.parts import Section, Table
from clipbench.report.prose import paragraphs
from clipbench.report.words import gap_places, metric_words, percent, signed
from clipbench.task import Task

TITLE = "Does it overfit less?"


def section(evidence: Evidence) -> Section:
    """Whether a clip replaces an early stop."""
    pairs = stopping(
        evidence.levels, evidence.gaps, evidence.components, evidence.cells, evidence.events
    )
    if pairs.empty:
        return Section("overfit", TITLE, [])
    chosen = going_on(evidence.drawn)
    curves = validation(evidence.evals_of(chosen["cell"].dropna()), chosen)

    def line(task: Task, arm: str) -> dict[str, Any] | None:
        mine = evidence.of(curves, task)
        mine = mine[mine["arm"] == arm]
        if mine.empty:
            return None
        ran = evidence.of(chosen, task)
        cells = list(ran.loc[ran["arm"] == arm, "cell"])
        return {"x": list(mine["step"]), "y": list(mine["value"]), "cells": cells}

    panels = by_optimizer(evidence, line, lambda _: "validation loss", x="step")
    caption = (
        "The median validation loss of the report seeds at the setting that was chosen: where it "
        "rises, the model overfits."
    )
    less = int((pairs["stopping"] < pairs["stopping_without"]).sum())
    words = paragraphs("overfit", pairs=len(pairs), less=less, seeds=int(pairs["n"].max()))
    shown = lines(evidence, panels, caption, "overfit")
    return Section("overfit", TITLE, [*words, *shown, foldable(_table(evidence, pairs))])


def _table(evidence: Evidence, pairs: pd.DataFrame) -> Table:
    rows = []
    for task in evidence.tasks:
        mine, about = evidence.of(pairs, task), evidence.about(task)
        places = gap_places(evidence.of(evidence.gaps, task))
        rows += [
            [
                evidence.labels[task],
                evidence.short(row["arm"]),
                f"{signed(row['stopping_without'], places)} → {signed(row['stopping'], places)}",
                metric_words(about),
                f"{percent(row['overconfident_without'])} → {percent(row['overconfident'])}",
                str(row["n"]),
            ]
            for row in mine.to_dict("records")
        ]
    head = ["problem", "clip", "an early stop gains", "metric", "overconfident runs", "seeds"]
    caption = (
        "What the best checkpoint has over the last step, on test, without the clip → with it; "
        "and the share of runs whose validation loss ends above a constant prediction's."
    )
    name = evidence.name("tables", "overfit")
    return Table(name, caption, head, rows, evidence.labelled(pairs), words=2)
