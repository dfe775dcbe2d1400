"""What a hover over the table of the answer adds: what a problem is, and on how much a number
rests.

It knows the rows of that table, and not how a page shows it.
"""

from __future__ import annotations

import math

from clipbench.report.problems import WHAT
from clipbench.report.words import Row, percent, short, signed

PROBLEM, LEVELS, LOST, FIRED, COST = (
    "problem",
    "levels",
    "lost",
    "fired",
    "cost",
)  # columns of the table


def titles(row: Row, workload: str) -> dict[str, str]:
    """Column → what a hover adds: what the problem is, by its workload's registered name, and on
    how much a number rests.
    """
    said, seeds = {}, f"{row['n']:.0f} seeds"
    if workload in WHAT:
        said[PROBLEM] = WHAT[workload]
    if not math.isnan(row["share"]):
        said[LEVELS] = (
            f"lr {short(row['lr_without'])} in {percent(row['share_without'])} of the choices "
            f"without, lr {short(row['lr'])} in {percent(row['share'])} with"
        )
    if not math.isnan(row["lost_low"]):
        both = [
            f"{percent(row[name])} [{percent(row[f'{name}_low'])}, {percent(row[f'{name}_high'])}]"
            for name in ("lost_without", "lost")
        ]
        said[LOST] = f"{' → '.join(both)} of {seeds}, 95 % by Wilson"
    if not math.isnan(row["fired_low"]):
        said[FIRED] = (
            f"fired in {percent(row['fired_low'])} to {percent(row['fired_high'])} of the steps of "
            f"a run, over {seeds}"
        )
    if row["cost_blocks"] > 0:
        ends = [signed(100 * (row[f"cost_{end}"] - 1), 0) for end in ("low", "high")]
        said[COST] = (
            f"[{ends[0]}, {ends[1]}] %, the median of {row['cost_blocks']:.0f} timed blocks"
        )
    return said
