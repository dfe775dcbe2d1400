"""What a clip costs: the ratio of the times of a training step with it and without it."""

from __future__ import annotations

import numpy as np
import pandas as pd

from clipbench import statistics
from clipbench.analysis.cells import plain, table_of

TIMED = ["problem", "optimizer", "batch", "device", "dtype", "environment", "implementation"]


MEASURES = [
    "blocks",
    "invalid",
    "ratio",
    "low",
    "high",
    "step_5",
    "step_50",
    "step_95",
    "samples_per_second",
    "peak_bytes",
]
METHOD = [*(name for name in TIMED if name not in ("device", "environment")), "clip"]
BESIDE = [*METHOD, "step", "step_b", "ratio", "cost", "cost_b", "blocks", "blocks_b"]


def cost(throughput: pd.DataFrame) -> pd.DataFrame:
    """A row per method: the median ratio, over blocks, of its step time to that of the unclipped
    block beside it.

    The times are of the whole training step on one thread, as every run times it; different
    environments are different rows. Invalid blocks are counted (``invalid``) and left out. Other
    columns are the ratio's interval, quantiles of the step time in seconds, samples per second and
    peak memory in bytes.
    """
    frame = plain(throughput)
    frame = frame[(frame["part"] != "update") & ~(frame["threads"] > 1)].astype({"batch": np.int64})
    timed = [*TIMED, "clip", "threshold"]
    frame["step_seconds"] = frame["seconds"] / frame["steps"]
    frame["usable"] = frame["valid"] & (frame["step_seconds"] > 0)
    pairing = [*TIMED, "block"]
    base = frame[frame["usable"] & (frame["clip"] == "none")].drop_duplicates(pairing)[
        [*pairing, "step_seconds"]
    ]
    paired = frame.merge(
        base.rename(columns={"step_seconds": "base_seconds"}), on=pairing, how="left", sort=False
    )
    rows = []
    for values, blocks in paired.groupby(timed, dropna=False, sort=True):
        method = dict(zip(timed, values, strict=True))
        here = blocks[blocks["usable"]]
        ratio = here["step_seconds"] / here["base_seconds"]
        interval = (
            statistics.median_interval(ratio.dropna())
            if method["clip"] != "none"
            else statistics.NOTHING
        )
        quantiles = (
            here["step_seconds"].quantile([0.05, 0.5, 0.95]).to_numpy()
            if len(here)
            else np.full(3, np.nan)
        )
        rows.append(
            {
                **method,
                "blocks": len(here),
                "invalid": int(len(blocks) - len(here)),
                "ratio": interval.estimate,
                "low": interval.low,
                "high": interval.high,
                "step_5": quantiles[0],
                "step_50": quantiles[1],
                "step_95": quantiles[2],
                "samples_per_second": method["batch"] / quantiles[1],
                "peak_bytes": float(here["peak_bytes"].median()) if len(here) else np.nan,
            }
        )
    return table_of(rows, [*timed, *MEASURES])


def side_by_side(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """A row per method that both have timed, rows of `cost`: the median ``step`` in seconds, that
    of the second (``_b``) and the ``ratio`` of the second to the first, and the ``cost`` of its
    clip in each.

    Of several environments on one side, the one with most blocks counts.
    """
    sides = [
        side[side["blocks"] > 0]
        .sort_values("blocks", kind="stable")
        .drop_duplicates(METHOD, keep="last")
        for side in (first, second)
    ]
    both = sides[0].merge(sides[1], on=METHOD, suffixes=("", "_b"))
    return both.assign(
        step=both["step_50"],
        step_b=both["step_50_b"],
        cost=both["ratio"],
        cost_b=both["ratio_b"],
        ratio=both["step_50_b"] / both["step_50"],
    )[BESIDE]
