"""The section on the methods at the same number of tries: what each reaches, and the verdicts on
clips.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pandas as pd

from clipbench.analysis.headline import FEWEST, GRADES
from clipbench.figures.headline import draw
from clipbench.figures.style import arm_colours
from clipbench.report.evidence import Evidence
from clipbench.report.frames import gap_panels, headed, picture
from clipbench.report.parts import List, Part, Section, Table, Text
from clipbench.report.words import (
    DASH,
    Row,
    between,
    beyond,
    decimals,
    fixed,
    gap_places,
    interval_of,
    listed,
    metric_words,
    percent,
    plural,
    short,
    signed,
    signed_gap,
)
from clipbench.schema import RULES, Outcome, Verdict
from clipbench.selection import POINT
from clipbench.statistics import Interval
from clipbench.task import Task, Threshold
from clipbench.verdicts import LEVEL

TITLE = "Does clipping help, at the same number of tries?"
NEEDED = 3  # the rules that first graded a run by its best checkpoint

HOW = (
    "Each method tries the learning rates of its optimizer and nothing else. A clip has one "
    "threshold, {threshold}, fixed before anything had run; so no method wins by more tries. The "
    "estimate is the expected result of somebody who chooses the learning rate on three seeds, by "
    "the mean on validation, and trains once more: the mean over all sets of three seeds, and "
    "over all seeds outside the set, on test. Intervals are those of the jackknife that leaves "
    "one seed out, from both roles."
)
VERDICTS = (
    "A verdict needs a margin δ inside which no difference matters; each workload names its own. "
    "The words hold for all comparisons of a family together, with the error of the family that "
    "the table names. At ½ δ and 2 δ: what the verdict would be."
)


def section(evidence: Evidence) -> Section:
    """The methods at the same number of tries."""
    reason = _nothing(evidence)
    if reason:
        return Section("headline", TITLE, [Text(reason)] if len(evidence.cells) else [])
    gaps = evidence.gaps
    parts: list[Part] = [
        Text(HOW.format(threshold=_fixed(evidence))),
        Text(
            "Graded by the **best checkpoint**, that of the best validation value, and beside it "
            "at the **last step**. A run that diverged has its best checkpoint before the event, "
            "and counts as chance at the last step."
            if evidence.grade == "best"
            else "Graded at the **last step**, at which a run that diverged counts as chance."
        ),
    ]
    if evidence.schedule:
        which = (
            "All learning rates follow"
            if len(evidence.schedules) == 1
            else "Learning rates follow, if nothing else is said,"
        )
        parts.append(Text(f"{which} the schedule `{evidence.schedule}`."))
    if len(gaps):
        parts += [Text(VERDICTS), List([Text(one) for one in _families(evidence, gaps)])]
        panels = gap_panels(evidence, gaps, "improvement in {} by the clip")
        cells = evidence.behind(gaps)
        figure = partial(
            draw,
            evidence.labelled(gaps),
            panels,
            arm_colours(evidence.arms),
            evidence.footer(cells),
        )
        caption = (
            "Each clip against the same optimizer without it: the difference between what both "
            "are expected to reach, positive where the clip is better. Thick: 95 %; thin: what "
            "holds for all of a family together; an arrow: it goes on beyond the axis. The band is "
            "the margin."
        )
        parts.append(picture(evidence, figure, caption, cells, "headline"))
    parts.append(Text(f"A run ends in one of four ways. {_endings()}"))
    for task in evidence.tasks:
        if len(evidence.of(evidence.levels, task)):
            parts += headed(evidence, task, _tables(evidence, task))
    return Section("headline", TITLE, parts)


def _nothing(evidence: Evidence) -> str:
    """Why there is nothing to compare; empty if there is."""
    if evidence.rules < NEEDED:
        return (
            f"The cells of this folder are of rules {evidence.rules}: they were not graded by "
            f"their best checkpoint, and no threshold was fixed in advance. Today's rules, "
            f"{RULES}, compare methods at the same number of tries; the next `clipbench run` does."
        )
    if evidence.levels.empty:
        return (
            "No clip of this study has a threshold that was fixed in advance: one alone, or "
            "`percentile` as [protocol] names it. So nothing is compared at the same number of "
            "tries."
        )
    if not (evidence.levels["n"] > 0).any():
        return (
            "No seed has finished the whole axis of learning rates yet, so that there is nothing "
            "to compare."
        )
    return ""


def _fixed(evidence: Evidence) -> str:
    """What the thresholds of the compared clips are."""
    rows = evidence.levels[evidence.levels["threshold"].notna()].to_dict("records")
    words = {Threshold.of(row).word for row in rows}
    percentile = evidence.plan.get("protocol", {}).get("percentile", 90.0)
    told = {
        "percentile": f"the {short(percentile)}th percentile of the sizes in a short pilot run",
        "relative": "a multiple of the median size in a short pilot run",
        None: "a number that the study gives",
    }
    return listed([told[word] for word in told if word in words]) or "given by the study"


def _families(evidence: Evidence, gaps: pd.DataFrame) -> list[str]:
    return [
        f"**{evidence.short(str(name))}**: {plural(len(rows), 'comparison')}, error "
        + (
            percent(LEVEL)
            if rows["level"].iloc[0] == LEVEL
            else f"{100 * rows['level'].iloc[0]:g} %, for it is one of the two first questions"
        )
        for name, rows in gaps.groupby("family", sort=True)
    ]


def _endings() -> str:
    return " ".join(f"**{word.capitalize()}**: {word.meaning}." for word in Outcome)


def _tables(evidence: Evidence, task: Task) -> list[Part]:
    return [_levels(evidence, task), *([_gaps(evidence, task)] if len(_of(evidence, task)) else [])]


def _of(evidence: Evidence, task: Task) -> pd.DataFrame:
    return evidence.of(evidence.gaps, task)


def _levels(evidence: Evidence, task: Task) -> Table:
    """What each method reaches."""
    about, mine = evidence.about(task), evidence.of(evidence.levels, task)
    rivals = evidence.of(evidence.rivals, task)
    arms = evidence.of(evidence.arms, task)
    places, digits = decimals(mine["estimate"].dropna()), gap_places(rivals)
    success = about["success"] is not None
    rows = []
    for arm in evidence.ordered(arms[arms["arm"].isin(mine["arm"])]):
        by_grade = {row["grade"]: row for row in mine[mine["arm"] == arm].to_dict("records")}
        main: dict[str, Any] = by_grade.get(evidence.grade) or by_grade["last"]
        whole = int(main["n"] + main["lacking"])
        rival = rivals[rivals["arm"] == arm].to_dict("records")
        rows.append(
            [
                evidence.short(arm),
                *(_level(by_grade.get(grade), places) for grade in GRADES),
                *([percent(main["succeeded"])] if success else []),
                signed_gap(rival[0], digits) if rival else DASH,
                f"{main['n']:.0f}" + f" of {whole}" * (main["lacking"] > 0),
                str(int(main["tries"])),
                _setting(main),
                percent(main["fired"]) if not Threshold.of(main).absent else DASH,
            ]
        )
    head = [
        "method",
        *(f"{metric_words(about)}, {words}" for words in GRADES.values()),
        *(["succeeded"] if success else []),
        "better than plain SGD by",
        "seeds",
        "tries",
        "chosen most often",
        "steps clipped",
    ]
    caption = (
        f"{evidence.labels[task]}: what tuning on three seeds is expected to reach "
        f"({metric_words(about)}, {'higher' if about['higher_is_better'] else 'lower'} is better). "
        f"Intervals are 95 %.{beyond(mine, about)}"
    )
    return Table(
        evidence.name("tables", "headline", evidence.labels[task]),
        caption,
        head,
        rows,
        evidence.labelled(mine),
    )


def _labelled(evidence: Evidence, rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with the name by which the page calls their arm."""
    return evidence.labelled(rows)


def _level(row: dict[str, Any] | None, places: int) -> str:
    if row is None or math.isnan(row["estimate"]):
        return DASH
    return f"{fixed(row['estimate'], places)} {between(interval_of(row), places)}".strip()


def _setting(row: dict[str, Any]) -> str:
    if math.isnan(row["lr"]):
        return DASH
    words = f"lr {short(row[POINT[0]])} in {percent(row['share'])}"
    threshold = Threshold.of(row)
    return words if threshold.absent else f"{words}, threshold {short(threshold.value)}"


def _gaps(evidence: Evidence, task: Task) -> Table:
    """The verdicts on clips."""
    about, mine = evidence.about(task), _of(evidence, task)
    digits = gap_places(mine)
    rows = []
    for row in mine.to_dict("records"):
        family = Interval(row["difference"], row["family_low"], row["family_high"])
        last = Interval(row["last"], row["last_low"], row["last_high"])
        rows.append(
            [
                evidence.short(row["arm"]),
                str(row["verdict"]) + without_stopping(row),
                signed_gap(row, digits),
                between(family, digits, sign=True) or DASH,
                f"{signed(row['last'], digits)} {between(last, digits, sign=True)}".strip(),
                fixed(row["smallest"], digits),
                str(row["at_half"]),
                str(row["at_double"]),
                _needed(row),
            ]
        )
    head = [
        "clip",
        "verdict",
        "difference [95 %]",
        "[family]",
        "at the last step",
        "smallest margin",
        "at ½ δ",
        "at 2 δ",
        "seeds to decide",
    ]
    margin = mine["margin"].max()
    told = (
        f"δ = {short(margin)} {metric_words(about)}"
        if margin > 0
        else "the workload names no margin, so that no difference can be called too small to matter"
    )
    caption = (
        f"{evidence.labels[task]}: each clip against the same optimizer without it, positive where "
        f"the clip is better; {told}. Smallest margin: that at which “no difference” would hold. "
        f"Seeds to decide: with a power of 80 %, if there is no difference, or one of 2 δ."
    )
    return Table(
        evidence.name("tables", "verdicts", evidence.labels[task]),
        caption,
        head,
        rows,
        evidence.labelled(mine),
        words=2,
    )


def without_stopping(row: Row) -> str:
    """A clip may only prevent what an early stop prevents as well; said at the width at which
    verdicts of its family are.
    """
    better = row["verdict"] in (Verdict.BETTER, Verdict.PERHAPS_BETTER)
    half = row["high"] - row["difference"]
    wider = (row["family_high"] - row["difference"]) / half if half > 0 else 1.0
    low = row["last"] - wider * (row["last"] - row["last_low"])
    if row["grade"] == "last" or better or not low > 0:
        return ""
    return "; better only without early stopping"


def _needed(row: dict[str, Any]) -> str:
    if row["verdict"] != Verdict.UNDECIDED or math.isnan(row["needed"]):
        return f"≥ {FEWEST}" if row["n"] < FEWEST else DASH
    return short(row["needed"]) if math.isinf(row["needed"]) else f"{row['needed']:,.0f}"
