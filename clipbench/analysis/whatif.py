"""Which share of the steps a norm clip at some other threshold would have clipped, by the norms of
steps that were taken.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from clipbench.analysis.cells import table_of
from clipbench.schema import Reading
from clipbench.task import ARM

PART, PERCENTILE = 0.1, 90  # of the first steps, by which somebody could choose a threshold
THRESHOLDS = (0.1, 0.5, 1.0, 5.0, 12.0)
PERCENTILES = (50, 90, 95, 99)


def what_if(norms: np.ndarray, own: float = math.nan) -> pd.DataFrame:
    """A row per threshold of a norm clip: the share of these steps in which it would have clipped.

    ``known_from`` is the share of the steps from which somebody could know the threshold; ``share``
    is of the steps after those. Norms under another clip would be others.

    :param norms: of the raw gradients, finite, in the order of the steps.
    :param own: the threshold that the loop has; NaN if it has none.
    """
    if not len(norms):
        return pd.DataFrame(columns=["threshold", "why", "share", "known_from"])
    rows: list[dict[str, Any]] = [
        {"threshold": one, "why": "in common use", "share": _share(norms, one), "known_from": 0.0}
        for one in THRESHOLDS
        if one != own
    ]
    if not math.isnan(own):
        rows.append(
            {"threshold": own, "why": "yours", "share": _share(norms, own), "known_from": 0.0}
        )
    for percentile in PERCENTILES:
        at = float(np.percentile(norms, percentile))
        why = f"percentile {percentile} of all norms, to clip {100 - percentile} %"
        rows.append({"threshold": at, "why": why, "share": _share(norms, at), "known_from": 1.0})
    count = max(1, math.ceil(PART * len(norms)))
    at, rest = float(np.percentile(norms[:count], PERCENTILE)), norms[count:]
    why = f"percentile {PERCENTILE} of the first {100 * PART:g} % of the steps"
    share = _share(rest, at) if len(rest) else math.nan
    why += ", and what it clips of the others"
    rows.append({"threshold": at, "why": why, "share": share, "known_from": PART})
    return pd.DataFrame(rows)


def _share(norms: np.ndarray, threshold: float) -> float:
    return float((norms > threshold).mean())


def of_arms(curves: pd.DataFrame, drawn: pd.DataFrame, arms: pd.DataFrame) -> pd.DataFrame:
    """A row per optimizer without a clip, over the report runs at its chosen setting whose curves
    are stored: percentiles of the raw norm, and the shares of steps that `THRESHOLDS` would clip.

    Columns ``ARM``, ``lr``, ``runs``, ``steps``, ``p50`` and so on, ``at_0.1`` and so on.

    :param curves: with ``cell`` and ``grad_norm``.
    :param drawn: the runs that are compared, as `outcomes.draws` has them.
    :param arms: the arms, as `cells.arms` has them.
    """
    bare = arms.loc[arms["clip"] == "none", "arm"]
    chosen = drawn[(drawn["reading"] == Reading.ALL) & drawn["arm"].isin(bare)]
    chosen = chosen[chosen["cell"].notna()].drop_duplicates("cell")
    norms = curves[["cell", "grad_norm"]].merge(chosen[["cell", "lr", *ARM]], on="cell")
    rows = []
    for key, mine in norms.groupby([*ARM, "lr"], sort=False):
        sizes = mine["grad_norm"].to_numpy(dtype=float, na_value=np.nan)
        sizes = sizes[np.isfinite(sizes)]
        if not len(sizes):
            continue
        rows.append(
            {
                **dict(zip([*ARM, "lr"], key, strict=True)),
                "runs": mine["cell"].nunique(),
                "steps": len(sizes),
                **{f"p{one}": float(np.percentile(sizes, one)) for one in PERCENTILES},
                **{f"at_{one:g}": _share(sizes, one) for one in THRESHOLDS},
            }
        )
    names = [f"p{one}" for one in PERCENTILES] + [f"at_{one:g}" for one in THRESHOLDS]
    return table_of(rows, [*ARM, "lr", "runs", "steps", *names])
