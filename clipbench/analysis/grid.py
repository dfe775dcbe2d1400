"""The whole grid of settings on the selection seeds: how good each was, and how its seeds ended."""

from __future__ import annotations

import numpy as np
import pandas as pd

from clipbench.analysis.cells import Components, workload
from clipbench.analysis.outcomes import (
    COUNTS,
    selection_runs,
    succeeded,
    without_value,
    worst_filled,
)
from clipbench.schema import Outcome
from clipbench.selection import POINT
from clipbench.task import ARM


def grid(cells: pd.DataFrame, components: Components) -> pd.DataFrame:
    """A row per task, arm and setting on the selection seeds: how they ended, and their ``value``.

    ``statistic`` says which value: the ``mean`` metric of the ``valued`` seeds, those that have
    one, or, if the outcome is all or nothing, the ``share`` of them that succeeded (a diverged seed
    did not). ``no_value`` counts the seeds that ran, did not diverge and have no metric.
    """
    frame = selection_runs(cells)
    frame["statistic"], frame["no_value"] = "mean", 0
    frame["value"] = frame["metric_value"].where(frame["ended"] != Outcome.DIVERGED).astype(float)
    for problem, seeds in frame.groupby("problem", sort=True):
        about = workload(components, problem)
        frame.loc[seeds.index, "no_value"] = without_value(seeds, about).astype(int)
        if about["success"] is not None:
            met = np.where(np.isnan(worst_filled(seeds, about)), np.nan, succeeded(seeds, about))
            frame.loc[seeds.index, "statistic"], frame.loc[seeds.index, "value"] = "share", met
    frame["value"] = frame["value"].where(np.isfinite(frame["value"]))
    for name in COUNTS[:-1]:
        frame[name] = (frame["ended"] == name).astype(int)
    wanted = {name: (name, "sum") for name in (*COUNTS[:-1], "no_value")}
    table = frame.groupby([*ARM, *POINT], dropna=False, sort=True).agg(
        seeds=("cell", "size"),
        **wanted,
        statistic=("statistic", "first"),
        value=("value", "mean"),
        valued=("value", "count"),
        clipped_fraction=("clipped_fraction", "mean"),
        extended=("extended", "any"),
    )
    return table.reset_index()
