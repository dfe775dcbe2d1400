"""The section on tuning a threshold: after how many tries it pays."""

from __future__ import annotations

import math
from functools import partial

import pandas as pd

from clipbench.analysis.budget import ahead
from clipbench.figures.budget import draw
from clipbench.figures.style import arm_colours
from clipbench.report.evidence import Evidence
from clipbench.report.frames import headed, picture
from clipbench.report.parts import Part, Section, Table, Text
from clipbench.report.words import (
    DASH,
    decimals,
    fixed,
    gap_places,
    metric_words,
    signed_gap,
)
from clipbench.schema import Verdict
from clipbench.task import Task

TITLE = "Which threshold?"
HOW = (
    "Here a clip has all the thresholds of the study, and so more settings than its optimizer has "
    "learning rates. Somebody tries some of them, drawn without putting back, and takes the best "
    "on validation. What is expected then is counted exactly, over all such draws. Settings are "
    "ranked on selection seeds and judged on report seeds. A run that diverged counts as chance, "
    "here by its best checkpoint as well. The optimizer without the clip stays where it is if all "
    "its learning rates are tried. From the number of tries under “ahead from” on, the clip is "
    "ahead; then comes by how much if all settings are tried, with a 95 % interval over report "
    "seeds, the ranking as it is. At the median: the difference at the same number of tries, if "
    "the fixed threshold is the median size in the pilot. Beside the verdict: whether the clip is "
    "ahead at 95 % from some number of tries on though the verdict does not say so. No row is "
    "corrected for the others."
)


def section(evidence: Evidence) -> Section:
    """What a tuned threshold is worth."""
    curves = evidence.budget
    if curves.empty:
        return Section("budget", TITLE, [])
    parts: list[Part] = [Text(HOW)]
    shown = curves[[evidence.of_headline(arm) for arm in curves["arm"]]]
    if len(shown):
        parts.append(_picture(evidence, shown))
    for task in evidence.tasks:
        if len(evidence.of(curves, task)):
            parts += headed(evidence, task, [_table(evidence, task)])
    return Section("budget", TITLE, parts)


def _picture(evidence: Evidence, shown: pd.DataFrame) -> Part:
    panels = [
        {
            "rows": evidence.labelled(rows),
            "title": f"{evidence.labels[task]}, {evidence.short(str(partner))}",
            "label": metric_words(evidence.about(task)),
            "without": f"{evidence.short(str(partner))}, no clip",
        }
        for task in evidence.tasks
        for partner, rows in evidence.of(shown, task).groupby("partner", sort=True)
    ]
    cells = evidence.cells_of(cell for cells in shown["cells"] for cell in cells)
    figure = partial(draw, panels, arm_colours(evidence.arms), evidence.footer(cells))
    caption = "What tuning is expected to reach, against the number of settings tried."
    return picture(evidence, figure, caption, cells, "budget")


def _table(evidence: Evidence, task: Task) -> Table:
    mine, about = evidence.of(evidence.budget, task), evidence.about(task)
    places, digits = decimals([*mine["estimate"], *mine["without"]]), gap_places(mine)
    rows, ends = [], []
    for arm, curve in mine.groupby("arm", sort=False):
        end = curve.loc[curve["tries"].idxmax()]
        first, k = curve.loc[curve["tries"].idxmin()], ahead(curve)
        ends.append({**end.to_dict(), "ahead": k})
        rows.append(
            [
                evidence.short(str(arm)),
                fixed(first["estimate"], places),
                fixed(end["estimate"], places),
                fixed(end["without"], places),
                str(int(end["tries"])),
                DASH if math.isnan(k) else _tries(k),
                signed_gap(end, digits),
                _at_median(evidence, task, str(arm), digits),
                _words(evidence, task, str(arm), curve),
            ]
        )
    head = [
        "clip",
        f"{metric_words(about)}, one try",
        "all tries",
        "without the clip",
        "settings",
        "ahead from",
        "difference, all tries [95 %]",
        "at the median, same tries [95 %]",
        "beside the verdict",
    ]
    caption = f"{evidence.labels[task]}: what trying thresholds is expected to reach."
    data = evidence.labelled(pd.DataFrame(ends).drop(columns="cells"))
    return Table(
        evidence.name("tables", "budget", evidence.labels[task]), caption, head, rows, data
    )


def _at_median(evidence: Evidence, task: Task, arm: str, digits: int) -> str:
    """What the difference at the same number of tries is with another fixed threshold."""
    mine = evidence.of(evidence.at_median, task)
    rows = mine[mine["arm"] == arm].to_dict("records")
    return f"{signed_gap(rows[0], digits)} (n = {rows[0]['n']})" if rows else DASH


def _words(evidence: Evidence, task: Task, arm: str, curve: pd.DataFrame) -> str:
    """What a tuned threshold adds to the verdict at the same number of tries."""
    gaps, k = evidence.of(evidence.gaps, task), ahead(curve, "low")
    said = list(gaps.loc[gaps["arm"] == arm, "verdict"])
    if math.isnan(k) or not said:
        return DASH
    if said[0] in (Verdict.SAME, Verdict.PERHAPS_WORSE, Verdict.WORSE):
        return f"better only if the threshold is tuned ({_tries(k)})"
    return f"ahead if it is tuned ({_tries(k)})" if said[0] == Verdict.UNDECIDED else DASH


def _tries(number: float) -> str:
    return "1 try" if number == 1 else f"{number:.0f} tries"
