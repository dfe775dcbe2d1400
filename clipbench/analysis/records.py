"""What was recorded beside the results: cost, events, failures, curves."""

from __future__ import annotations

import numpy as np
import pandas as pd

from clipbench import schema, statistics
from clipbench.analysis.cells import Components, counts, plain, table_of, workload
from clipbench.selection import POINT
from clipbench.task import ARM

TIMED = ["problem", "optimizer", "batch", "device", "dtype", "environment", "implementation"]
CURVE_POINTS = 150


def cost(throughput: pd.DataFrame) -> pd.DataFrame:
    """What each clip costs: the median over blocks of its step time over the unclipped one's beside it, with its interval.

    Of the whole training step on one thread, as every run times it; timings of different environments are different rows. Invalid
    blocks are counted (``invalid``) and left out.
    Also step time quantiles, samples per second and peak memory.
    """
    frame = plain(throughput)
    frame = frame[(frame["part"] != "update") & ~(frame["threads"] > 1)].astype({"batch": np.int64})
    timed = [*TIMED, "clip", "threshold"]
    frame["step_seconds"] = frame["seconds"] / frame["steps"]
    frame["usable"] = frame["valid"] & (frame["step_seconds"] > 0)
    pairing = [*TIMED, "block"]
    base = frame[frame["usable"] & (frame["clip"] == "none")].drop_duplicates(pairing)[[*pairing, "step_seconds"]]
    paired = frame.merge(base.rename(columns={"step_seconds": "base_seconds"}), on=pairing, how="left", sort=False)
    rows = []
    for key, blocks in paired.groupby(timed, dropna=False, sort=True):
        place = dict(zip(timed, key, strict=True))
        here = blocks[blocks["usable"]]
        ratio = here["step_seconds"] / here["base_seconds"]
        interval = statistics.median_interval(ratio.dropna()) if place["clip"] != "none" else statistics.NOTHING
        quantiles = here["step_seconds"].quantile([0.05, 0.5, 0.95]).to_numpy() if len(here) else np.full(3, np.nan)
        rows.append(
            {
                **place,
                "blocks": len(here),
                "invalid": int(len(blocks) - len(here)),
                "ratio": interval.estimate,
                "low": interval.low,
                "high": interval.high,
                "step_5": quantiles[0],
                "step_50": quantiles[1],
                "step_95": quantiles[2],
                "samples_per_second": place["batch"] / quantiles[1],
                "peak_bytes": float(here["peak_bytes"].median()) if len(here) else np.nan,
            }
        )
    measures = ["blocks", "invalid", "ratio", "low", "high", "step_5", "step_50", "step_95", "samples_per_second", "peak_bytes"]
    return table_of(rows, [*timed, *measures])


def events(store_events: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """Every event of the compared cells, with the cell's place, worst kinds first."""
    found = plain(store_events).merge(
        plain(cells)[["cell", *ARM, "role", "seed", *POINT, "status", "outcome"]], on="cell", how="inner", sort=False
    )
    found["rank"] = found["kind"].map({kind: rank for rank, kind in enumerate(schema.KINDS)}).fillna(len(schema.KINDS))
    order = ["rank", *ARM, "role", "lr", "threshold", "seed", "step"]
    columns = [*ARM, "role", "seed", *POINT, "step", "kind", "value", "detail", "outcome", "cell"]
    return found.sort_values(order, kind="stable")[columns].reset_index(drop=True)


def event_counts(found: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """Cells with at least one event of each kind, by task and arm.

    ``cells`` is how many the arm has in all phases, with their outcomes.
    """
    keys = plain(cells)[[*ARM, "outcome", "status", "cell"]]
    rows = []
    for key, arm in keys.groupby(ARM, sort=True):
        mine = found[found["cell"].isin(arm["cell"])]
        touched = mine.groupby("kind")["cell"].nunique()
        ended = counts(arm)
        rows.append({**dict(zip(ARM, key, strict=True)), **ended, **{kind: int(touched.get(kind, 0)) for kind in schema.KINDS}})
    return table_of(rows, [*ARM, "cells", *schema.OUTCOMES, "failed", *schema.KINDS])


def failures(cells: pd.DataFrame) -> pd.DataFrame:
    """Every failed cell with its reason."""
    frame = plain(cells[cells["status"] == "failed"])
    return frame.sort_values([*ARM, "role", "lr", "threshold", "seed"])[[*ARM, "role", *POINT, "seed", "attempt", "reason", "cell"]]


def curves(recorded: pd.DataFrame, drawn: pd.DataFrame, components: Components, points: int = CURVE_POINTS) -> pd.DataFrame:
    """Loss curves of the chosen settings' report seeds, thinned by block medians; loss above the optimum where that is known.

    Columns ``ARM``, ``seed``, ``cell``, ``ended``, ``step``, ``gap``. Values that are not finite are kept, as ∞.
    """
    chosen = drawn[(drawn["reading"] == "all") & drawn["cell"].notna()].drop_duplicates("cell")
    wanted = recorded[recorded["cell"].isin(chosen["cell"])][["cell", "step", "loss"]]
    lines = dict(iter(plain(wanted).sort_values(["cell", "step"]).groupby("cell", sort=True)))
    parts = []
    for row in chosen.sort_values([*ARM, "seed"]).to_dict("records"):
        line = lines.get(row["cell"])
        if line is None:
            continue
        optimum = workload(components, row["problem"])["optimum"]
        position, gap = statistics.block_medians(line["loss"].to_numpy(dtype=float) - (optimum or 0.0), points)
        place = {name: row[name] for name in [*ARM, "seed", "cell", "ended"]}
        parts.append(pd.DataFrame({**{name: [value] * len(gap) for name, value in place.items()}, "step": position, "gap": gap}))
    return pd.concat(parts, ignore_index=True) if parts else table_of([], [*ARM, "seed", "cell", "ended", "step", "gap"])
