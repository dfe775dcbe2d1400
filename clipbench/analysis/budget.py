"""Whether it pays to tune a threshold: what somebody is expected to reach who tries so many
settings of an arm, beside the same optimizer without the clip.

Settings are ranked on selection seeds and judged on report seeds. A run that diverged counts as
chance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from clipbench import selection, tuning
from clipbench.analysis import headline
from clipbench.analysis.cells import Components, of_task, plain, table_of, workload
from clipbench.schema import Role
from clipbench.statistics import mean_interval
from clipbench.task import ARM, FIRST_REPORT_SEED, Task

FEWEST = 2  # report seeds for an interval
COLUMNS = [*ARM, "partner", "tries", "n", "estimate", "without", "difference", "low", "high"]
COLUMNS += ["cells"]


def curves(
    cells: pd.DataFrame,
    arms_table: pd.DataFrame,
    components: Components,
    protocol: Mapping[str, Any],
    starts: Mapping[str, tuple[float, float]],
) -> pd.DataFrame:
    """A row per arm that has several thresholds, and number of ``tries``.

    ``estimate`` is what it is expected to reach, ``without`` what its optimizer does without the
    clip; that has fewer settings, and stays where it is if all of them are tried. ``difference`` is
    positive if the clip is better, with a 95 % interval over the ``n`` report seeds; ``cells`` are
    those that the whole curve is made of.
    """
    if not protocol.get("budget"):
        return table_of([], COLUMNS)
    frame = plain(cells)
    own = frame[frame["role"] == Role.SELECT]
    partners = {
        (Task.of(row), row["arm"]): row["partner"]
        for row in arms_table[arms_table["partner"].notna()].to_dict("records")
    }
    rows = []
    for values, points in selection.several(own, {}).groupby(ARM, sort=True):
        task, arm = Task(*values[:-1]), str(values[-1])
        pair = {"arm": arm, "partner": (partner := partners.get((task, arm)))}
        runs, about = of_task(frame, task), workload(components, task.problem)
        chosen = of_task(own, task)
        lrs = chosen[(chosen["arm"] == partner) & ~chosen["extended"]].drop_duplicates("lr")
        mine, other = (
            _curve(runs[runs["arm"] == name], settings, task, about, protocol, starts)
            for name, settings in ((arm, points), (partner, lrs))
        )
        if mine is None or other is None:
            continue
        clipped, without = mine[0], other[0]
        without = without[np.minimum(np.arange(len(clipped)), len(without) - 1)]
        known = np.isfinite(clipped).all(axis=0) & np.isfinite(without).all(axis=0)
        clipped, without = clipped[:, known], without[:, known]
        if clipped.shape[1] < FEWEST:
            continue
        sign = 1 if about["higher_is_better"] else -1
        ran = _counted(np.concatenate([mine[1], other[1]]), known)
        for tries, (one, base) in enumerate(zip(clipped, without, strict=True), start=1):
            gap = mean_interval(one - base)
            rows.append(
                {
                    **task._asdict(),
                    **pair,
                    "tries": tries,
                    "n": len(one),
                    "estimate": sign * float(one.mean()),
                    "without": sign * float(base.mean()),
                    "difference": gap.estimate,
                    "low": gap.low,
                    "high": gap.high,
                    "cells": ran,
                }
            )
    return table_of(rows, COLUMNS)


def _counted(cells: np.ndarray, known: np.ndarray) -> tuple[str, ...]:
    """Of cells, settings × seeds, those of the seeds that choose, which are first, and of the
    judges that are ``known``.
    """
    choose = np.ones(cells.shape[1] - len(known), dtype=bool)
    return tuple(cells[:, np.concatenate([choose, known])].flat)


def at_median(
    cells: pd.DataFrame,
    arms_table: pd.DataFrame,
    components: Components,
    protocol: Mapping[str, Any],
    starts: Mapping[str, tuple[float, float]],
) -> pd.DataFrame:
    """A row per clip: its difference at the same number of tries, with the pilot's median size as
    threshold in place of the percentile; over the seeds that ran it. None without a budget.
    """
    seeds = {
        problem: {**count, "report": min(int(count["report"]), int(protocol.get("budget", 0)))}
        for problem, count in protocol.get("seeds", {}).items()
    }
    found = (
        headline.axes(cells, components, {**protocol, "seeds": seeds}, starts, multiple=1.0)
        if protocol.get("budget")
        else {}
    )
    grade, rows = str(protocol.get("grade", "best")), []
    for row in arms_table[arms_table["partner"].notna()].to_dict("records"):
        task = Task.of(row)
        shown = grade if (task, row["arm"], grade) in found else "last"
        sides = [found.get((task, row[name], shown)) for name in ("arm", "partner")]
        if sides[0] is None or not sides[0].points["relative"].eq(1.0).all():
            continue
        difference, error, both = headline.gap_of(sides)
        gap = tuning.interval(difference, error, both)
        rows.append(
            {
                **task._asdict(),
                **{name: row[name] for name in ("arm", "partner")},
                "n": both,
                "difference": gap.estimate,
                "low": gap.low,
                "high": gap.high,
            }
        )
    return table_of(rows, [*ARM, "partner", "n", "difference", "low", "high"])


def _curve(
    runs: pd.DataFrame,
    settings: pd.DataFrame,
    task: Task,
    about: Mapping[str, Any],
    protocol: Mapping[str, Any],
    starts: Mapping[str, tuple[float, float]],
) -> tuple[np.ndarray, np.ndarray] | None:
    """Tries × report seeds, higher is better: NaN on seeds of which a run is not known; and the
    cells, settings × seeds, those that choose first. None if one of these lacks a run.
    """
    count = protocol.get("seeds", {}).get(task.problem, {})
    judges = min(int(protocol.get("budget", 0)), int(count.get("report", 0)))
    chooses = range(int(count.get("select", 0)))
    seeds = [*chooses, *range(FIRST_REPORT_SEED, FIRST_REPORT_SEED + judges)]
    if judges < FEWEST or settings.empty:
        return None
    graded = {
        grade: headline.along(runs, settings, seeds, about, grade, starts)
        for grade in headline.GRADES
        if grade == "last" or about["reference_loss"] is not None
    }
    last = graded["last"]
    shown = graded.get(str(protocol.get("grade", "best")), last)
    validation = np.where(last.diverged == 1, last.validation, shown.validation)
    test = np.where(last.diverged == 1, last.test, shown.test)
    scores = validation[:, : len(chooses)].mean(axis=1)
    if not np.isfinite(scores).all():
        return None
    return tuning.budget_curve(scores, test[:, len(chooses) :]), last.cells


def ahead(curve: pd.DataFrame, column: str = "difference") -> float:
    """The number of tries from which on a column stays above 0: with the difference that from which
    a tuned clip is ahead, k*, and with ``low`` that from which it surely is. NaN if it is not with
    all of them.
    """
    behind = ~(curve.sort_values("tries")[column].to_numpy(dtype=float) > 0)
    if not len(behind) or behind[-1]:
        return math.nan
    return float(np.flatnonzero(behind).max() + 2) if behind.any() else 1.0
