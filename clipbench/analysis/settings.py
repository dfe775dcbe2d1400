"""The selection phase: the whole grid of settings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from clipbench.analysis.cells import plain, table_of
from clipbench.analysis.outcomes import COUNTS
from clipbench.selection import GROUP, POINT


def grid(cells: pd.DataFrame) -> pd.DataFrame:
    """A row per task, arm and setting on the selection seeds: how they ended, and the mean metric of the ``valued``."""
    frame = plain(cells[cells["role"] == "select"])
    frame["ended"] = np.where(frame["status"] == "failed", "failed", frame["outcome"].astype(object))
    frame["value"] = np.where(np.isfinite(frame["metric_value"]) & (frame["ended"] != "diverged"), frame["metric_value"], np.nan)
    for name in COUNTS[:-1]:
        frame[name] = (frame["ended"] == name).astype(int)
    wanted = {name: (name, "sum") for name in COUNTS[:-1]}
    table = frame.groupby([*GROUP, *POINT], dropna=False, sort=True).agg(
        seeds=("cell", "size"),
        **wanted,
        value=("value", "mean"),
        valued=("value", "count"),
        clipped_fraction=("clipped_fraction", "mean"),
        extended=("extended", "any"),
    )
    return table.reset_index()


def stable(cells: pd.DataFrame) -> pd.DataFrame:
    """Which learning rates are stable: every selection seed learned.

    A row per task, arm and ``basis``: ``no clip``; ``best threshold`` (at each lr some threshold is stable); ``one threshold``
    (the one with
    the widest range). ``low`` and ``high`` bound the longest unbroken stretch of the tried axis, ``below`` and ``above`` say
    that it
    reaches the axis's end, so that the true range may go on; ``lrs`` lists every stable lr, ``tried`` the axis.
    """
    rows = []
    for key, settings in grid(cells).groupby(GROUP, sort=True):
        place = dict(zip(GROUP, key, strict=True))
        axis = sorted(settings["lr"].unique())
        arm = settings.assign(stable=settings["learned"] == settings["seeds"])
        if arm["threshold"].isna().all() and arm["relative"].isna().all():
            rows.append({**place, "basis": "no clip", **_blank(), **_stretch(axis, arm.loc[arm["stable"], "lr"])})
            continue
        rows.append({**place, "basis": "best threshold", **_blank(), **_stretch(axis, arm.loc[arm["stable"], "lr"])})
        fixed = []
        for (threshold, relative), one in arm.groupby(["threshold", "relative"], dropna=False, sort=True):
            fixed.append({"threshold": threshold, "relative": relative, **_stretch(axis, one.loc[one["stable"], "lr"])})
        rows.append({**place, "basis": "one threshold", **max(fixed, key=lambda row: (row["decades"], len(row["lrs"])))})
    columns = [*GROUP, "basis", "threshold", "relative", "low", "high", "decades", "below", "above", "lrs", "tried"]
    return table_of(rows, columns)


def _blank() -> dict[str, float]:
    return {"threshold": math.nan, "relative": math.nan}


def _stretch(axis: Sequence[float], stable_lrs: Iterable[float]) -> dict[str, Any]:
    """The longest unbroken stretch of ``axis`` inside ``stable_lrs``; of equal ones the hottest."""
    found = set(stable_lrs)
    best: list[float] = []
    run: list[float] = []
    for lr in axis:
        run = [*run, lr] if lr in found else []
        if run and (not best or run[-1] / run[0] >= best[-1] / best[0]):
            best = run
    low, high = (best[0], best[-1]) if best else (math.nan, math.nan)
    return {
        "low": low,
        "high": high,
        "decades": math.log10(high / low) if best else -1.0,
        "below": bool(best) and low == axis[0],
        "above": bool(best) and high == axis[-1],
        "lrs": tuple(sorted(found)),
        "tried": tuple(axis),
    }


def effective(ranges: pd.DataFrame, arms_table: pd.DataFrame) -> pd.DataFrame:
    """The ranges of momentum arms with ``factor`` = 1/(1 − μ): a steady gradient moves them by lr times that a step."""
    factors = arms_table.loc[arms_table["momentum"].notna(), [*GROUP, "momentum"]]
    found = ranges[ranges["basis"] != "one threshold"].merge(factors, on=GROUP, how="inner", sort=False)
    return found.assign(factor=1 / (1 - found["momentum"].astype(float)))


def notes(arms_table: pd.DataFrame) -> list[str]:
    """What a reader of learning rates must know of the optimizers compared."""
    told = [
        f"Momentum with μ = {value:g} moves by lr/(1 − μ) = {1 / (1 - value):.3g} × lr a step in a steady direction, so that its "
        "learning rates sit lower than those of plain SGD by about that factor; its ranges are drawn against lr/(1 − μ) as well."
        for value in sorted(arms_table["momentum"].dropna().unique())
    ]
    if (arms_table["optimizer"] == "rmsprop").any():
        told.append(
            "RMSprop has no bias correction: its running mean of squares starts at zero, so that with α = 0.99 its first "
            "step is ten times lr for every weight. "
            "Clipping before that division cannot shorten it."
        )
    return told


def fired(cells: pd.DataFrame) -> pd.DataFrame:
    """Share of steps clipped against the threshold: a row per task, arm and threshold, over all learning rates."""
    frame = plain(cells[(cells["role"] == "select") & (cells["clip"] != "none")])
    frame = frame[frame["clipped_fraction"].notna()]
    table = frame.groupby([*GROUP, "threshold", "relative"], dropna=False, sort=True)["clipped_fraction"]
    shares = table.agg(cells="size", median="median", low="min", high="max").reset_index()
    return shares.assign(place=shares["relative"].where(shares["relative"].notna(), shares["threshold"]))
