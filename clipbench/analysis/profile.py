"""Performance profiles: on how many of the problems a method is how near to the best."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from clipbench.analysis.cells import Components, table_of, workload
from clipbench.task import TASK, Task

FEWEST = 6  # problems: with fewer, a share of them says nothing
AT = np.geomspace(0.25, 64, 25)  # distances from the best, in margins


def profiles(levels: pd.DataFrame, components: Components, grade: str) -> pd.DataFrame:
    """A row per arm and distance: the ``share`` of the problems on which the arm is expected to
    reach the best of all arms less ``margins`` times the problem's margin (Dolan and Moré 2002,
    with a difference in place of a ratio: metrics here have no common zero).

    Only arms that ran on every problem that has a margin count; empty with fewer than `FEWEST`
    problems.
    """
    mine = levels[(levels["grade"] == grade) & levels["estimate"].notna()]
    behind: dict[str, dict[Task, float]] = {}
    tasks = []
    for values, rows in mine.groupby(TASK, sort=True):
        task = Task(*values)
        about = workload(components, task.problem)
        if not about["margin"]:
            continue
        tasks.append(task)
        signed = rows["estimate"] * (1 if about["higher_is_better"] else -1)
        for arm, value in zip(rows["arm"], signed, strict=True):
            behind.setdefault(arm, {})[task] = (signed.max() - value) / float(about["margin"])
    rows_of: list[dict[str, Any]] = []
    for arm, distances in behind.items() if len(tasks) >= FEWEST else ():
        if len(distances) == len(tasks):
            far = np.array(list(distances.values()))
            rows_of += [
                {
                    "arm": arm,
                    "margins": at,
                    "share": float((far <= at).mean()),
                    "problems": len(far),
                }
                for at in AT
            ]
    return table_of(rows_of, ["arm", "margins", "share", "problems"])
