"""Whether a clip cures gradients that vanish: how many runs never learn, and how long the gradient
is, with it and without.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from clipbench import statistics
from clipbench.analysis.cells import plain, table_of
from clipbench.schema import Outcome
from clipbench.task import ARM, TASK

COLUMNS = [*ARM, "partner", "n", "stalled_without", "stalled", "fewer", "low", "high", "ratio"]


def stalled(cells: pd.DataFrame, arms_table: pd.DataFrame, choices: pd.DataFrame) -> pd.DataFrame:
    """A row per clip and task, over all runs that its optimizer has at the same learning rate and
    seed without it: the share that stalled, how much smaller it is with the clip (``fewer``, with
    a 95 % interval over the ``n`` seeds), and ``ratio``, the median of the run's median gradient
    norm over that without the clip.

    Only learning rates up to the one that is chosen without the clip count: at a hotter one a run
    stalls because it was thrown off, and not because its gradient vanishes.
    """
    frame = plain(cells)[[*ARM, "lr", "seed", "outcome", "grad_norm_median"]]
    frame = frame.assign(stalled=(frame["outcome"] == Outcome.STALLED).astype(float))
    frame = frame[frame["outcome"].notna()]
    pairs = arms_table.loc[arms_table["partner"].notna(), [*ARM, "partner"]]
    mine = frame.merge(pairs, on=ARM)
    best = choices[[*ARM, "lr"]].rename(columns={"arm": "partner", "lr": "best"})
    mine = mine.merge(best, on=[*TASK, "partner"])
    mine = mine[mine["lr"] <= mine["best"]]
    keys = [*TASK, "partner", "lr", "seed"]
    other = frame.rename(columns={"arm": "partner"}).drop_duplicates(keys)
    both = mine.merge(other, on=keys, suffixes=("", "_without"))
    rows = []
    for values, runs in both.groupby([*ARM, "partner"], sort=True):
        by_seed = runs.groupby("seed")[["stalled", "stalled_without"]].mean()
        fewer = statistics.mean_interval(
            (by_seed["stalled_without"] - by_seed["stalled"]).to_numpy(dtype=float)
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = (runs["grad_norm_median"] / runs["grad_norm_median_without"]).to_numpy(float)
        rows.append(
            {
                **dict(zip([*ARM, "partner"], values, strict=True)),
                "n": len(by_seed),
                "stalled": float(runs["stalled"].mean()),
                "stalled_without": float(runs["stalled_without"].mean()),
                "fewer": fewer.estimate,
                "low": fewer.low,
                "high": fewer.high,
                "ratio": float(np.nanmedian(ratio)) if np.isfinite(ratio).any() else np.nan,
            }
        )
    return table_of(rows, COLUMNS)
