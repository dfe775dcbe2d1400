"""What each implementation of a clip and a step costs at each model size, and which of them is
the quickest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from clipbench import statistics
from clipbench.analysis.cells import plain, table_of

DEFAULT = "torch"  # what torch does if nothing is asked
MACHINE = ["device", "dtype", "environment", "threads"]
SIZED = [*MACHINE, "part", "parameters", "tensors", "problem", "batch"]
METHOD = [*SIZED, "optimizer", "clip", "implementation"]
Columns = Mapping[str, np.ndarray[Any, Any]]
RATIOS = ("ratio", "relative", "share")
MEASURES = [
    "size",
    "threshold",
    "blocks",
    "invalid",
    *(f"{ratio}{bound}" for ratio in RATIOS for bound in ("", "_low", "_high")),
    "seconds_5",
    "seconds_50",
    "seconds_95",
    "samples_per_second",
    "bytes_per_second",
    "peak_bytes",
    "kernels",
    "synchronisations",
]


def implementations(throughput: pd.DataFrame) -> pd.DataFrame:
    """A row for every implementation of every clip, optimizer and size that `clipbench throughput`
    has timed.

    Ratios are taken within a round; their medians have order-statistic intervals. ``ratio`` is to
    the same step without a clip, ``relative`` to the same clip and step in torch's default, and
    ``share`` is the floor's time over the measured time. Quantiles are of the seconds a step.
    Invalid blocks are counted and left out.
    """
    frame = _survey_rows(plain(throughput))
    frame["each"] = frame["seconds"] / frame["steps"]
    frame["usable"] = frame["valid"] & (frame["each"] > 0)
    sound = frame[frame["usable"]]
    frame = _with_partner(
        frame,
        sound[sound["clip"] == "none"],
        [*SIZED, "optimizer", "implementation", "block"],
        "unclipped",
    )
    frame = _with_partner(
        frame,
        sound[sound["implementation"] == DEFAULT],
        [*SIZED, "optimizer", "clip", "block"],
        "default",
    )
    measured = {name: frame[name].to_numpy() for name in frame.columns}
    rows = []
    for values, places in frame.groupby(METHOD, dropna=False, sort=True).indices.items():
        method = dict(zip(METHOD, values, strict=True))
        blocks = {name: column[places] for name, column in measured.items()}
        here = {name: column[blocks["usable"]] for name, column in blocks.items()}
        rows.append(_row(method, blocks, here))
    return table_of(rows, [*METHOD, *MEASURES])


def _row(method: Mapping[str, Any], blocks: Columns, here: Columns) -> dict[str, Any]:
    """The measures of one method over its ``blocks``, of which those that are ``here`` count."""
    first = {name: column[0] for name, column in blocks.items()}
    row = {
        **method,
        "size": _size(first),
        "blocks": len(here["each"]),
        "invalid": len(blocks["each"]) - len(here["each"]),
    }
    for name, ratios in _ratios(method, here).items():
        interval = statistics.median_interval(ratios[~np.isnan(ratios)])
        row |= {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}
    quantiles = (
        np.quantile(here["each"], [0.05, 0.5, 0.95]) if len(here["each"]) else np.full(3, np.nan)
    )
    row |= dict(zip(("seconds_5", "seconds_50", "seconds_95"), quantiles, strict=True))
    row["samples_per_second"] = method["batch"] / quantiles[1]
    row["bytes_per_second"] = first["floor_bytes"] / quantiles[1]
    same = ("threshold", "peak_bytes", "kernels", "synchronisations")
    return row | {name: first[name] for name in same}


def quickest(table: pd.DataFrame) -> pd.DataFrame:
    """For every size, optimizer and clip: torch's default (``default_*``) and the quickest
    ``implementation`` (``best_*``).

    The quickest is the one with the least ``relative``: a load that came and went slowed the
    default in the same round. If some have an interval below 1 it is one of them: an estimate that
    is least by luck must not hide one that is sure.
    """
    keys = [*SIZED, "optimizer", "clip"]
    sides = {
        name: [f"{side}_{name}" for side in ("default", "best")]
        for name in MEASURES
        if name not in ("size", "threshold")
    }
    rows = []
    for values, mine in table[table["clip"] != "none"].groupby(keys, dropna=False, sort=True):
        timed = mine[mine["blocks"] > 0]
        default = timed[timed["implementation"] == DEFAULT]
        if default.empty:
            continue
        relative = timed["relative"].where(timed["implementation"] != DEFAULT, 1.0).fillna(np.inf)
        sure = (timed["relative_high"] < 1) & (timed["implementation"] != DEFAULT)
        best = timed.loc[(relative[sure] if sure.any() else relative).idxmin()].to_dict()
        usual = default.iloc[0].to_dict()
        row = {
            **dict(zip(keys, values, strict=True)),
            "size": best["size"],
            "implementation": best["implementation"],
        }
        for name, pair in sides.items():
            row |= dict(zip(pair, (usual[name], best[name]), strict=True))
        rows.append(row)
    return table_of(
        rows, [*keys, "size", "implementation", *(name for pair in sides.values() for name in pair)]
    )


def _survey_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """The blocks of `clipbench throughput`, without the training steps that every run times."""
    frame = frame.assign(
        part=frame["part"].map(lambda part: part or "step"), threads=frame["threads"].fillna(1)
    )
    several = frame.groupby(SIZED, dropna=False)["implementation"].transform("nunique") > 1
    return frame[several | (frame["part"] == "update") | (frame["threads"] > 1)].copy()


def _with_partner(
    frame: pd.DataFrame, others: pd.DataFrame, on: list[str], name: str
) -> pd.DataFrame:
    """Every block with one more column: the seconds a step of its partner in ``others``, NaN if
    it has none.
    """
    lone = others.drop_duplicates(on)[[*on, "each"]].rename(columns={"each": name})
    return frame.merge(lone, on=on, how="left", sort=False)


def _size(row: Mapping[str, Any]) -> str:
    """The name of a size in figures and tables: a workload with its number of parameters, or the
    size's own name.
    """
    return (
        row["problem"]
        if row["workload"] is None
        else f"{row['problem']} ({int(row['parameters']):,})"
    )


def _ratios(method: Mapping[str, Any], here: Columns) -> dict[str, np.ndarray[Any, Any]]:
    """The ratios of a method in each round; empty for the ratio of a thing to itself."""
    taken = {
        "ratio": here["each"] / here["unclipped"],
        "relative": here["each"] / here["default"],
    }
    taken["share"] = here["floor_seconds"] / here["each"]
    if method["clip"] == "none":
        taken["ratio"] = taken["ratio"][:0]
    if method["implementation"] == DEFAULT:
        taken["relative"] = taken["relative"][:0]
    return taken
