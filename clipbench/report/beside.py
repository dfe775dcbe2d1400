"""The same comparisons made twice, in words and as a table: by a replica, by another device.

Shared by the sections. It knows none of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from clipbench.report.evidence import Evidence
from clipbench.report.parts import Table
from clipbench.report.words import fixed, signed
from clipbench.schema import Verdict


def told(both: pd.DataFrame) -> str:
    """How many of the comparisons say the same, have turned, and have moved: rows of
    `analysis.replicas.beside`. It goes on in a sentence that says where they were made.
    """
    whole = both[(both[["verdict", "verdict_again"]] != Verdict.INCOMPLETE).all(axis=1)]
    turned = int(whole["turned"].sum())
    alike = int((whole["verdict"] == whole["verdict_again"]).sum())
    decided = int(whole["decided"].sum())
    known = both[both["allowed"].notna()]
    inside = int((known["moved"].abs() <= known["allowed"]).sum())
    lacking = len(both) - len(whole)
    turns = f"**{turned} {'turns' if turned == 1 else 'turn'}**" if turned else "none turns"
    return (
        f"{alike} of {len(whole)} comparisons have the same words"
        f"{f', and {lacking} more lack runs' if lacking else ''}. Of {decided} that are decided in "
        f"both {turns} (better against worse, or either against no difference that matters). "
        f"{inside} of {len(known)} estimates with an error moved by no more than 95 % of two "
        "independent ones would."
    )


def table(
    evidence: Evidence,
    mine: pd.DataFrame,
    name: str,
    caption: str,
    places: int,
    head: Sequence[str],
) -> Table:
    """A row per comparison of one task.

    :param places: decimals of the differences.
    :param head: how the two differences and the two verdicts are called.
    """
    rows = [
        [
            evidence.short(row["arm"]),
            signed(row["difference"], places),
            signed(row["difference_again"], places),
            signed(row["moved"], places),
            fixed(row["allowed"], places),
            str(row["verdict"]),
            str(row["verdict_again"]) + " (turned)" * row["turned"],
        ]
        for row in mine.to_dict("records")
    ]
    one, other, verdict, verdict_again = head
    named = ["clip", one, other, "moved", "allowed", verdict, verdict_again]
    return Table(name, caption, named, rows, evidence.labelled(mine))
