"""Does clipping replace a better optimizer, a warm-up or a lower learning rate? What else does."""

from __future__ import annotations

from functools import partial

from clipbench.figures.answer import draw
from clipbench.figures.style import arm_colours
from clipbench.report.evidence import Evidence
from clipbench.report.frames import foldable, picture
from clipbench.report.parts import Part, Section, Table
from clipbench.report.prose import paragraphs
from clipbench.report.words import decimals, gap_places, metric_words, short, signed_gap

TITLE = "Does it replace a better optimizer, a warm-up or a lower learning rate?"


def section(evidence: Evidence) -> Section:
    """What else would do, and how much better."""
    rows = evidence.answers[evidence.answers["instead"].astype(bool)]
    lower = evidence.lower
    if rows.empty and lower.empty:
        return Section("instead", TITLE, [])
    parts: list[Part] = [
        *paragraphs(
            "instead",
            rows=len(rows),
            ahead=int((rows["instead_low"] > 0).sum()),
            behind=int((rows["instead_high"] < 0).sum()),
            lower=len(lower),
            lower_better=int((lower["low"] > 0).sum()),
            lower_worse=int((lower["high"] < 0).sum()),
            seeds=int(rows["n"].max()) if len(rows) else 0,
        )
    ]
    levels = evidence.levels[evidence.levels["grade"] == evidence.grade]
    panels = [
        {
            "title": evidence.labels[task],
            "x": f"{metric_words(about)}, "
            f"{'higher' if about['higher_is_better'] else 'lower'} is better",
            "rows": evidence.labelled(mine).sort_values(
                "estimate", ascending=about["higher_is_better"], kind="stable"
            ),
        }
        for task in evidence.tasks
        if (about := evidence.about(task))
        and len(mine := evidence.of(levels, task).dropna(subset=["estimate"]))
    ]
    if panels:
        caption = "What each method is expected to reach, with a 95 % interval; the best is on top."
        cells = evidence.behind(levels.dropna(subset=["estimate"]))
        figure = partial(draw, panels, arm_colours(evidence.arms), evidence.footer(cells))
        parts.append(picture(evidence, figure, caption, cells, "instead"))
    if len(rows):
        parts.append(foldable(_rivals(evidence)))
    if len(lower):
        parts.append(foldable(_lower(evidence)))
    return Section("instead", TITLE, parts)


def _rivals(evidence: Evidence) -> Table:
    shown = []
    rows = evidence.answers[evidence.answers["instead"].astype(bool)]
    for task in evidence.tasks:
        mine = evidence.of(rows, task)
        gains = mine.assign(
            difference=mine["instead_gain"], low=mine["instead_low"], high=mine["instead_high"]
        )
        places = gap_places(gains)
        shown += [
            [
                evidence.labels[task],
                evidence.short(row["arm"]),
                evidence.short(row["instead"]),
                signed_gap(row, places),
                metric_words(evidence.about(task)),
            ]
            for row in gains.to_dict("records")
        ]
    caption = (
        "The best method without a clip on another optimizer or schedule, and how much better than "
        "the clip it is. It is the best of several, so that its interval flatters it."
    )
    head = ["problem", "clip", "instead", "better by [95 %]", "metric"]
    return Table(evidence.name("tables", "instead"), caption, head, shown, rows, words=3)


def _lower(evidence: Evidence) -> Table:
    lower = evidence.lower
    shown = []
    for task in evidence.tasks:
        mine = evidence.of(lower, task)
        places = decimals([*mine["estimate"].dropna()]) - 1
        shown += [
            [
                evidence.labels[task],
                evidence.short(row["arm"]),
                short(row["lr"]),
                signed_gap({**row, "difference": row["estimate"]}, places),
                metric_words(evidence.about(task)),
                str(row["n"]),
            ]
            for row in mine.to_dict("records")
        ]
    caption = (
        "Clips that fire in most steps, against the same optimizer without one at its learning "
        "rate times the share of the gradient that the clip left in the median step: positive if "
        "the clip is better."
    )
    head = ["problem", "clip", "lower lr", "the clip gains [95 %]", "metric", "seeds"]
    return Table(evidence.name("tables", "lower-lr"), caption, head, shown, lower, words=2)
