"""Value or norm: the two clips of one optimizer beside each other, at the same number of tries."""

from __future__ import annotations

from collections.abc import Mapping

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
        shown = grade if (task, named["norm"], grade) in found else "last"
        sides = [found.get((task, named[one], shown)) for one in ("norm", "value")]
        gap, error, seeds = gap_of(sides)
        if not seeds:
            continue
        bounds = tuning.interval(gap, error, seeds)
        rows.append(
            {
                **task._asdict(),
                "arm": named["norm"],
                "partner": named["value"],
                "grade": shown,
                "n": seeds,
                "difference": gap,
                "low": bounds.low,
                "high": bounds.high,
            }
        )
    return table_of(rows, COLUMNS)
