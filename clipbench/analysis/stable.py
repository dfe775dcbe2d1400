"""Which learning rates are stable, and what a reader of them must know of each optimizer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from clipbench.analysis.cells import table_of
from clipbench.analysis.outcomes import selection_runs
from clipbench.schema import Outcome
from clipbench.selection import POINT
from clipbench.task import ARM, THRESHOLD, Threshold


def stable(cells: pd.DataFrame) -> pd.DataFrame:
    """The stable learning rates, at which every selection seed learned.

    There is a row per task, arm and ``basis``: ``no clip``; ``best threshold`` (at each lr some
    threshold is stable); ``one threshold`` (the one with the widest range). ``low`` and ``high``
    bound the longest unbroken stretch of the tried axis, ``below`` and ``above`` say that it
    reaches the axis's end, so that the true range may go on; ``lrs`` lists every stable lr,
    ``tried`` the axis.
    """
    rows = []
    ended = selection_runs(cells)
    settled = ended.assign(stable=ended["ended"] == Outcome.LEARNED).groupby(
        [*ARM, *POINT], dropna=False, sort=True
    )["stable"]
    for values, arm in settled.all().reset_index().groupby(ARM, sort=True):
        key = dict(zip(ARM, values, strict=True))
        axis = sorted(arm["lr"].unique())
        absent = all(Threshold.of(row).absent for row in arm.to_dict("records"))
        basis = "no clip" if absent else "best threshold"
        rows.append(
            {
                **key,
                "basis": basis,
                **Threshold().columns,
                **_stretch(axis, arm.loc[arm["stable"], "lr"]),
            }
        )
        if absent:
            continue
        fixed = []
        for pair, one in arm.groupby(THRESHOLD, dropna=False, sort=True):
            fixed.append(
                {**Threshold(*pair).columns, **_stretch(axis, one.loc[one["stable"], "lr"])}
            )
        rows.append(
            {
                **key,
                "basis": "one threshold",
                **max(fixed, key=lambda row: (row["decades"], len(row["lrs"]))),
            }
        )
    columns = [
        *ARM,
        "basis",
        *THRESHOLD,
        "low",
        "high",
        "decades",
        "below",
        "above",
        "lrs",
        "tried",
    ]
    return table_of(rows, columns)


def _stretch(axis: Sequence[float], stable_lrs: Iterable[float]) -> dict[str, Any]:
    """The longest unbroken stretch of ``axis`` inside ``stable_lrs``; of equal ones the hottest."""
    held = set(stable_lrs)
    best: list[float] = []
    run: list[float] = []
    for lr in axis:
        run = [*run, lr] if lr in held else []
        if run and (not best or run[-1] / run[0] >= best[-1] / best[0]):
            best = run
    low, high = (best[0], best[-1]) if best else (math.nan, math.nan)
    return {
        "low": low,
        "high": high,
        "decades": math.log10(high / low) if best else -1.0,
        "below": bool(best) and low == axis[0],
        "above": bool(best) and high == axis[-1],
        "lrs": tuple(sorted(held)),
        "tried": tuple(axis),
    }


def effective(ranges: pd.DataFrame, arms_table: pd.DataFrame) -> pd.DataFrame:
    """The ranges of momentum arms with ``factor`` = 1/(1 − μ): a steady gradient moves them by
    lr times that a step.
    """
    factors = arms_table.loc[arms_table["momentum"].notna(), [*ARM, "momentum"]]
    moving = ranges[ranges["basis"] != "one threshold"].merge(
        factors, on=ARM, how="inner", sort=False
    )
    return moving.assign(factor=1 / (1 - moving["momentum"].astype(float)))


def notes(arms_table: pd.DataFrame) -> list[str]:
    """What a reader of learning rates must know of the optimizers compared."""
    told = [
        f"Momentum with μ = {value:g} moves by lr/(1 − μ) = {1 / (1 - value):.3g} × lr a step in "
        "a steady direction, so that its learning rates sit lower than those of plain SGD by "
        "about that factor; its ranges are drawn against lr/(1 − μ) as well."
        for value in sorted(arms_table["momentum"].dropna().unique())
    ]
    told += [
        "RMSprop has no bias correction: its running mean of squares starts at zero, so that "
        f"with α = {value:g} its first step is 1/√(1 − α) = {1 / math.sqrt(1 - value):.3g} times "
        "lr for every weight. Clipping before that division cannot shorten it."
        for value in sorted(arms_table["alpha"].dropna().unique())
    ]
    return told
