"""How often a clip fires: the share of steps it altered, by its threshold."""

from __future__ import annotations

import pandas as pd

from clipbench.analysis.cells import plain
from clipbench.schema import Role
from clipbench.task import ARM, THRESHOLD


def fired(cells: pd.DataFrame) -> pd.DataFrame:
    """Share of steps clipped against the threshold: a row per task, arm and threshold, over all
    learning rates.
    """
    frame = plain(cells[(cells["role"] == Role.SELECT) & (cells["clip"] != "none")])
    frame = frame[frame["clipped_fraction"].notna()]
    table = frame.groupby([*ARM, *THRESHOLD], dropna=False, sort=True)["clipped_fraction"]
    shares = table.agg(cells="size", median="median", low="min", high="max").reset_index()
    # A percentile stands where it lies among the multiples, if there are any.
    shares["unit"] = shares["threshold"] / shares["relative"]
    unit = shares.groupby(ARM)["unit"].transform("median").fillna(1.0)
    place = shares["relative"].fillna(shares["threshold"] / unit)
    return shares.drop(columns="unit").assign(place=place)
