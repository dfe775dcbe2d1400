"""What a threshold that is too strict does: the best that an arm reaches at each of its thresholds,
beside its optimizer without the clip.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from clipbench.analysis.cells import Components, plain, table_of, workload
from clipbench.schema import Role
from clipbench.task import ARM, Task

COLUMNS = [*ARM, "partner", "threshold", "relative", "n", "lr", "estimate", "without", "difference"]
COLUMNS += ["fired"]


def by_threshold(
    cells: pd.DataFrame, arms_table: pd.DataFrame, components: Components
) -> pd.DataFrame:
    """A row per clip with several thresholds, and threshold, strictest first.

    On selection seeds: the mean result at the learning rate whose mean validation value is best, by
    the best checkpoint (a function by its last step), and its ``difference`` from the same without
    the clip, positive if the clip is better. The seeds that chose are those that are shown.
    """
    frame = plain(cells[(cells["role"] == Role.SELECT) & ~cells["extended"].astype(bool)])
    rows: list[dict[str, Any]] = []
    for row in arms_table[arms_table["partner"].notna()].to_dict("records"):
        task, about = Task.of(row), workload(components, row["problem"])
        mine = frame
        for name in Task._fields:
            mine = mine[mine[name] == row[name]]
        own, base = (mine[mine["arm"] == row[name]] for name in ("arm", "partner"))
        if own["threshold"].nunique() < 2 or base.empty:
            continue
        without = _best(base, about)
        for threshold, at in own.groupby("threshold", sort=True):
            best = _best(at, about)
            sign = 1 if about["higher_is_better"] else -1
            rows.append(
                {
                    **task._asdict(),
                    "arm": row["arm"],
                    "partner": row["partner"],
                    "threshold": float(threshold),
                    "relative": float(at["relative"].iloc[0]),
                    "n": int(at["seed"].nunique()),
                    "lr": best["lr"],
                    "estimate": best["value"],
                    "without": without["value"],
                    "difference": sign * (best["value"] - without["value"]),
                    "fired": float(at.loc[at["lr"] == best["lr"], "clipped_fraction"].mean()),
                }
            )
    return table_of(rows, COLUMNS)


def _best(runs: pd.DataFrame, about: Mapping[str, Any]) -> dict[str, float]:
    """The learning rate whose validation is best, and what its runs reached on test."""
    function = about["reference_loss"] is None
    judged, shown = (
        ("validation_metric", "metric_value") if function else ("best_validation", "best_metric")
    )
    higher = about["higher_is_better"] if about["judged_by_metric"] else False
    means = runs.groupby("lr")[[judged, shown]].mean()
    ranked = means[judged] if higher else -means[judged]
    if ranked.isna().all():
        return {"lr": np.nan, "value": np.nan}
    lr = float(ranked.idxmax())
    return {"lr": lr, "value": float(means.loc[lr, shown])}
