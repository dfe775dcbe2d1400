"""Which of the named methods are compared with plain SGD."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from clipbench.selection import BASELINE, methods
from clipbench.task import ARM


def headline_pairs(arms_table: pd.DataFrame, headline: Mapping[str, str]) -> pd.DataFrame:
    """The named methods, each against plain SGD; no pairs if the study has no plain SGD, for
    nothing else may take its name.
    """
    baseline = headline.get(BASELINE)
    if baseline not in set(arms_table["arm"]):
        return pd.DataFrame(columns=[*ARM, "baseline"])
    others = [arm for name, arm in methods(headline).items() if name != BASELINE]
    return arms_table[arms_table["arm"].isin(others)][ARM].assign(baseline=baseline)
