"""A study beside its replica, or on one device beside another: how far the estimates moved, and
whether a verdict turned.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import special

from clipbench.schema import Verdict
from clipbench.statistics import CONFIDENCE
from clipbench.task import ARM

WORDS = {  # of a verdict that decides → what it says
    str(Verdict.BETTER): "better",
    str(Verdict.PERHAPS_BETTER): "better",
    str(Verdict.WORSE): "worse",
    str(Verdict.PERHAPS_WORSE): "worse",
    str(Verdict.SAME): "same",
}


def beside(gaps: pd.DataFrame, again: pd.DataFrame) -> pd.DataFrame:
    """A row per comparison that both have: ``difference``, ``error``, ``margin`` and ``verdict``,
    those of the replica with ``_again``.

    ``moved`` is how far the difference moved, ``allowed`` how far two such estimates may lie apart,
    at 95 %, if they were independent; they share seeds, and so should lie closer. ``turned`` says
    that the verdicts contradict each other: better against worse, or either against no difference
    that matters; ``decided`` that both say one of these.
    """
    columns = [*ARM, "difference", "error", "n", "margin", "verdict"]
    both = gaps[columns].merge(
        again[[*ARM, "difference", "error", "n", "verdict"]], on=ARM, suffixes=("", "_again")
    )
    freedom = both["n"].astype(float) + both.pop("n_again").astype(float) - 2
    moved = (both["difference_again"] - both["difference"]).astype(float)
    error = np.hypot(both["error"].astype(float), both["error_again"].astype(float))
    quantile = special.stdtrit(freedom, (1 + CONFIDENCE) / 2)
    sides = [both[name].astype(str).map(WORDS) for name in ("verdict", "verdict_again")]
    decided = sides[0].notna() & sides[1].notna()
    turned = decided & (sides[0] != sides[1])
    return both.assign(moved=moved, allowed=quantile * error, decided=decided, turned=turned)
