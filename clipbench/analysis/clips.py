"""Clips against their own optimizer without a clip, and the declared family of claims about
them.
"""

from __future__ import annotations

import pandas as pd

from clipbench import statistics
from clipbench.analysis.cells import Components
from clipbench.analysis.outcomes import compare
from clipbench.comparisons import CLAIMED
from clipbench.schema import Reading
from clipbench.task import ARM


def clip_pairs(arms_table: pd.DataFrame) -> pd.DataFrame:
    """Every clipped arm against the same optimizer unclipped."""
    clipped = arms_table[arms_table["partner"].notna()]
    return clipped[ARM].assign(baseline=clipped["partner"])


def against_lower_lr(
    drawn: pd.DataFrame, lowered: pd.DataFrame, components: Components
) -> pd.DataFrame:
    """Every clip that fires in most steps against its optimizer without it, at the learning rate
    that it amounts to: the clip's setting is the chosen one, ``lr`` the lower one.
    """
    lrs = lowered[[*ARM, "lr"]].drop_duplicates()
    named = lowered.assign(arm=[f"{arm}, lower lr" for arm in lowered["arm"]])
    pairs = lrs[ARM].assign(baseline=[f"{arm}, lower lr" for arm in lrs["arm"]])
    chosen = drawn[drawn["reading"] == Reading.ALL]
    both = pd.concat([chosen, named[[name for name in chosen if name in named]]])
    return compare(both, pairs, components).merge(lrs, on=ARM)


def claims(drawn: pd.DataFrame, arms_table: pd.DataFrame, components: Components) -> pd.DataFrame:
    """The declared family, {norm, value} × optimizer × workload at all settings, with
    Holm-corrected p (``holm``).

    A clip that never fired stays in the family with p = 1: it was declared. What is incomplete is
    not testable.
    """
    family = clip_pairs(arms_table[arms_table["clip"].isin(CLAIMED)])
    table = compare(drawn[drawn["reading"] == Reading.ALL], family, components)
    table["holm"] = statistics.holm(table["p"].to_numpy(dtype=float))
    return table
