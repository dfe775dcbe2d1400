"""The selection phase: the whole grid of settings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from clipbench.analysis.cells import Components, plain, table_of, workload
from clipbench.analysis.outcomes import COUNTS, succeeded, without_value, worst_filled
from clipbench.selection import POINT
from clipbench.task import ARM, THRESHOLD, Threshold


def grid(cells: pd.DataFrame, components: Components) -> pd.DataFrame:
    """A row per task, arm and setting on the selection seeds: how they ended, and what ``value`` stands for them.

    ``statistic`` says which: the ``mean`` metric of the ``valued`` seeds, those that have one, or, where the outcome is all or
    nothing, the ``share`` of them that succeeded (a diverged one did not). ``no_value`` counts the seeds that ran, did not
    diverge and have no metric.
    """
    frame = _ended(cells)
    frame["statistic"], frame["no_value"] = "mean", 0
    frame["value"] = frame["metric_value"].where(frame["ended"] != "diverged").astype(float)
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


def _ended(cells: pd.DataFrame) -> pd.DataFrame:
    """The selection cells with ``ended``: an outcome, or ``failed``."""
    frame = plain(cells[cells["role"] == "select"])
    return frame.assign(ended=np.where(frame["status"] == "failed", "failed", frame["outcome"].astype(object)))


def stable(cells: pd.DataFrame) -> pd.DataFrame:
    """Which learning rates are stable: every selection seed learned.

    A row per task, arm and ``basis``: ``no clip``; ``best threshold`` (at each lr some threshold is stable); ``one threshold``
    (the one with the widest range). ``low`` and ``high`` bound the longest unbroken stretch of the tried axis, ``below`` and
    ``above`` say that it reaches the axis's end, so that the true range may go on; ``lrs`` lists every stable lr, ``tried`` the
    axis.
    """
    rows = []
    ended = _ended(cells)
    settled = ended.assign(stable=ended["ended"] == "learned").groupby([*ARM, *POINT], dropna=False, sort=True)["stable"]
    for key, arm in settled.all().reset_index().groupby(ARM, sort=True):
        place = dict(zip(ARM, key, strict=True))
        axis = sorted(arm["lr"].unique())
        absent = all(Threshold.of(row).absent for row in arm.to_dict("records"))
        basis = "no clip" if absent else "best threshold"
        rows.append({**place, "basis": basis, **Threshold().columns, **_stretch(axis, arm.loc[arm["stable"], "lr"])})
        if absent:
            continue
        fixed = []
        for pair, one in arm.groupby(THRESHOLD, dropna=False, sort=True):
            fixed.append({**Threshold(*pair).columns, **_stretch(axis, one.loc[one["stable"], "lr"])})
        rows.append({**place, "basis": "one threshold", **max(fixed, key=lambda row: (row["decades"], len(row["lrs"])))})
    columns = [*ARM, "basis", *THRESHOLD, "low", "high", "decades", "below", "above", "lrs", "tried"]
    return table_of(rows, columns)


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
    factors = arms_table.loc[arms_table["momentum"].notna(), [*ARM, "momentum"]]
    found = ranges[ranges["basis"] != "one threshold"].merge(factors, on=ARM, how="inner", sort=False)
    return found.assign(factor=1 / (1 - found["momentum"].astype(float)))


def notes(arms_table: pd.DataFrame) -> list[str]:
    """What a reader of learning rates must know of the optimizers compared."""
    told = [
        f"Momentum with μ = {value:g} moves by lr/(1 − μ) = {1 / (1 - value):.3g} × lr a step in a steady direction, so that its "
        "learning rates sit lower than those of plain SGD by about that factor; its ranges are drawn against lr/(1 − μ) as well."
        for value in sorted(arms_table["momentum"].dropna().unique())
    ]
    told += [
        f"RMSprop has no bias correction: its running mean of squares starts at zero, so that with α = {value:g} its first step "
        f"is 1/√(1 − α) = {1 / math.sqrt(1 - value):.3g} times lr for every weight. "
        "Clipping before that division cannot shorten it."
        for value in sorted(arms_table["alpha"].dropna().unique())
    ]
    return told


def fired(cells: pd.DataFrame) -> pd.DataFrame:
    """Share of steps clipped against the threshold: a row per task, arm and threshold, over all learning rates."""
    frame = plain(cells[(cells["role"] == "select") & (cells["clip"] != "none")])
    frame = frame[frame["clipped_fraction"].notna()]
    table = frame.groupby([*ARM, *THRESHOLD], dropna=False, sort=True)["clipped_fraction"]
    shares = table.agg(cells="size", median="median", low="min", high="max").reset_index()
    return shares.assign(place=[Threshold.of(row).given for row in shares.to_dict("records")])
