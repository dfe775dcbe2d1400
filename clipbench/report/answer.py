"""Should I clip? The answer, from the numbers, in words that the intervals bear out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from clipbench import analysis, schema, selection
from clipbench.report.evidence import Evidence
from clipbench.report.parts import List, Text
from clipbench.report.words import Row, between, decimals, fixed, interval_of, listed, metric_words, percent, plural, short, signed
from clipbench.statistics import Interval


def answer(evidence: Evidence) -> list[Text | List]:
    """The reader's question, answered from the numbers, task by task."""
    if not len(evidence.cells):
        return [Text("**Nothing has been run yet.** No cell of this study is stored; `clipbench run` fills this folder.")]
    if not evidence.drawn["ended"].isin(schema.OUTCOMES).any():
        return [
            Text(
                "**No answer yet.** The report phase, which runs each method's chosen setting on fresh seeds, has no finished cell in this "
                "folder. What the selection phase showed is below; it chose the settings, so that its numbers flatter every method."
            )
        ]
    pairs = analysis.headline_pairs(evidence.arms, evidence.methods)
    compared = analysis.compare(evidence.drawn, pairs, evidence.components)
    ranges, costs = analysis.stable(evidence.cells), analysis.cost(evidence.throughput)
    claimed = analysis.claims(evidence.drawn, evidence.arms, evidence.components)
    items = [Text(_task_answer(evidence, task, compared, ranges, costs, claimed)) for task in evidence.tasks]
    return [List([item for item in items if item.words])]


def _task_answer(
    evidence: Evidence, task: tuple[Any, ...], compared: pd.DataFrame, ranges: pd.DataFrame, costs: pd.DataFrame, claimed: pd.DataFrame
) -> str:
    about, methods = evidence.about(task), evidence.methods
    sentences = []
    rows = evidence.of(compared, task)
    rows = rows[rows["reading"] == "equal"]
    places = decimals(rows[["estimate", "low", "high"]].abs().min(axis=1))
    places = min(places, 4) if len(rows) else 3
    for clip in ("value clip", "norm clip"):
        found = rows[rows["arm"] == methods.get(clip)]
        if len(found):
            sentences.append(_verdict(clip, found.iloc[0].to_dict(), about, places))
    for clip in ("value clip", "norm clip"):
        if clip in methods and "plain SGD" in methods:
            sentences.append(_range_sentence(clip, evidence.of(ranges, task), methods))
    sentences.append(_cost_sentence(task, costs))
    sentences.append(_claims_sentence(evidence.of(claimed, task)))
    told = " ".join(filter(None, sentences))
    return f"**{evidence.labels[task]}** ({_metric_note(about)}). {told}" if told else ""


def _metric_note(about: Row) -> str:
    if about["success"] is not None:
        return f"share of seeds that succeed: {metric_words(about)} {'≥' if about['higher_is_better'] else '≤'} {short(about['success'])}"
    return f"{metric_words(about)}, {'higher' if about['higher_is_better'] else 'lower'} is better"


def _verdict(clip: str, row: Row, about: Row, places: int) -> str:
    """One comparison at equal budget, in words that the interval bears out."""
    name, n = clip.capitalize(), int(row["n"])
    if row["note"] == "never fired":
        return f"**{name}**, as chosen, never fired (under {percent(selection.FIRED)} of steps): the same as plain SGD."
    if row["note"] == "incomplete":
        return f"{name}: seeds failed or are missing, so nothing is concluded."
    interval = interval_of(row)
    unit = "success rate" if about["success"] is not None else metric_words(about)
    if not interval.bounded:
        return f"{name}: {plural(n, 'seed')}, too few for an interval; nothing is concluded."
    shown = f"{signed(interval.estimate, places)} {between(interval, places, sign=True)}"
    kind = {"mean": "", "median": ", median with diverged seeds as the worst", "share": ""}[row["statistic"]]
    # The paired difference counts improvement as positive, whatever the metric's direction.
    gain = f"{unit}" if about["higher_is_better"] or about["success"] is not None else f"{unit} lower by"
    if interval.sign > 0:
        return f"**{name} is better than plain SGD** at equal budget: {gain} {shown}{kind} (n = {n})."
    if interval.sign < 0:
        return f"**{name} is worse than plain SGD** at equal budget: {gain} {shown}{kind} (n = {n})."
    return f"{name}: no difference from plain SGD seen at equal budget; {gain} {shown}{kind} (n = {n})."


def _range_sentence(clip: str, ranges: pd.DataFrame, methods: Mapping[str, str]) -> str:
    base = ranges[(ranges["arm"] == methods["plain SGD"]) & (ranges["basis"] == "no clip")]
    best = ranges[(ranges["arm"] == methods[clip]) & (ranges["basis"] == "best threshold")]
    if base.empty or best.empty:
        return ""
    before, after = base.iloc[0], best.iloc[0]
    if math.isnan(before["high"]) and math.isnan(after["high"]):
        return f"No learning rate was stable for plain SGD or with {clip}ping."
    at_least = "at least " if after["above"] else ""
    if math.isnan(before["high"]):
        return f"{clip.capitalize()}ping makes learning rates up to {at_least}{short(after['high'])} stable, where plain SGD has none."
    if math.isnan(after["high"]):
        return f"With {clip}ping no learning rate was stable; plain SGD holds to {short(before['high'])}."
    if after["high"] > before["high"]:
        return f"With {clip}ping the largest stable learning rate rises from {short(before['high'])} to {at_least}{short(after['high'])}."
    if after["high"] < before["high"]:
        return f"With {clip}ping the largest stable learning rate falls from {short(before['high'])} to {short(after['high'])}."
    edge = ", the largest tried" if before["above"] else ""
    return f"{clip.capitalize()}ping leaves the largest stable learning rate where it is ({short(before['high'])}{edge})."


def _cost_sentence(task: tuple[Any, ...], costs: pd.DataFrame) -> str:
    problem, batch, device, dtype = task
    mask = (costs["problem"] == problem) & (costs["batch"] == batch) & (costs["device"] == device) & (costs["dtype"] == dtype)
    rows = costs[mask & (costs["optimizer"] == "sgd") & costs["clip"].isin(["value", "norm"]) & np.isfinite(costs["ratio"])]
    said = [f"×{fixed(row['ratio'], 2)} {between(Interval(row['ratio'], row['low'], row['high']), 2)} with {row['clip']}" for row in rows.to_dict("records")]
    return f"A step costs {listed(said)} clipping." if said else ""


def _claims_sentence(claimed: pd.DataFrame) -> str:
    others = claimed[claimed["baseline"] != "sgd"]
    if others.empty:
        return ""
    held = others[(others["holm"] < 0.05) & (others["estimate"] != 0)]
    better, worse = int((held["estimate"] > 0).sum()), int((held["estimate"] < 0).sum())
    names = listed(sorted(set(others["baseline"])))
    if not better and not worse:
        return f"On {names}, none of {plural(len(others), 'comparison')} with and without a clip survives Holm's correction."
    return f"On {names}, of {plural(len(others), 'comparison')} with and without a clip {better} gain and {worse} lose after Holm's correction."
