"""Published results beside a store's own: what the claims ask for, and what was seen.

The cells of a claim are found among the selection cells by their settings, so that any study which
has them is judged by the claim, once it has run as many of them as the claim asks for.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from clipbench.analysis.cells import Components, plain, table_of, workload
from clipbench.analysis.claims import (
    CLAIMS,
    GAP,
    INF,
    PEAK,
    SHARE,
    STEPS,
    TYPICAL_PEAK,
    Claim,
    Side,
)
from clipbench.analysis.outcomes import succeeded
from clipbench.schema import Role, Status

COLUMNS = [
    "claim",
    "source",
    "setting",
    "says",
    "wanted",
    "measure",
    "side",
    "n",
    "seen",
    "low",
    "high",
    "complete",
    "holds",
]


def published(cells: pd.DataFrame, components: Components) -> pd.DataFrame:
    """A row per side of every claim, if each of its sides has at least one run.

    ``COLUMNS``: ``setting`` says whose experiment it is (`claims.Setting`); ``n`` counts runs that
    did not fail; the value ``seen`` must lie between ``low`` and ``high``, which are infinite if
    there is no bound. ``complete`` and ``holds`` are of the whole claim: whether as many runs as it
    needs did not fail, and whether it holds; an incomplete claim never holds.
    """
    rows = []
    for claim, sides in _met(cells):
        ran = [side[side["status"] != Status.FAILED] for side in sides]
        complete = all(_enough(mine, claim.runs) for mine in ran)
        seen = [_value(side, claim.measure, components) for side in ran]
        within = all(
            side.low <= value <= side.high for side, value in zip(claim.sides, seen, strict=True)
        )
        shared = {
            "claim": claim.what,
            "source": claim.source,
            "setting": str(claim.setting),
            "says": claim.says,
            "wanted": claim.wanted,
            "measure": claim.measure,
        }
        ends = {"complete": complete, "holds": bool(complete and within and claim.between(seen))}
        rows += [
            {
                **shared,
                "side": side.label,
                "n": len(mine),
                "seen": value,
                "low": side.low,
                "high": side.high,
                **ends,
            }
            for side, mine, value in zip(claim.sides, ran, seen, strict=True)
        ]
    return table_of(rows, COLUMNS)


def behind(cells: pd.DataFrame) -> set[str]:
    """The cells that the sides of the claims are made of."""
    return {cell for _, sides in _met(cells) for side in sides for cell in side["cell"]}


def _met(cells: pd.DataFrame) -> Iterator[tuple[Claim, list[pd.DataFrame]]]:
    """Each claim with the runs of its sides, if each of these has at least one."""
    frame = plain(
        cells[
            (cells["role"] == Role.SELECT)
            & (cells["optimizer"] == "sgd")
            & (cells["dtype"] == "float64")
        ]
    )
    documents = frame["settings"].map(json.loads)
    frame = frame.assign(
        own=[document["workload"]["settings"] for document in documents],
        asked=[document["steps"] for document in documents],
        bare=[not document["optimizer"]["settings"] for document in documents],
        beside=[_clip_settings(document["clip"]["settings"]) for document in documents],
        value=frame["metric_value"],
        ended=frame["outcome"],
    )
    for claim in CLAIMS:
        sides = [_of(frame, claim, side) for side in claim.sides]
        if not any(side.empty for side in sides):
            yield claim, sides


def _clip_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A clip's settings without its threshold, which has a column of its own."""
    return {
        name: value for name, value in settings.items() if name not in ("max_norm", "max_value")
    }


def _of(frame: pd.DataFrame, claim: Claim, side: Side) -> pd.DataFrame:
    settings = {**claim.settings, **side.settings}
    mine = frame[
        (frame["workload"] == claim.workload)
        & (frame["clip"] == side.clip)
        & (frame["asked"] == claim.steps)
    ]
    mine = mine[mine["bare"] & mine["relative"].isna() & (mine["batch"] == claim.batch)]
    mine = mine[
        (mine["own"].map(lambda own: own == settings))
        & mine["beside"].map(lambda beside: beside == side.clip_settings)
    ]
    if side.threshold is not None:
        mine = mine[mine["threshold"] == side.threshold]
    mine = mine if side.lr is None else mine[mine["lr"] == side.lr]
    # the processor's if two devices ran the same
    return mine[mine["device"] == mine["device"].min()]


def _enough(mine: pd.DataFrame, runs: int) -> bool:
    """Whether every rate of a side has its runs."""
    return len(mine) > 0 and bool((mine.groupby("lr").size() >= runs).all())


def _value(mine: pd.DataFrame, measure: str, components: Components) -> float:
    """The value of a side's runs in a measure; a run without a value, such as a diverged one,
    counts as the worst.
    """
    if mine.empty:
        return math.nan
    if measure == SHARE:
        return float(succeeded(mine, workload(components, str(mine["problem"].iloc[0]))).mean())
    if measure == STEPS:
        return float(mine["stationary_at"].astype(float).fillna(INF).min())
    if measure in (PEAK, TYPICAL_PEAK):
        peaks = mine["peak_ratio"].astype(float).fillna(INF)
        return float(peaks.max() if measure == PEAK else peaks.median())
    if measure == GAP:
        return float((10 ** mine["metric_value"].astype(float)).fillna(INF).mean())
    return float(np.nan_to_num(mine["metric_value"].to_numpy(dtype=float)).mean())
