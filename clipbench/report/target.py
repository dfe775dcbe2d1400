"""Does it learn faster? How soon the model is good enough, with a clip and without."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from clipbench.analysis.outcomes import UNKNOWN
from clipbench.analysis.target import reached
from clipbench.report.evidence import Evidence
from clipbench.report.frames import by_optimizer, foldable, lines
from clipbench.report.parts import Section, Table
from clipbench.report.prose import paragraphs
from clipbench.report.words import DASH
from clipbench.schema import Reading
from clipbench.task import ARM, Task

TITLE = "Does it learn faster?"


def section(evidence: Evidence) -> Section:
    """Steps to the target."""
    named = [task.problem for task in evidence.tasks if evidence.about(task)["target"] is not None]
    drawn = evidence.drawn[evidence.drawn["problem"].isin(named)]
    curves = reached(drawn)
    if curves.empty or not (curves["share"] > 0).any():
        return Section("target", TITLE, [])
    chosen = drawn[(drawn["reading"] == Reading.ALL) & ~drawn["ended"].isin(UNKNOWN)]

    def line(task: Task, arm: str) -> dict[str, Any] | None:
        mine = evidence.of(curves, task)
        mine = mine[mine["arm"] == arm]
        if mine.empty:
            return None
        steps = np.repeat(mine["step"].to_numpy(dtype=float), 2)[1:]
        shares = np.repeat(mine["share"].to_numpy(float), 2)[:-1]
        ran = evidence.of(chosen, task)
        cells = list(ran.loc[ran["arm"] == arm, "cell"])
        return {"x": list(steps), "y": list(shares), "cells": cells}

    panels = by_optimizer(evidence, line, lambda _: "seeds at the target", x="step")
    caption = (
        "The share of report seeds that have met the target by each step, at the setting that was "
        "chosen (Kaplan and Meier's estimate; runs that ended before are censored)."
    )
    pairs = _pairs(evidence)
    words = paragraphs(
        "target",
        pairs=len(pairs),
        sooner=int((pairs["steps"] < pairs["steps_without"]).sum()),
        later=int((pairs["steps"] > pairs["steps_without"]).sum()),
    )
    shown = lines(evidence, panels, caption, "target")
    return Section("target", TITLE, [*words, *shown, foldable(_table(evidence, pairs))])


def _pairs(evidence: Evidence) -> pd.DataFrame:
    """The median steps to the target of each clip and of its optimizer without one."""
    mine = evidence.results[evidence.results["reading"] == Reading.ALL]
    mine = mine[[*ARM, "n", "steps_to_target", "reached"]]
    mine = mine.rename(columns={"steps_to_target": "steps"})
    partners = evidence.arms.loc[evidence.arms["partner"].notna(), [*ARM, "partner"]]
    other = mine.rename(columns={"arm": "partner"})
    keys = [*ARM[:-1], "partner"]
    both = mine.merge(partners, on=ARM).merge(other, on=keys, suffixes=("", "_without"))
    return both[both["reached"] + both["reached_without"] > 0]


def _table(evidence: Evidence, pairs: pd.DataFrame) -> Table:
    rows = [
        [
            evidence.labels[Task.of(row)],
            evidence.short(row["arm"]),
            f"{_steps(row['steps_without'])} → {_steps(row['steps'])}",
            f"{row['reached_without']} → {row['reached']} of {row['n']}",
        ]
        for row in pairs.to_dict("records")
    ]
    caption = "Median steps to the target, without the clip → with it; ∞: half of the seeds never."
    head = ["problem", "clip", "steps to the target", "seeds that meet it"]
    name = evidence.name("tables", "target")
    return Table(name, caption, head, rows, evidence.labelled(pairs), words=2)


def _steps(value: float) -> str:
    return DASH if np.isnan(value) else "∞" if np.isinf(value) else f"{value:,.0f}"
