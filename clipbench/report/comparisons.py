"""The sections that compare methods on report seeds."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from clipbench import analysis, figures, schema
from clipbench.report.evidence import Evidence
from clipbench.report.frames import headed, picture, report_cells
from clipbench.report.parts import Part, Section, Table, Text
from clipbench.report.words import (
    DASH,
    Row,
    between,
    decimals,
    fixed,
    gap_places,
    interval_of,
    metric_note,
    metric_words,
    p_value,
    percent,
    plural,
    seeds_note,
    short,
    signed,
    threshold_words,
    unbounded,
)
from clipbench.task import ARM, Task, Threshold

READING_WORDS = {"equal": "equal budget", "all": "all settings", "untuned": "untuned"}
END_HEAD = ("div.", "coll.", "stall.", "failed")


def headline(evidence: Evidence) -> Section:
    """The named methods, at equal budget, at all settings and untuned."""
    methods, results = evidence.methods, evidence.results
    shown = results[results["arm"].isin(methods.values())]
    if not evidence.reports:
        return Section("headline", "The five methods", [Text("This study reports on no fresh seeds, and chooses no settings.")])
    if not methods:
        return Section("headline", "The five methods", [Text("This study has none of them: what it compares is below.")])
    if shown.empty or not evidence.drawn["ended"].isin([*schema.OUTCOMES, "failed"]).any():
        return Section(
            "headline", "The five methods", [Text("The report phase has not run yet, so that there is nothing to compare.")]
        )
    parts: list[Part] = [
        Text(
            "Each method's setting was chosen on the selection seeds and run again on fresh report seeds; what follows is "
            "from those alone. "
            "**Equal budget** asks what each method reaches when it may try only as many settings as the method with the "
            "fewest: a clip has a "
            "threshold to tune, and must not win by five times as many tries. **All settings** lets each method use its "
            "whole grid. "
            "**Untuned** is one fixed learning rate and threshold. Intervals are 95 %."
        ),
        Text(
            "A run ends in one of four ways. **Diverged**: a value stopped being finite, or the loss blew up and stayed "
            "there. **Collapsed**: finite, but back at the "
            "loss of a constant prediction after having left it, which is how most runs of small networks fail. **Stalled**: "
            "still at that loss, too slow. "
            "**Learned**: none of these."
        ),
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
    figure = figures.headline(with_clip, drawn, panels, methods, evidence.footer(cells))
    caption = (
        "The named methods on report seeds: the mean, or the success rate, with its 95 % interval, and every seed as a faint "
        "dot. Where a seed "
        "diverged the mark is the median, with that seed as the worst possible outcome."
    )
    if analysis.BASELINE in methods:
        caption += " The dashed line is plain SGD at equal budget."
    parts.append(picture(evidence, figure, caption, cells, "headline"))
    compared = analysis.compare(evidence.drawn, analysis.headline_pairs(evidence.arms, methods), evidence.components)
    for task in evidence.tasks:
        parts += headed(evidence, task, [_headline_table(evidence, task, compared)])
    return Section("headline", "The five methods", parts)


def _headline_table(evidence: Evidence, task: Task, compared: pd.DataFrame) -> Table:
    about, methods = evidence.about(task), evidence.methods
    results, gaps = evidence.of(evidence.results, task), evidence.of(compared, task)
    results = results[results["arm"].isin(methods.values())]
    places, digits = decimals(results["estimate"]), gap_places(gaps)
    compared_here = bool((results["arm"] == methods.get(analysis.BASELINE)).any())
    rows, frames = [], []
    for method, arm in methods.items():
        first = True
        for reading, words in READING_WORDS.items():
            found = results[(results["arm"] == arm) & (results["reading"] == reading)]
            if found.empty:
                continue
            row = found.iloc[0].to_dict()
            gap = gaps[(gaps["arm"] == arm) & (gaps["reading"] == reading)]
            against = gap.iloc[0].to_dict() if len(gap) else None
            rows.append(
                [
                    method if first else "",
                    words,
                    estimate(row, places, about),
                    *([difference(against, digits, about) if against else _no_pair(method)] if compared_here else []),
                    *_ends(row),
                    percent(row["clipped_fraction"]) if "clip" in method else DASH,
                    _target(row),
                    setting(row),
                ]
            )
            frames.append({"method": method, **row, **_prefixed(against)})
            first = False
    gap_words = (
        "The difference is paired, seed by seed, and positive where the method is better than plain SGD."
        if compared_here
        else "Plain SGD is not among these arms, so that there is no difference from it to give."
    )
    caption = f"{evidence.labels[task]}: {metric_note(about)}, on report seeds. {gap_words} {_n_words(results, about)}"
    head = [
        "method",
        "reading",
        _value_head(about),
        *(["better than plain SGD by"] if compared_here else []),
        "n",
        *END_HEAD,
        "steps clipped",
        "steps to target",
        "chosen setting",
    ]
    return Table(evidence.name("tables", "headline", evidence.labels[task]), caption, head, rows, pd.DataFrame(frames), words=2)


def _no_pair(method: str) -> str:
    return "baseline" if method == analysis.BASELINE else DASH


def _n_words(results: pd.DataFrame, about: Row) -> str:
    alone = about["deterministic"] and len(results) and results["n"].max() == 1
    return f"n: {seeds_note(1, about) if alone else 'seeds'}; div., coll., stall., failed: how many of them ended so."


def _value_head(about: Row) -> str:
    return "succeeded" if about["success"] is not None else metric_words(about)


def estimate(row: Row, places: int, about: Row) -> str:
    """A result with its interval and, where it is no mean, what it is."""
    interval, n = interval_of(row), int(row["n"])
    known = n - int(row["failed"]) - int(row["missing"]) - int(row["no_value"])
    if row["statistic"] == "incomplete":
        lacking = f", {int(row['no_value'])} with no value" if row["no_value"] else ""
        if not known:
            return f"no seed has a value{lacking and ' though they ran'}" if row["no_value"] == n else "no seed finished"
        return (
            f"{fixed(interval.estimate, places)} (median of {known} of {n} seeds, incomplete{lacking})"
            if not row["successes"] >= 0
            else f"{row['successes']:.0f}/{known} (incomplete{lacking})"
        )
    if row["statistic"] == "share":
        return f"{row['successes']:.0f}/{n} [{percent(interval.low)}, {percent(interval.high)}]"
    words = f"{fixed(interval.estimate, places)} {between(interval, places)}".strip()
    words = f"median {words}" if row["statistic"] == "median" else words
    return words if interval.bounded else f"{words} ({unbounded(row, about)})"


def difference(row: Row, places: int, about: Row) -> str:
    """A paired difference, or why there is none."""
    if row["note"] == "never fired":
        return "never fired: the same as none"
    if row["note"]:
        return str(row["note"])
    interval = interval_of(row)
    if not interval.bounded:
        return f"{signed(interval.estimate, places)} ({unbounded(row, about)})"
    if row["statistic"] == "share":
        return f"{signed(interval.estimate, 2)} {between(interval, 2, sign=True)}"
    words = f"{signed(interval.estimate, places)} {between(interval, places, sign=True)}"
    return f"median {words}" if row["statistic"] == "median" else words


def _ends(row: Row) -> list[str]:
    lost = int(row["failed"]) + int(row["missing"])
    return [str(int(row["n"])), *(str(int(row[name])) for name in ("diverged", "collapsed", "stalled")), str(lost)]


def _target(row: Row) -> str:
    if math.isnan(row["steps_to_target"]):
        return DASH
    if math.isinf(row["steps_to_target"]):
        return f"∞ ({int(row['reached'])}/{int(row['n'])})"
    return f"{row['steps_to_target']:.0f} ({int(row['reached'])}/{int(row['n'])})"


def setting(row: Row) -> str:
    """The setting behind a result, or how many settings the seeds drew."""
    if row["settings"] > 1:
        return f"{int(row['settings'])} settings, best of {int(row['budget'])}"
    words = [f"lr {short(row['lr'])}"]
    if not (threshold := Threshold.of(row)).absent:
        words.append(f"threshold {threshold_words(threshold)}")
    if row["edge"]:
        words.append(f"at an edge: {row['edge']}")
    return ", ".join(words)


def _prefixed(against: Row | None) -> dict[str, Any]:
    names = ("baseline", "statistic", "estimate", "low", "high", "p", "note")
    return {f"difference_{name}": against[name] if against else None for name in names}


def clips(evidence: Evidence) -> Section:
    """Clips on the other optimizers, each against its optimizer without a clip."""
    pairs = analysis.clip_pairs(evidence.arms)
    others = pairs[~pairs["arm"].isin(evidence.methods.values())]
    title = "Clips on other optimizers"
    if others.empty or not evidence.drawn["ended"].isin([*schema.OUTCOMES, "failed"]).any():
        return Section("clips", title, [])
    compared = analysis.compare(evidence.drawn, pairs, evidence.components)
    claimed = analysis.claims(evidence.drawn, evidence.arms, evidence.components)
    parts: list[Part] = [
        Text(
            "The same clips on the other optimizers, each against the same optimizer without a clip, on the same report "
            "seeds. The last column is the "
            f"p value of the difference at all settings after Holm's correction over the declared family, "
            f"{{norm, value}} × optimizer × workload ({plural(int(claimed['p'].notna().sum()), 'comparison')}); thresholds "
            f"are tuned, not tested."
        )
    ]
    for task in evidence.tasks:
        mine = evidence.of(others, task)
        if len(mine):
            parts += headed(evidence, task, [_clip_table(evidence, task, mine, compared, claimed)])
    return Section("clips", title, parts)


def _clip_table(evidence: Evidence, task: Task, mine: pd.DataFrame, compared: pd.DataFrame, claimed: pd.DataFrame) -> Table:
    about, results = evidence.about(task), evidence.of(evidence.results, task)
    gaps, tested = evidence.of(compared, task), evidence.of(claimed, task)
    arms = evidence.of(evidence.arms, task)
    places, digits = decimals(results["estimate"]), gap_places(gaps)
    order = figures.ordered(arms[arms["arm"].isin([*mine["arm"], *mine["baseline"]])])
    untuned = {row["arm"]: row for row in results[results["reading"] == "untuned"].to_dict("records")}
    if not any(arm in untuned for arm in mine["arm"]):
        untuned = {}
    rows, frames = [], []
    for arm in order:
        found = results[(results["arm"] == arm) & (results["reading"] == "all")]
        if found.empty:
            continue
        row = found.iloc[0].to_dict()
        by_reading = {one["reading"]: one for one in gaps[gaps["arm"] == arm].to_dict("records")}
        holm = tested.loc[tested["arm"] == arm, "holm"]
        rows.append(
            [
                arm,
                estimate(row, places, about),
                *([estimate(untuned[arm], places, about) if arm in untuned else DASH] if untuned else []),
                *(difference(by_reading[name], digits, about) if name in by_reading else "unclipped" for name in ("all", "equal")),
                *_ends(row),
                percent(row["clipped_fraction"]) if arm in set(mine["arm"]) else DASH,
                _target(row),
                setting(row),
                p_value(float(holm.iloc[0])) if len(holm) else DASH,
            ]
        )
        frames.append({**row, **_prefixed(by_reading.get("all")), "holm": float(holm.iloc[0]) if len(holm) else math.nan})
    head = [
        "arm",
        f"{_value_head(about)}, all settings",
        *(["untuned"] if untuned else []),
        "gain, all settings",
        "gain, equal budget",
        "n",
        *END_HEAD,
        "steps clipped",
    ]
    head += ["steps to target", "chosen setting", "p (Holm)"]
    caption = f"{evidence.labels[task]}: {metric_note(about)}, on report seeds. "
    caption += f"Gains are paired differences from the same optimizer without a clip. {_n_words(results, about)}"
    return Table(evidence.name("tables", "clips", evidence.labels[task]), caption, head, rows, pd.DataFrame(frames))
