"""The section on clips with the other optimizers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pandas as pd

from clipbench import selection
from clipbench.analysis.clips import claims, clip_pairs
from clipbench.analysis.outcomes import compare
from clipbench.report.evidence import Evidence
from clipbench.report.frames import headed
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
from clipbench.report.words import (
    DASH,
    beyond,
    decimals,
    gap_places,
    metric_note,
    metric_words,
    p_value,
    percent,
    plural,
    short,
)
from clipbench.schema import Outcome, Reading, Status
from clipbench.task import Task

LOWER = (
    "A clip that fires in most steps mostly makes steps shorter. For plain SGD and momentum the "
    "table sets it against the same optimizer without a clip, at its learning rate times the share "
    "of the gradient that it left in the median (“lower lr, no clip”): what is gained over that "
    "is more than a lower learning rate gives. Adam and RMSprop divide by the gradient's size, so "
    "that a factor changes nothing but their eps."
)


def section(evidence: Evidence) -> Section:
    """Clips with a tuned threshold, each against its optimizer without a clip."""
    others = pairs = clip_pairs(evidence.arms)
    title = "Settings chosen once, judged at the last step"
    if others.empty or not evidence.drawn["ended"].isin([*Outcome, Status.FAILED]).any():
        return Section("clips", title, [])
    compared = compare(evidence.drawn, pairs, evidence.components)
    claimed = claims(evidence.drawn, evidence.arms, evidence.components)
    lower = evidence.lower
    parts: list[Part] = [
        Text(
            "The setting of each arm that was best on the selection seeds, run again on the report "
            "seeds, and judged after the last step: one choice, where the first table has the mean "
            "over all that three seeds could make. A clip with several thresholds has more tries "
            "than no clip. The last column is the p value of the difference after Holm's "
            "correction over {norm, value} × optimizer × workload "
            f"({plural(int(claimed['p'].notna().sum()), 'comparison')}). It answers another "
            "question than the verdicts, which count."
        ),
        *([Text(LOWER)] if len(lower) else []),
        *_asked(evidence),
    ]
    for task in evidence.tasks:
        mine = evidence.of(others, task)
        if len(mine):
            parts += headed(
                evidence, task, [_table(evidence, task, mine, compared, claimed, lower)]
            )
    return Section("clips", title, parts)


def _table(
    evidence: Evidence,
    task: Task,
    mine: pd.DataFrame,
    compared: pd.DataFrame,
    claimed: pd.DataFrame,
    lower: pd.DataFrame,
) -> Table:
    about, results = evidence.about(task), evidence.of(evidence.results, task)
    gaps, tested = evidence.of(compared, task), evidence.of(claimed, task)
    arms = evidence.of(evidence.arms, task)
    places, digits = decimals(results["estimate"]), gap_places(gaps)
    order = evidence.ordered(arms[arms["arm"].isin([*mine["arm"], *mine["baseline"]])])
    untuned, instead = _untuned(results, mine), evidence.of(lower, task)
    rows, frames = [], []
    for arm in order:
        matches = results[(results["arm"] == arm) & (results["reading"] == Reading.ALL)]
        if matches.empty:
            continue
        row = matches.iloc[0].to_dict()
        by_reading = {one["reading"]: one for one in gaps[gaps["arm"] == arm].to_dict("records")}
        holm = tested.loc[tested["arm"] == arm, "holm"]
        rows.append(
            [
                evidence.short(arm),
                estimate(row, places, about),
                *(
                    [estimate(untuned[arm], places, about) if arm in untuned else DASH]
                    if untuned
                    else []
                ),
                difference(by_reading[Reading.ALL], digits, about)
                if Reading.ALL in by_reading
                else "unclipped",
                *([_instead(instead, arm, digits, about)] if len(instead) else []),
                *ends(row),
                percent(row["clipped_fraction"]) if arm in set(mine["arm"]) else DASH,
                target(row),
                setting(row),
                p_value(float(holm.iloc[0])) if len(holm) else DASH,
            ]
        )
        p = float(holm.iloc[0]) if len(holm) else math.nan
        frames.append({**row, **prefixed(by_reading.get("all")), "holm": p})
    caption = (
        f"{evidence.labels[task]}: {metric_note(about)}, on report seeds. Gains are paired "
        f"differences from the same optimizer without a clip. {n_words(results, about)}"
        f"{beyond(results, about)}"
    )
    return Table(
        evidence.name("tables", "clips", evidence.labels[task]),
        caption,
        _head(
            about,
            ("defaults" if evidence.defaults else "untuned") if untuned else "",
            lower=len(instead) > 0,
        ),
        rows,
        pd.DataFrame(frames),
    )


def _untuned(results: pd.DataFrame, mine: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """The untuned results by arm; none if no clipped arm has one."""
    found = {
        row["arm"]: row for row in results[results["reading"] == Reading.UNTUNED].to_dict("records")
    }
    return found if any(arm in found for arm in mine["arm"]) else {}


def _instead(lower: pd.DataFrame, arm: str, digits: int, about: dict[str, Any]) -> str:
    """The clip against a lower learning rate without it."""
    rows = lower[lower["arm"] == arm].to_dict("records")
    return f"lr {short(rows[0]['lr'])}: {difference(rows[0], digits, about)}" if rows else DASH


def _head(about: dict[str, Any], untuned: str, *, lower: bool) -> list[str]:
    return [
        "arm",
        f"{value_head(about)}, all settings",
        *([untuned] if untuned else []),
        "gain, all settings",
        *(["gain over a lower lr, no clip"] if lower else []),
        "n",
        *END_HEAD,
        "steps clipped",
        "steps to target",
        "chosen setting",
        "p (Holm)",
    ]


def _asked(evidence: Evidence) -> list[Text]:
    """The results of the untuned arms that the study's page names, a paragraph each task; those of
    documented defaults stand in the table.
    """
    if evidence.defaults:
        return []
    told = ((task, [*_asked_of(evidence, task)]) for task in evidence.tasks)
    return [Text(f"**{evidence.labels[task]}**: {' '.join(said)}") for task, said in told if said]


def _asked_of(evidence: Evidence, task: Task) -> Iterator[str]:
    about, results = evidence.about(task), evidence.of(evidence.results, task)
    asked = results[
        (results["reading"] == Reading.UNTUNED) & ~results["arm"].isin([*evidence.methods.values()])
    ]
    places = decimals(results["estimate"])
    for row in asked.to_dict("records"):
        at = f"lr {short(row['lr'])}" + (
            f" and threshold {short(row['threshold'])}" if row["threshold"] >= 0 else ""
        )
        shown = (
            f"**As the study sets it**, {row['arm']} at {at} has {metric_words(about)} "
            f"{estimate(row, places, about)}"
        )
        if row["never_fired"]:
            shown += (
                f"; its clip never fired (under {percent(selection.FIRED)} of steps): the "
                f"same as none"
            )
        elif row["clipped_fraction"] >= 0:
            shown += f"; its clip fired in {percent(row['clipped_fraction'])} of steps"
        yield f"{shown}."
