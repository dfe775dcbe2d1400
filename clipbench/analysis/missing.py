"""Cells that failed or have no value, and comparisons of mixed cells: a report must name them."""

from __future__ import annotations

from typing import Any

import pandas as pd

from clipbench.analysis.cells import Components, plain, table_of, workload
from clipbench.analysis.outcomes import without_value
from clipbench.schema import Status
from clipbench.selection import POINT
from clipbench.task import ARM, TASK


def failures(cells: pd.DataFrame) -> pd.DataFrame:
    """Every failed cell with its reason."""
    frame = plain(cells[cells["status"] == Status.FAILED])
    return frame.sort_values([*ARM, "role", "lr", "threshold", "seed"])[
        [*ARM, "role", *POINT, "seed", "attempt", "reason", "cell"]
    ]


def mixtures(cells: pd.DataFrame) -> list[dict[str, Any]]:
    """The tasks and roles whose cells come from several engines, environments or thread counts,
    with how many of each.
    """
    mixed = []
    for task, rows in plain(cells).groupby([*TASK, "role"], sort=True):
        for column in ("environment", "engine", "threads"):
            values = rows[column].value_counts().sort_index()
            if len(values) > 1:
                shown = {_text(value): int(number) for value, number in values.items()}
                mixed.append(
                    {
                        **dict(zip([*TASK, "role"], task, strict=True)),
                        "column": column,
                        "values": shown,
                    }
                )
    return mixed


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def valueless(drawn: pd.DataFrame, components: Components) -> pd.DataFrame:
    """The report cells that ran, did not diverge, and have no metric."""
    ran = drawn.drop_duplicates("cell")
    lacking = [
        seeds[without_value(seeds, workload(components, problem))]
        for problem, seeds in ran.groupby("problem", sort=True)
    ]
    columns = [*ARM, "seed", *POINT, "ended", "cell"]
    return (
        pd.concat(lacking).sort_values([*ARM, "seed"])[columns]
        if lacking
        else table_of([], columns)
    )
