"""How soon a model is good enough: the share of report seeds that have met the target, by step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from clipbench.analysis.cells import plain, table_of
from clipbench.analysis.outcomes import UNKNOWN
from clipbench.schema import Outcome, Reading
from clipbench.task import ARM


def reached(drawn: pd.DataFrame) -> pd.DataFrame:
    """A row per task, arm and step at which the share changes, at the chosen setting: ``share`` of
    the seeds that have met the target by then, after Kaplan and Meier.

    A run that ended without having met it is censored at its end; one that diverged never meets it,
    and is counted so to the last step.
    """
    chosen = drawn[(drawn["reading"] == Reading.ALL) & ~drawn["ended"].isin(UNKNOWN)]
    rows: list[dict[str, Any]] = []
    for values, runs in plain(chosen).groupby(ARM, sort=True):
        met, last = runs["steps_to_target"].notna(), float(runs["steps"].max())
        ends = runs["steps"].where(runs["ended"] != Outcome.DIVERGED, last)
        sample = stats.CensoredData(
            uncensored=runs.loc[met, "steps_to_target"].to_numpy(dtype=float),
            right=ends[~met].to_numpy(dtype=float),
        )
        cdf = stats.ecdf(sample).cdf
        steps = np.array([0.0, *cdf.quantiles, last])
        shares = np.array([0.0, *cdf.probabilities, cdf.probabilities[-1]])
        rows += [
            {**dict(zip(ARM, values, strict=True)), "step": step, "share": share, "n": len(runs)}
            for step, share in zip(steps, shares, strict=True)
        ]
    return table_of(rows, [*ARM, "step", "share", "n"])
