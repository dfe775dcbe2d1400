"""The answer's first paragraph: what the verdicts say of each optimizer.

It knows the rows of the answer, and not how a page shows them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from clipbench.report.evidence import Evidence
from clipbench.report.words import Row, listed
from clipbench.schema import Verdict
from clipbench.task import Task

NAMED = 4  # optimizers, or rows, that a sentence names one by one
BETTER, WORSE, SAME, OPEN, NEVER = "better", "worse", "same", "open", "never"
UNSHOWN, NONE = "unshown", "none"
KINDS: Mapping[str, str] = {  # verdict → what it counts for; any other for nothing
    str(Verdict.BETTER): BETTER,
    str(Verdict.PERHAPS_BETTER): BETTER,
    str(Verdict.WORSE): WORSE,
    str(Verdict.PERHAPS_WORSE): WORSE,
    str(Verdict.SAME): SAME,
    str(Verdict.UNDECIDED): OPEN,
    str(Verdict.NEVER_FIRED): NEVER,
}
STATES = (BETTER, WORSE, UNSHOWN, SAME, OPEN, NEVER, NONE)  # in the order in which they are told


def concluded(evidence: Evidence, rows: Sequence[Row]) -> dict[str, Any]:
    """What the template of the conclusion names: ``groups``, the optimizers of which the same may
    be said, and how many rows are ``open`` of all that are ``compared``.

    An optimizer with a gain and a loss is in two groups, so that no sentence has both.
    """
    of_optimizer: dict[str, list[Row]] = {}
    for row in rows:
        of_optimizer.setdefault(evidence.short(row["partner"]), []).append(row)
    groups: dict[str, list[str]] = {}
    for name, mine in of_optimizer.items():
        for state in states(row["verdict"] for row in mine):
            groups.setdefault(state, []).append(name)
    told = [
        _group(evidence, state, groups[state], [of_optimizer[one] for one in groups[state]])
        for state in STATES
        if state in groups
    ]
    return {
        "groups": told,
        "open": sum(KINDS.get(row["verdict"]) == OPEN for row in rows),
        "settled": all(one["state"] == OPEN for one in told),
        "compared": len(rows),
    }


def states(verdicts: Any) -> list[str]:
    """What may be said of an optimizer whose rows have these verdicts: some of `STATES`, two only
    if some are better and some worse.
    """
    kinds = [KINDS.get(str(one), NONE) for one in verdicts]
    met = Counter(kinds)
    if met[BETTER] or met[WORSE]:
        return [kind for kind in (BETTER, WORSE) if met[kind]]
    if len(met) == 1:
        return [kinds[0]]
    return [UNSHOWN] if met[SAME] else [OPEN] if met[OPEN] else [NONE]


def _group(
    evidence: Evidence, state: str, names: Sequence[str], rows: Sequence[Sequence[Row]]
) -> dict[str, Any]:
    mine = [row for one in rows for row in one]
    counted = [row for row in mine if KINDS.get(row["verdict"]) == state]
    return {
        "state": state,
        "optimizers": listed(names) if len(names) <= NAMED else f"{len(names)} optimizers",
        "rows": len(mine),
        "count": len(counted),
        "led": sum(row["instead_low"] > 0 for row in counted),
        "places": [_place(evidence, row, len(names)) for row in counted]
        if len(counted) <= NAMED
        else [],
    }


def _place(evidence: Evidence, row: Row, optimizers: int) -> dict[str, Any]:
    """A row as a sentence names it that has named its optimizer, if it is the only one."""
    arm = evidence.short(row["arm"])
    bare = arm.removeprefix(f"{evidence.short(row['partner'])} + ") if optimizers == 1 else arm
    return {"row": row["row"], "arm": bare, "label": evidence.labels[Task.of(row)]}
