"""The table of the answer: a row per comparison, in words and in marks by which a page draws it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from clipbench.report import hover
from clipbench.report.evidence import Evidence
from clipbench.report.headline import without_stopping
from clipbench.report.parts import Verdicts
from clipbench.report.words import (
    DASH,
    Row,
    between,
    decimals,
    fixed,
    gap_places,
    metric_words,
    percent,
    short,
    signed,
)
from clipbench.schema import Verdict
from clipbench.statistics import Interval
from clipbench.task import Task, Threshold

SIGNS = {  # verdict → sign, and the class of its colour
    str(Verdict.BETTER): ("▲", "better"),
    str(Verdict.PERHAPS_BETTER): ("△", "better"),
    str(Verdict.WORSE): ("▼", "worse"),
    str(Verdict.PERHAPS_WORSE): ("▽", "worse"),
    str(Verdict.SAME): ("=", "same"),
    str(Verdict.UNDECIDED): ("?", "open"),
    str(Verdict.NEVER_FIRED): ("○", "none"),
    str(Verdict.INCOMPLETE): ("…", "none"),
}
UNBROKEN = "\N{NO-BREAK SPACE}"  # a cell does not break before its unit
TORCH = {  # clip → the line of torch that does it
    "norm": "torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm={})",
    "value": "torch.nn.utils.clip_grad_value_(model.parameters(), clip_value={})",
}
HEAD = {  # what a column is, by which a page draws it → its head
    "problem": "problem (metric, parameters)",
    "arm": "optimizer, clip",
    "said": "verdict",
    "set": "learning rate, threshold (in the pilot's terms)",
    "levels": "without clip → with",
    "gain": "gain [95 %]",
    "margin": "“no difference” needs a margin of (used)",
    "tries": "thresholds to try until ahead",
    "moved": "highest learning rate, times [95 %]",
    "lost": "seeds lost, without → with",
    "fired": "steps clipped; gradient length kept",
    "cost": "more time a step",
    "instead": "another optimizer instead, its lead",
}
BEYOND = "outside what was tried"  # the learning rate at which half of the seeds are lost
EMPTY = re.compile(rf"[\s{DASH};→%]*|{BEYOND}")  # a cell without a value


def table(evidence: Evidence, rows: Sequence[Row]) -> Verdicts:
    """Each clip against the same optimizer without it, a row per comparison."""
    name = evidence.name("tables", "answer")
    built = [_row(evidence, row) for row in rows]
    columns = _filled([row for row, _ in built])
    data = evidence.answers.assign(
        label=[evidence.short(arm) for arm in evidence.answers["arm"]],
        instead=[evidence.short(arm) if arm else "" for arm in evidence.answers["instead"]],
    )
    caption = (
        "Each clip against the same optimizer without it; a gain is positive if the clip is "
        "better. Grey: the margin inside which no difference matters. A seed is lost if its run "
        "diverges, collapses or stalls."
        + " Highest learning rate: the one at which half of the seeds are lost; × 2: with the clip "
        "it is twice as high." * ("moved" in columns) + _seeds(evidence, rows)
    )
    return Verdicts(
        name,
        caption,
        [HEAD[column] for column in columns],
        [[row[column] for column in columns] for row, _ in built],
        data,
        words=4,
        marks=[marks for _, marks in built],
        columns=columns,
    )


def _seeds(evidence: Evidence, rows: Sequence[Row]) -> str:
    """Which seeds ``n`` counts, where a row has those of both phases together."""
    asked = evidence.plan.get("protocol", {}).get("seeds", {}).values()
    phases = {(count["select"], count["report"]) for count in asked}
    held = {row["n"] for row in rows if row["basis"] == "same tries"}
    if len(phases) != 1 or held != {sum(next(iter(phases)))}:
        return ""
    [(select, report)] = phases
    return (
        f" n: the {select} selection and {report} report seeds together; every three of them "
        "choose a learning rate, and the others judge it."
    )


def _filled(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """The columns that have a value in any row; the first four name it, and always stand."""
    first = list(HEAD)[:4]
    return [
        column
        for column in HEAD
        if column in first or not all(EMPTY.fullmatch(row[column]) for row in rows)
    ]


def _row(evidence: Evidence, row: Row) -> tuple[dict[str, str], dict[str, Any]]:
    task = Task.of(row)
    about, (places, digits) = evidence.about(task), decimals_of(evidence, Task.of(row))
    sign, colour = SIGNS.get(row["verdict"], ("·", "none"))
    bounds = Interval(row["difference"], row["low"], row["high"])
    gain = f"{signed(row['difference'], digits)} {between(bounds, digits, sign=True)}".strip()
    words = [
        f"{evidence.labels[task]} ({_metric(about)}{_size(row)})",
        evidence.short(row["arm"]),
        _verdict(evidence, row),
        setting(row),
        f"{fixed(row['without'], places)} → {fixed(row['estimate'], places)}",
        f"{gain}, n = {row['n']}" if row["n"] else DASH,
        fixed(row["smallest"], digits)
        + f" ({short(row['margin'])})" * (not math.isnan(row["margin"])),
        _until(evidence, row),
        _moved(row),
        f"{percent(row['lost_without']).removesuffix(' %')} → {percent(row['lost'])}",
        percent(row["fired"]) + f"; {percent(row['kept'])}" * (not math.isnan(row["kept"])),
        DASH if math.isnan(row["cost"]) else f"{signed(100 * (row['cost'] - 1), 0)} %",
        _rival(evidence, row, digits),
    ]
    return {
        column: one.replace(" %", f"{UNBROKEN}%").replace("n = ", f"n{UNBROKEN}={UNBROKEN}")
        for column, one in zip(HEAD, words, strict=True)
    }, {
        "row": row["row"],
        "sign": sign,
        "colour": colour,
        "hover": torch_line(evidence, row),
        "titles": hover.titles(row, str(about.get("name", ""))),
        "strip": _strip(evidence, row),
        "lead": row["instead_low"] > 0,
    }


def _metric(about: Row) -> str:
    return f"{metric_words(about)} {'↑' if about['higher_is_better'] else '↓'}"


def _size(row: Row) -> str:
    """How many parameters the model has, to two digits: ``3.7k``, ``2.1M``."""
    size = row["parameters"]
    if math.isnan(size):
        return ""
    unit, scale = next((pair for pair in (("M", 1e6), ("k", 1e3)) if size >= pair[1]), ("", 1.0))
    return f", {short(float(f'{size / scale:.2g}'))}{unit}"


def _verdict(evidence: Evidence, row: Row) -> str:
    if row["basis"] == "same tries":
        carried = "; one seed carries it" * bool(row["carried"])
        return row["verdict"] + without_stopping_of(evidence, row) + carried
    if row["verdict"]:
        return str(row["verdict"])
    side = "ahead" if row["low"] > 0 else "behind" if row["high"] < 0 else "open"
    return f"no verdict: {side}, with {_tries(row)}"


def _tries(row: Row) -> str:
    return f"{short(row['tries'])} tries against {short(row['tries_without'])}"


def setting(row: Row) -> str:
    """The settings that are chosen most often, without the clip and with it."""
    if math.isnan(row["lr"]):
        return DASH
    threshold, before = Threshold.of(row), row["lr_without"]
    lr = f"lr {short(row['lr'])}"
    if not math.isnan(before) and before != row["lr"]:
        lr = f"lr {short(before)} → {short(row['lr'])}"
    if threshold.absent:
        return lr
    also = []
    if not math.isnan(row["of_median"]):
        also.append(f"{short(row['of_median'])} × median")
    if threshold.is_percentile:
        also.append(f"p{short(threshold.percentile)}")
    return f"{lr}; at {short(threshold.value)}" + f" ({', '.join(also)})" * bool(also)


def _until(evidence: Evidence, row: Row) -> str:
    curves = evidence.of(evidence.budget, Task.of(row))
    if not (curves["arm"] == row["arm"]).any():
        return DASH
    return "never" if math.isnan(row["tries_until"]) else f"{row['tries_until']:.0f}"


def _moved(row: Row) -> str:
    """By which factor the clip moves the learning rate at which half of the seeds are lost; a bound
    if one of both lies outside the rates that were tried, and unknown if both do.
    """
    if row["beyond"] == "both":
        return BEYOND
    factor, low, high = (10.0 ** row[name] for name in ("shift", "shift_low", "shift_high"))
    if math.isnan(factor):
        return DASH
    sign = {"more": "≥ ", "less": "≤ "}.get(row["beyond"], "")
    interval = "" if math.isnan(low) else f" [{_times(low)}, {_times(high)}]"
    return f"{sign}× {_times(factor)}{interval}"


def _times(factor: float) -> str:
    """A factor with two decimals, or three digits if it is large."""
    return fixed(factor, 2) if factor < 10 else short(factor)


def _rival(evidence: Evidence, row: Row, digits: int) -> str:
    if not row["instead"]:
        return DASH
    bounds = Interval(row["instead_gain"], row["instead_low"], row["instead_high"])
    gain = f"{signed(bounds.estimate, digits)} {between(bounds, digits, sign=True)}".strip()
    return f"{evidence.short(row['instead'])}: {gain}"


def torch_line(evidence: Evidence, row: Row) -> str:
    """The line that does the same in a loop of one's own; empty if torch has none."""
    clip = evidence.arms.loc[evidence.arms["arm"] == row["arm"], "clip_label"].iloc[0]
    known = TORCH.get(clip, "")
    return known.format(short(row["threshold"])) if known and row["threshold"] >= 0 else ""


def _strip(evidence: Evidence, row: Row) -> dict[str, float] | None:
    """A gain on an axis from 0 to 100, zero at 50, with its interval and the margin's band."""
    mine = evidence.of(evidence.answers, Task.of(row))
    if math.isnan(row["difference"]):
        return None
    margin = row["margin"] if row["margin"] > 0 else 0.0
    bounds = mine[["low", "high", "difference"]].abs().to_numpy(dtype=float)
    largest = pd.Series(bounds.max(axis=1)).median()
    reach = max(1.2 * (largest if math.isfinite(largest) else 0.0), 1.5 * margin, 1e-12)

    def at(value: float) -> float:
        return round(50 + 50 * max(-1.0, min(1.0, value / reach)), 1)

    low, high = (
        row["difference"] if math.isnan(row[name]) else row[name] for name in ("low", "high")
    )
    return {
        "at": at(row["difference"]),
        "low": at(low),
        "high": at(high),
        "band": at(-margin),
        "width": round(at(margin) - at(-margin), 1),
    }


def without_stopping_of(evidence: Evidence, row: Row) -> str:
    """Whether the clip of a row is better only without early stopping."""
    gaps = evidence.of(evidence.gaps, Task.of(row))
    mine = gaps[gaps["arm"] == row["arm"]].to_dict("records")
    return without_stopping(mine[0]) if mine and row["basis"] == "same tries" else ""


def decimals_of(evidence: Evidence, task: Task) -> tuple[int, int]:
    """Decimals for levels and for differences of a task."""
    rows = evidence.of(evidence.answers, task)
    return decimals([*rows["estimate"].dropna(), *rows["without"].dropna()]), gap_places(rows)
