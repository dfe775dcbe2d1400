"""Value or norm: the two clips of one optimizer beside each other, at the same number of tries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from clipbench import tuning
from clipbench.analysis.cells import table_of
from clipbench.analysis.headline import Axis, gap_of
from clipbench.task import ARM, TASK, Task

COLUMNS = [*ARM, "partner", "grade", "n", "difference", "low", "high"]


def norm_over_value(
    found: Mapping[tuple[Task, str, str], Axis], arms_table: pd.DataFrame, grade: str
) -> pd.DataFrame:
    """A row per task and optimizer that has both clips: the norm clip's difference from the value
    clip, positive if norm is better, with a 95 % interval. ``partner`` is the arm with the value
    clip. No verdict: the question is in no family.
    """
    rows = []
    both = arms_table[arms_table["clip"].isin(["norm", "value"])]
    for values, arms in both.groupby([*TASK, "optimizer_label"], sort=True):
        task = Task(*values[:-1])
        named = dict(zip(arms["clip_label"], arms["arm"], strict=True))
        if not {"norm", "value"} <= set(named):
            continue
        rows += beside(found, task, named["norm"], named["value"], grade)
    return table_of(rows, COLUMNS)


def beside(
    found: Mapping[tuple[Task, str, str], Axis], task: Task, arm: str, partner: str, grade: str
) -> list[dict[str, Any]]:
    """The row of `COLUMNS` on two arms of a task, positive if the first is better; none if they
    share no seeds.
    """
    shown = grade if (task, arm, grade) in found else "last"
    gap, error, seeds = gap_of([found.get((task, one, shown)) for one in (arm, partner)])
    if not seeds:
        return []
    bounds = tuning.interval(gap, error, seeds)
    return [
        {
            **task._asdict(),
            "arm": arm,
            "partner": partner,
            "grade": shown,
            "n": seeds,
            "difference": gap,
            "low": bounds.low,
            "high": bounds.high,
        }
    ]
