"""Whether clipping overfits less: what an early stop gains over the last step, with a clip and
without, and the validation loss on the way.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from clipbench.analysis.cells import Components, plain, table_of, workload
from clipbench.schema import Outcome, Reading, Status
from clipbench.skill import LOSS
from clipbench.task import ARM

COLUMNS = [*ARM, "partner", "n", "stopping_without", "stopping", "overconfident_without"]
COLUMNS += ["overconfident"]


def stopping(
    levels: pd.DataFrame,
    gaps: pd.DataFrame,
    components: Components,
    cells: pd.DataFrame,
    events: pd.DataFrame,
) -> pd.DataFrame:
    """A row per clip and task: what the best checkpoint is expected to have over the last step on
    test (``stopping``, positive if an early stop is better), and the share of runs that became
    overconfident; with the clip and without.
    """
    sure = set(events.loc[events["kind"] == "overconfident", "cell"])
    frame = plain(cells[cells["status"] != Status.FAILED])
    frame = frame.assign(sure=frame["cell"].isin(sure).astype(float))
    share = frame.groupby(ARM)["sure"].mean().to_dict()
    by_grade = {
        grade: rows.set_index(ARM)["estimate"].to_dict() for grade, rows in levels.groupby("grade")
    }
    rows = []
    for row in gaps.to_dict("records"):
        sign = 1 if workload(components, row["problem"])["higher_is_better"] else -1
        one = {name: row[name] for name in (*ARM, "partner", "n")}
        for side, arm in (("", row["arm"]), ("_without", row["partner"])):
            key = (*(row[name] for name in ARM[:-1]), arm)
            best, last = (by_grade.get(grade, {}).get(key, np.nan) for grade in ("best", "last"))
            one[f"stopping{side}"] = sign * (best - last)
            one[f"overconfident{side}"] = share.get(key, np.nan)
        if not np.isnan(one["stopping"]):
            rows.append(one)
    return table_of(rows, COLUMNS)


def going_on(drawn: pd.DataFrame) -> pd.DataFrame:
    """The report runs at the chosen setting that did not diverge."""
    return drawn[(drawn["reading"] == Reading.ALL) & (drawn["ended"] != Outcome.DIVERGED)]


def validation(evals: pd.DataFrame, chosen: pd.DataFrame) -> pd.DataFrame:
    """The median validation loss of the ``chosen`` runs, a row per task, arm and evaluated step."""
    mine = evals[(evals["split"] == "validation") & (evals["metric"] == LOSS)]
    mine = plain(mine)[["cell", "step", "value"]].merge(chosen[[*ARM, "cell"]], on="cell")
    return mine.groupby([*ARM, "step"], as_index=False)["value"].median()
