"""How cells ended, and the events on the way."""

from __future__ import annotations

import pandas as pd

from clipbench.analysis.cells import counts, plain, table_of
from clipbench.schema import Kind, Outcome
from clipbench.selection import POINT
from clipbench.task import ARM


def events(store_events: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """Every event of the compared cells, with the cell's arm and setting, worst kinds first."""
    merged = plain(store_events).merge(
        plain(cells)[["cell", *ARM, "role", "seed", *POINT, "status", "outcome"]],
        on="cell",
        how="inner",
        sort=False,
    )
    merged["rank"] = (
        merged["kind"].map({kind: rank for rank, kind in enumerate(Kind)}).fillna(len(Kind))
    )
    order = ["rank", *ARM, "role", "lr", "threshold", "seed", "step"]
    columns = [*ARM, "role", "seed", *POINT, "step", "kind", "value", "detail", "outcome", "cell"]
    return merged.sort_values(order, kind="stable")[columns].reset_index(drop=True)


def event_counts(recorded: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """Cells with at least one event of each kind, by task and arm.

    ``cells`` is the number of the arm's cells in all phases; their outcomes are counted as well.
    """
    compared = plain(cells)[[*ARM, "outcome", "status", "cell"]]
    rows = []
    for arm_columns, arm in compared.groupby(ARM, sort=True):
        mine = recorded[recorded["cell"].isin(arm["cell"])]
        touched = mine.groupby("kind")["cell"].nunique()
        ended = counts(arm)
        rows.append(
            {
                **dict(zip(ARM, arm_columns, strict=True)),
                **ended,
                **{str(kind): int(touched.get(kind, 0)) for kind in Kind},
            }
        )
    return table_of(rows, [*ARM, "cells", *Outcome, "failed", *Kind])
