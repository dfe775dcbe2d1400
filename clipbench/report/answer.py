"""The answer to the reader's question "should I clip?", in words that the intervals support."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from clipbench import selection
from clipbench.analysis.stable import stable
from clipbench.report.evidence import Evidence
from clipbench.report.headline import without_stopping
from clipbench.report.outcomes import estimate
from clipbench.report.parts import List, Text
from clipbench.report.robust import shift
from clipbench.report.words import (
    Row,
    between,
    decimals,
    fixed,
    gap_places,
    interval_of,
    listed,
    metric_words,
    percent,
    short,
    signed,
)
from clipbench.schema import Outcome, Reading, Verdict
from clipbench.selection import BASELINE
from clipbench.statistics import Interval
from clipbench.task import Task

CLIPS = ("value clip", "norm clip")
SAID = {
    Verdict.BETTER: "is **better, by what matters**, on",
    Verdict.PERHAPS_BETTER: "is **better**, by how much is uncertain, on",
    Verdict.SAME: "makes **no difference that matters** on",
    Verdict.PERHAPS_WORSE: "is **worse**, by how much is uncertain, on",
    Verdict.WORSE: "is **worse, by what matters**, on",
    Verdict.UNDECIDED: "is undecided on",
    Verdict.NEVER_FIRED: "never fired on",
    Verdict.INCOMPLETE: "lacks runs on",
}
MEANING = {str(one): one.meaning for one in Verdict}


def told(evidence: Evidence) -> list[Text | List]:
    """The reader's question, answered from the numbers, task by task."""
    if not len(evidence.cells):
        return [
            Text(
                "**Nothing has been run yet.** No cell of this study is stored; `clipbench run` "
                "fills this folder."
            )
        ]
    gaps = evidence.gaps
    compared = not gaps.empty and bool((gaps["verdict"] != Verdict.INCOMPLETE).any())
    if not evidence.reports and not compared:
        return [
            Text(
                "**Nothing is chosen here.** This study reports on no fresh seeds: it shows what "
                "every setting did, and has no tuned methods to compare."
            )
        ]
    if evidence.reports and not evidence.drawn["ended"].isin([*Outcome]).any():
        return [
            Text(
                "**No answer yet.** The report phase, which runs each method's settings on fresh "
                "seeds, has no finished cell in this folder. What the selection phase showed is "
                "below; it chose settings, so that its numbers flatter every method."
            )
        ]
    if gaps.empty or not (gaps["n"] > 0).any():
        return [
            Text(
                "**No verdict.** Nothing in this folder compares a clip with its optimizer at the "
                "same number of tries; why, the next section says."
            ),
            *_asked(evidence),
        ]
    ranges, costs = stable(evidence.cells), evidence.costs
    items = [Text(_task_answer(evidence, task, ranges, costs)) for task in evidence.tasks]
    brackets = Text(
        "In brackets: 95 % intervals; the verdicts hold for all comparisons of a family together. "
        "n: seeds. Stable: every selection seed learned."
    )
    return [*_summary(evidence), List([item for item in items if item.words]), brackets]


def _asked(evidence: Evidence) -> list[Text | List]:
    return [
        Text(f"**{evidence.labels[task]}**: {' '.join(said)}")
        for task in evidence.tasks
        if (said := _asked_sentences(evidence, task))
    ]


def _summary(evidence: Evidence) -> list[Text | List]:
    """What each clip did on each optimizer, over all workloads."""
    sentences = []
    labelled = evidence.gaps.merge(evidence.arms, on=["problem", "batch", "device", "dtype", "arm"])
    for (optimizer, clip), rows in labelled.groupby(["optimizer_label", "clip_label"], sort=False):
        name = f"{str(clip).capitalize()} clipping on {evidence.short(str(optimizer))}"
        places: dict[str, list[str]] = {}
        for row in rows.to_dict("records"):
            places.setdefault(row["verdict"], []).append(evidence.labels[Task.of(row)])
        said = [f"{words} {listed(places[one])}" for one, words in SAID.items() if one in places]
        sentences.append(f"{name} {'; '.join(said)}.")
    if not sentences:
        return []
    return [
        Text("Against the same optimizer without a clip, at the same number of tries:"),
        List([Text(sentence) for sentence in sentences]),
    ]


def _task_answer(evidence: Evidence, task: Task, ranges: pd.DataFrame, costs: pd.DataFrame) -> str:
    about, methods = evidence.about(task), evidence.methods
    rows = evidence.of(evidence.gaps, task)
    places = gap_places(rows)
    sentences = [_reached(evidence, task)]
    told = [{**row, "arm": evidence.short(row["arm"])} for row in rows.to_dict("records")]
    sentences += [_verdict(row, places) for row in told if not _is_open(row)]
    open_still = [row["arm"] for row in told if _is_open(row)]
    sentences.append(f"Undecided: {listed(open_still)}." if open_still else "")
    sentences.append(_other_optimizers(evidence, task))
    sentences.append(_survived(evidence, task))
    if BASELINE in methods and not len(evidence.of(evidence.robust, task)):
        sentences += [
            _range_sentence(clip, evidence.of(ranges, task), methods)
            for clip in CLIPS
            if clip in methods
        ]
    sentences.append(_cost_sentence(evidence, task, costs))
    sentences += _asked_sentences(evidence, task)
    words = " ".join(filter(None, sentences))
    better = "higher" if about["higher_is_better"] else "lower"
    judged = f"{metric_words(about)}, {better} is better"
    return f"**{evidence.labels[task]}** ({judged}). {words}" if words else ""


def _is_open(row: Row) -> bool:
    """Whether nothing can be said of a comparison."""
    return bool(row["verdict"] == Verdict.UNDECIDED and not without_stopping(row))


def _reached(evidence: Evidence, task: Task) -> str:
    """What plain SGD is expected to reach."""
    levels, arm = evidence.of(evidence.levels, task), evidence.methods.get(BASELINE)
    mine = levels[(levels["arm"] == arm) & (levels["grade"] == evidence.grade)]
    if mine.empty or math.isnan(mine["estimate"].iloc[0]):
        return ""
    row = mine.iloc[0].to_dict()
    places = decimals(levels["estimate"].dropna())
    shown = f"{fixed(row['estimate'], places)} {between(interval_of(row), places)}".strip()
    return f"Plain SGD reaches {shown}."


def _verdict(row: Row, places: int) -> str:
    """One comparison, in the words of its verdict."""
    name, n = str(row["arm"]), f"n = {row['n']}"
    if row["verdict"] in (Verdict.NEVER_FIRED, Verdict.INCOMPLETE):
        return f"{name}: {row['verdict']} ({MEANING[row['verdict']]})."
    bounds = Interval(row["difference"], row["low"], row["high"])
    shown = f"{signed(row['difference'], places)} {between(bounds, places, sign=True)}".strip()
    return f"{name}: {shown}, {row['verdict']}{without_stopping(row)} ({n})."


def _other_optimizers(evidence: Evidence, task: Task) -> str:
    """Whether another optimizer or schedule without a clip does better than plain SGD."""
    rivals = evidence.of(evidence.rivals, task)
    ahead = rivals[rivals["low"] > 0].sort_values("difference", ascending=False)
    several = len(evidence.schedules) > 1
    if not rivals["low"].notna().any():
        return ""
    if ahead.empty:
        other = "optimizer or schedule" if several else "optimizer"
        return f"No other {other} is ahead of plain SGD without a clip."
    places = gap_places(rivals)
    words = [
        f"{evidence.short(row['arm'])} {signed(row['difference'], places)}"
        for row in ahead.to_dict("records")
    ]
    others = "other optimizers or schedules" if several else "other optimizers"
    return f"Without a clip, {others} are ahead of plain SGD: {listed(words)}."


def _survived(evidence: Evidence, task: Task) -> str:
    """How far clips move the learning rate at which half of the seeds are lost."""
    rows = evidence.of(evidence.robust, task)
    moved = rows[(rows["low"] > 0) | (rows["high"] < 0)].to_dict("records")
    if rows.empty:
        return ""
    if not moved:
        return "No clip moves the learning rate at which half of the seeds are lost, for sure."
    words = [f"{evidence.short(row['arm'])} by {shift(row)} decades" for row in moved]
    return f"The learning rate at which half of the seeds are lost is moved: {listed(words)}."


def _range_sentence(  # noqa: PLR0911 - a sentence for every case
    clip: str, ranges: pd.DataFrame, methods: Mapping[str, str]
) -> str:
    base = ranges[(ranges["arm"] == methods[BASELINE]) & (ranges["basis"] == "no clip")]
    best = ranges[(ranges["arm"] == methods[clip]) & (ranges["basis"] == "best threshold")]
    if base.empty or best.empty:
        return ""
    before, after = base.iloc[0], best.iloc[0]
    if math.isnan(before["high"]) and math.isnan(after["high"]):
        return f"No learning rate was stable for plain SGD or with {clip}ping."
    at_least = "at least " if after["above"] else ""
    if math.isnan(before["high"]):
        return (
            f"{clip.capitalize()}ping makes learning rates up to "
            f"{at_least}{short(after['high'])} stable, where plain SGD has none."
        )
    if math.isnan(after["high"]):
        return (
            f"With {clip}ping no learning rate was stable; plain SGD holds to "
            f"{short(before['high'])}."
        )
    if before["above"] and after["high"] >= before["high"]:
        return (
            f"Plain SGD was stable up to the largest learning rate it was tried at, "
            f"{short(before['high'])}, as was {clip}ping."
        )
    if after["high"] > before["high"]:
        highs = f"{short(before['high'])} to {at_least}{short(after['high'])}"
        return f"With {clip}ping the largest stable learning rate rises from {highs}."
    if after["high"] < before["high"]:
        return (
            f"With {clip}ping the largest stable learning rate falls from "
            f"{short(before['high'])} to {short(after['high'])}."
        )
    return (
        f"{clip.capitalize()}ping leaves the largest stable learning rate where it is "
        f"({short(before['high'])})."
    )


def _cost_sentence(evidence: Evidence, task: tuple[Any, ...], costs: pd.DataFrame) -> str:
    several, rows = len(set(costs["environment"])) > 1, evidence.of(costs, task)
    rows = rows[
        (rows["optimizer"] == "sgd")
        & rows["clip"].isin(["value", "norm"])
        & np.isfinite(rows["ratio"])
    ]
    sentences = []
    for environment, timed in rows.groupby("environment", dropna=False, sort=True):
        said = [
            (
                f"×{fixed(row['ratio'], 2)} "
                f"{between(Interval(row['ratio'], row['low'], row['high']), 2)}"
            ).strip()
            + f" with {row['clip']}"
            for row in timed.to_dict("records")
        ]
        where = f" ({evidence.machine(str(environment))})" if several else ""
        sentences.append(f"A step costs {listed(said)} clipping{where}.")
    return " ".join(sentences)


def _asked_sentences(evidence: Evidence, task: tuple[Any, ...]) -> list[str]:
    """The results of the untuned arms that the study's page names, a sentence each."""
    if evidence.defaults:  # they stand in the table of clips
        return []
    about, results = evidence.about(task), evidence.of(evidence.results, task)
    asked = results[
        (results["reading"] == Reading.UNTUNED) & ~results["arm"].isin([*evidence.methods.values()])
    ]
    places = decimals(results["estimate"])
    sentences = []
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
        sentences.append(f"{shown}.")
    return sentences
