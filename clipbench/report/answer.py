"""The answer to the reader's question "should I clip?", in words that the intervals support."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from clipbench import selection
from clipbench.analysis.clips import claims
from clipbench.analysis.headline import headline_pairs
from clipbench.analysis.outcomes import Note, compare
from clipbench.analysis.stable import stable
from clipbench.report.evidence import Evidence
from clipbench.report.outcomes import estimate
from clipbench.report.parts import List, Text
from clipbench.report.words import (
    Row,
    between,
    decimals,
    fixed,
    gap_places,
    interval_of,
    listed,
    metric_note,
    metric_words,
    percent,
    plural,
    seeds_note,
    short,
    signed,
)
from clipbench.schema import Outcome, Reading
from clipbench.selection import BASELINE
from clipbench.statistics import Interval, holm
from clipbench.task import Task

CLIPS = ("value clip", "norm clip")
FEWEST_SEEDS = 5  # report seeds for a claim in words
LEVEL = 0.05  # of Holm's correction, over all the comparisons that the answer makes
ENDINGS = {
    "better": "was better on",
    "worse": "was worse on",
    "unconfirmed": "made a difference that does not outlast the number of comparisons on",
    "same": "made no difference that could be seen on",
    "identical": "had plain SGD's own result on every seed of",
    "alike": "moved every seed by the same amount, from which nothing can be inferred, on",
    Note.NEVER_FIRED: "never fired, as chosen, on",
    Note.INCOMPLETE: "has seeds missing or failed on",
    Note.NO_VALUE: "has runs with no value on",
    "too few": "ran on too few seeds to claim anything on",
}


def told(evidence: Evidence) -> list[Text | List]:
    """The reader's question, answered from the numbers, task by task."""
    if not len(evidence.cells):
        return [
            Text(
                "**Nothing has been run yet.** No cell of this study is stored; `clipbench run` "
                "fills this folder."
            )
        ]
    if not evidence.reports:
        return [
            Text(
                "**Nothing is chosen here.** This study reports on no fresh seeds: it shows what "
                "every setting did, and has no tuned methods to compare."
            )
        ]
    if not evidence.drawn["ended"].isin([*Outcome]).any():
        return [
            Text(
                "**No answer yet.** The report phase, which runs each method's chosen setting on "
                "fresh seeds, has no finished cell in this folder. What the selection phase "
                "showed is below; it chose the settings, so that its numbers flatter every "
                "method."
            )
        ]
    pairs = headline_pairs(evidence.arms, evidence.methods)
    compared = _with_holm(compare(evidence.drawn, pairs, evidence.components), evidence)
    ranges, costs = stable(evidence.cells), evidence.costs
    claimed = claims(evidence.drawn, evidence.arms, evidence.components)
    items = [
        Text(_task_answer(evidence, task, compared, ranges, costs, claimed))
        for task in evidence.tasks
    ]
    brackets = Text(
        "In brackets: 95 % intervals. n: report seeds, each run by both methods. Stable: every "
        "selection seed learned."
    )
    return [*_summary(evidence, compared), List([item for item in items if item.words]), brackets]


def _with_holm(compared: pd.DataFrame, evidence: Evidence) -> pd.DataFrame:
    """The comparisons with ``holm``: the corrected p of those told in words, clips with plain
    SGD at equal budget; else NaN.
    """
    clips = compared["arm"].isin(
        [evidence.methods[clip] for clip in CLIPS if clip in evidence.methods]
    )
    said = (clips & (compared["reading"] == Reading.EQUAL)).to_numpy(dtype=bool)
    corrected = np.full(len(compared), np.nan)
    corrected[said] = holm(compared["p"].to_numpy(dtype=float)[said])
    return compared.assign(holm=corrected)


def _summary(evidence: Evidence, compared: pd.DataFrame) -> list[Text]:
    """How often each clip won, lost, or made no difference that could be seen."""
    rows = compared[compared["reading"] == Reading.EQUAL]
    sentences = []
    for clip in CLIPS:
        rows_of_arm = rows[rows["arm"] == evidence.methods.get(clip)].to_dict("records")
        if not rows_of_arm:
            continue
        ends: dict[str, list[str]] = {}
        for row in rows_of_arm:
            ends.setdefault(_ending(row), []).append(evidence.labels[Task.of(row)])
        words = [f"{ENDINGS[end]} {listed(ends[end])}" for end in ENDINGS if end in ends]
        sentences.append(f"**{clip.capitalize()}ping** {', '.join(words)}.")
    if not sentences and BASELINE not in evidence.methods:
        return [
            Text(
                "This study has no plain SGD without a clip, so that nothing is compared with "
                "it here."
            )
        ]
    if not sentences:
        return []
    return [Text("Against plain SGD, at equal tuning budget: " + " ".join(sentences))]


def _ending(row: Row) -> str:
    interval = interval_of(row)
    if row["note"]:
        return str(row["note"])
    if row["n"] < FEWEST_SEEDS or (not interval.bounded and row["statistic"] != "mean"):
        return "too few"
    if not interval.bounded:
        return "alike" if interval.estimate else "identical"
    if interval.sign and not row["holm"] < LEVEL:
        return "unconfirmed"
    return {1: "better", -1: "worse", 0: "same"}[interval.sign]


def _task_answer(
    evidence: Evidence,
    task: Task,
    compared: pd.DataFrame,
    ranges: pd.DataFrame,
    costs: pd.DataFrame,
    claimed: pd.DataFrame,
) -> str:
    about, methods = evidence.about(task), evidence.methods
    sentences = []
    rows = evidence.of(compared, task)
    places = gap_places(rows)
    for clip in CLIPS:
        readings = {
            row["reading"]: row for row in rows[rows["arm"] == methods.get(clip)].to_dict("records")
        }
        if Reading.EQUAL in readings:
            sentences.append(_verdict(clip, readings[Reading.EQUAL], about, places))
        if (
            Reading.ALL in readings
            and not readings[Reading.ALL]["note"]
            and interval_of(readings[Reading.ALL]).bounded
        ):
            whole = interval_of(readings[Reading.ALL])
            sentences.append(
                f"With all its settings: {signed(whole.estimate, places)} "
                f"{between(whole, places, sign=True)}."
            )
    if BASELINE in methods:
        sentences += [
            _range_sentence(clip, evidence.of(ranges, task), methods)
            for clip in CLIPS
            if clip in methods
        ]
    sentences.append(_cost_sentence(evidence, task, costs))
    sentences.append(_claims_sentence(evidence.of(claimed, task)))
    sentences += _asked_sentences(evidence, task)
    words = " ".join(filter(None, sentences))
    return f"**{evidence.labels[task]}**: {metric_note(about)}. {words}" if words else ""


def _verdict(  # noqa: PLR0911 - a sentence for every case
    clip: str, row: Row, about: Row, places: int
) -> str:
    """One comparison at equal budget, in words that the interval supports."""
    name, n = clip.capitalize(), int(row["n"])
    if row["note"] == Note.NEVER_FIRED:
        return (
            f"**{name}**, as chosen, never fired (under {percent(selection.FIRED)} of steps): "
            f"the same as plain SGD."
        )
    if row["note"] == Note.INCOMPLETE:
        return f"{name}: seeds failed or are missing, so nothing is concluded."
    if row["note"] == Note.NO_VALUE:
        return f"{name}: some runs ended with no value of the metric, so nothing is concluded."
    interval = interval_of(row)
    # The paired difference counts improvement as positive, whatever the metric's direction.
    unit = (
        "improvement in success rate"
        if about["success"] is not None
        else f"improvement in {metric_words(about)}"
    )
    shown = f"{signed(interval.estimate, places)} {between(interval, places, sign=True)}".strip()
    ending, seeds = _ending(row), seeds_note(n, about)
    if ending == "too few":
        why = (
            seeds
            if about["deterministic"] and n == 1
            else f"too few seeds to claim anything ({seeds})"
        )
        return f"{name}: {why}; {unit} {shown}."
    if ending == "identical":
        return (
            f"{name}: the same {metric_words(about)} as plain SGD on every seed, at equal "
            f"budget ({seeds})."
        )
    if ending == "alike":
        return (
            f"{name}: {unit} {shown} on every seed alike ({seeds}), from which nothing can be "
            f"inferred."
        )
    kind = "median, diverged seeds as the worst; " if row["statistic"] == "median" else ""
    if ending == "unconfirmed":
        return (
            f"{name}: {unit} {shown} at equal budget ({kind}n = {n}), which does not outlast "
            f"Holm's correction for the number of comparisons made here (p = {row['holm']:.2g})."
        )
    if interval.sign > 0:
        return (
            f"**{name} is better than plain SGD** at equal budget: {unit} {shown} ({kind}n = {n})."
        )
    if interval.sign < 0:
        return (
            f"**{name} is worse than plain SGD** at equal budget: {unit} {shown} ({kind}n = {n})."
        )
    return (
        f"{name}: no difference from plain SGD seen at equal budget, {unit} {shown} "
        f"({kind}n = {n})."
    )


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


def _claims_sentence(claimed: pd.DataFrame) -> str:
    others = claimed[(claimed["baseline"] != "sgd") & ~(claimed["n"] < FEWEST_SEEDS)]
    if others.empty:
        return ""
    held = others[(others["holm"] < 0.05) & (others["estimate"] != 0)]
    better, worse = int((held["estimate"] > 0).sum()), int((held["estimate"] < 0).sum())
    names = listed(sorted(set(others["baseline"])))
    if not better and not worse:
        return (
            f"On {names}, none of {plural(len(others), 'comparison')} between clipped and "
            f"unclipped survives Holm's correction."
        )
    total = plural(len(others), "comparison")
    return (
        f"On {names}, clipping gains in {better} and loses in {worse} of {total} after Holm's "
        f"correction."
    )


def _asked_sentences(evidence: Evidence, task: tuple[Any, ...]) -> list[str]:
    """The results of the untuned arms that the study's page names, a sentence each."""
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
