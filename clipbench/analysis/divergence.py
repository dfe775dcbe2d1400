"""Whether a clip prevents divergence: how many of the runs of a whole axis are lost, with it and
without, and what a divergence looks like.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from clipbench import statistics
from clipbench.analysis.cells import Components, plain, table_of
from clipbench.analysis.headline import Axis, declared
from clipbench.schema import Role, Status
from clipbench.task import ARM, Task

AROUND = 50  # steps before a divergence that are looked at, and after, if there are any
COLUMNS = [*ARM, "partner", "n", "tries", "diverged_without", "diverged", "lost_without", "lost"]
COLUMNS += ["fewer", "low", "high"]


def prevented(
    found: Mapping[tuple[Task, str, str], Axis], arms_table: pd.DataFrame, components: Components
) -> pd.DataFrame:
    """A row per clip and task: the share of the runs along all learning rates that diverged, and
    that were lost (diverged, collapsed or stalled), without the clip and with it.

    ``fewer`` is how much smaller the lost share is with it, with a 95 % interval over the ``n``
    seeds, each with its whole axis.
    """
    rows = []
    for family in declared(arms_table, components, None):
        for task, arm, partner in family.pairs:
            sides = [found.get((task, one, "last")) for one in (arm, partner)]
            if sides[0] is None or sides[1] is None or list(sides[0].seeds) != list(sides[1].seeds):
                continue
            mine, other = sides[0], sides[1]
            known = np.isfinite(mine.lost).all(axis=0) & np.isfinite(other.lost).all(axis=0)
            if not known.any():
                continue
            lost, without = mine.lost[:, known].mean(axis=0), other.lost[:, known].mean(axis=0)
            fewer = statistics.mean_interval(without - lost)
            rows.append(
                {
                    **task._asdict(),
                    "arm": arm,
                    "partner": partner,
                    "n": int(known.sum()),
                    "tries": len(mine.points),
                    "diverged": float(mine.diverged[:, known].mean()),
                    "diverged_without": float(other.diverged[:, known].mean()),
                    "lost": float(lost.mean()),
                    "lost_without": float(without.mean()),
                    "fewer": fewer.estimate,
                    "low": fewer.low,
                    "high": fewer.high,
                }
            )
    return table_of(rows, COLUMNS)


def first_diverged(cells: pd.DataFrame) -> pd.DataFrame:
    """The first diverged report run of every arm, by lr and seed."""
    reported = (cells["role"] == Role.REPORT) & (cells["status"] == Status.DIVERGED)
    frame = plain(cells[reported])
    return frame.sort_values(["problem", "arm", "lr", "seed"]).drop_duplicates(["problem", "arm"])


def anatomy(curves: pd.DataFrame, first: pd.DataFrame, most: int = 4) -> pd.DataFrame:
    """The curves of up to ``most`` of the runs of `first_diverged`, from `AROUND` steps before the
    event on: columns ``cell``, ``step``, ``loss``, ``grad_norm`` and those of the cell.
    """
    shown = first[first["cell"].isin(set(curves["cell"]))].head(most)
    columns = [*ARM, "cell", "lr", "seed", "reason", "diverged_at"]
    mine = plain(curves[curves["cell"].isin(shown["cell"])])
    mine = mine[["cell", "step", "loss", "grad_norm"]].merge(shown[columns], on="cell")
    return mine[(mine["step"] - mine["diverged_at"]).abs() <= AROUND]
