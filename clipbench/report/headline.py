"""The section on the named methods: at equal budget, at all settings and untuned."""

from __future__ import annotations

from typing import Any

import pandas as pd

from clipbench.analysis.headline import headline_pairs
from clipbench.analysis.outcomes import READING_LABELS, compare
from clipbench.figures.headline import draw
from clipbench.report.evidence import Evidence
from clipbench.report.frames import headed, picture, report_cells
from clipbench.report.outcomes import (
    END_HEAD,
    difference,
    ends,
    estimate,
    n_words,
    prefixed,
    setting,
    target,
    value_head,
)
from clipbench.report.parts import Part, Section, Table, Text
from clipbench.report.words import DASH, decimals, gap_places, metric_note, percent
from clipbench.schema import Outcome, Reading, Status
from clipbench.selection import BASELINE
from clipbench.task import ARM, Task

READINGS = (
    "Each method's setting was chosen on the selection seeds and run again on fresh report seeds; "
    "what follows is from those alone. **Equal budget** asks what each method reaches when it may "
    "try only as many settings as the method with the fewest: a clip has a threshold to tune, and "
    "must not win by five times as many tries. **All settings** lets each method use its whole "
    "grid. **Untuned** is one fixed learning rate and threshold. Intervals are 95 %."
)


def section(evidence: Evidence) -> Section:
    """The named methods, at equal budget, at all settings and untuned."""
    methods, results = evidence.methods, evidence.results
    shown = results[results["arm"].isin(methods.values())]
    if not evidence.reports:
        return Section(
            "headline",
            "The five methods",
            [Text("This study reports on no fresh seeds, and chooses no settings.")],
        )
    if not methods:
        return Section(
            "headline",
            "The five methods",
            [Text("This study has none of them: what it compares is below.")],
        )
    if shown.empty or not evidence.drawn["ended"].isin([*Outcome, Status.FAILED]).any():
        return Section(
            "headline",
            "The five methods",
            [Text("The report phase has not run yet, so that there is nothing to compare.")],
        )
    parts: list[Part] = [
        Text(READINGS),
        Text(f"A run ends in one of four ways. {_endings(evidence.rules)}"),
    ]
    panels = [
        {
            "task": task,
            "title": evidence.labels[task],
            "label": metric_note(evidence.about(task)),
            "success": evidence.about(task)["success"] is not None,
            "higher_is_better": evidence.about(task)["higher_is_better"],
        }
        for task in evidence.tasks
    ]
    drawn = evidence.drawn[evidence.drawn["arm"].isin(methods.values())]
    cells = report_cells(evidence, drawn)
    with_clip = results.merge(evidence.arms, on=ARM)
    figure = draw(with_clip, drawn, panels, methods, evidence.footer(cells))
    caption = (
        "The named methods on report seeds: the mean, or the success rate, with its 95 % "
        "interval, and every seed as a faint dot. Where a seed diverged the mark is the median, "
        "with that seed as the worst possible outcome."
    )
    if BASELINE in methods:
        caption += " The dashed line is plain SGD at equal budget."
    parts.append(picture(evidence, figure, caption, cells, "headline"))
    compared = compare(evidence.drawn, headline_pairs(evidence.arms, methods), evidence.components)
    for task in evidence.tasks:
        parts += headed(evidence, task, [_table(evidence, task, compared)])
    return Section("headline", "The five methods", parts)


def _endings(rules: int) -> str:
    """What the outcomes mean, by the rules that judged them."""
    if rules == 1:
        return (
            "**Diverged**: a value stopped being finite, or the loss blew up and stayed there. "
            "**Collapsed**: finite, but back at the loss of a constant prediction after having "
            "left it, which is how most runs of small networks fail. **Stalled**: still at that "
            "loss, too slow. **Learned**: none of these."
        )
    return " ".join(f"**{word.capitalize()}**: {word.meaning}." for word in Outcome)


def _table(evidence: Evidence, task: Task, compared: pd.DataFrame) -> Table:
    about, methods = evidence.about(task), evidence.methods
    results, gaps = evidence.of(evidence.results, task), evidence.of(compared, task)
    results = results[results["arm"].isin(methods.values())]
    places, digits = decimals(results["estimate"]), gap_places(gaps)
    compared_here = bool((results["arm"] == methods.get(BASELINE)).any())
    rows, frames = [], []
    for method, arm in methods.items():
        first = True
        for reading in (Reading.EQUAL, Reading.ALL, Reading.UNTUNED):
            matches = results[(results["arm"] == arm) & (results["reading"] == reading)]
            if matches.empty:
                continue
            row = matches.iloc[0].to_dict()
            gap = gaps[(gaps["arm"] == arm) & (gaps["reading"] == reading)]
            against = gap.iloc[0].to_dict() if len(gap) else None
            rows.append(
                [
                    method if first else "",
                    READING_LABELS[reading],
                    estimate(row, places, about),
                    *(
                        [difference(against, digits, about) if against else _no_pair(method)]
                        if compared_here
                        else []
                    ),
                    *ends(row),
                    percent(row["clipped_fraction"]) if "clip" in method else DASH,
                    target(row),
                    setting(row),
                ]
            )
            frames.append({"method": method, **row, **prefixed(against)})
            first = False
    gap_words = (
        (
            "The difference is paired, seed by seed, and positive where the method is better than "
            "plain SGD."
        )
        if compared_here
        else "Plain SGD is not among these arms, so that there is no difference from it to give."
    )
    caption = (
        f"{evidence.labels[task]}: {metric_note(about)}, on report seeds. {gap_words} "
        f"{n_words(results, about)}"
    )
    return Table(
        evidence.name("tables", "headline", evidence.labels[task]),
        caption,
        _head(about, compared_here),
        rows,
        pd.DataFrame(frames),
        words=2,
    )


def _no_pair(method: str) -> str:
    return "baseline" if method == BASELINE else DASH


def _head(about: dict[str, Any], compared_here: bool) -> list[str]:
    return [
        "method",
        "reading",
        value_head(about),
        *(["better than plain SGD by"] if compared_here else []),
        "n",
        *END_HEAD,
        "steps clipped",
        "steps to target",
        "chosen setting",
    ]
