"""What to do, after the answer: a few lines, made of the verdicts, the firmest first."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from clipbench.report.answer import named, rows_of
from clipbench.report.answer_table import torch_line
from clipbench.report.evidence import Evidence
from clipbench.report.parts import List, Text
from clipbench.report.prose import paragraphs
from clipbench.report.words import (
    Row,
    fixed,
    listed,
    percent,
    short,
    threshold_words,
)
from clipbench.schema import Verdict
from clipbench.task import Task, Threshold

ADVISED = 5  # lines of advice at most
SAFER = 0.05  # by which share of seeds a clip must lose fewer to be called safer


def told(evidence: Evidence) -> list[Text | List]:
    """What to do, at most `ADVISED` lines, the firmest first."""
    rows = rows_of(evidence)
    if not rows:
        return []
    good = (Verdict.BETTER, Verdict.PERHAPS_BETTER)
    bad = (Verdict.WORSE, Verdict.PERHAPS_WORSE)
    open_rows = [row for row in rows if row["verdict"] == Verdict.UNDECIDED]
    needed = [row["needed"] for row in open_rows if row["n"] < row["needed"] < math.inf]
    lines = {
        "clip": [
            _clipped(evidence, row) | _beside(evidence, row)
            for row in rows
            if row["verdict"] in good and not row["instead_low"] > 0
        ],
        "refrain": [named(evidence, row) for row in rows if row["verdict"] in bad],
        "rival": _changes(evidence, rows),
        "lower": _lowered(evidence, rows),
        "safe": _safer(evidence, rows),
        "same": [_clipped(evidence, row) for row in rows if row["verdict"] == Verdict.SAME],
    }
    left = ADVISED - bool(open_rows)
    for name, said in lines.items():
        lines[name] = said[:left]
        left -= len(lines[name])
    return paragraphs(
        "advice",
        **lines,
        open=len(open_rows),
        needed=f"{min(needed):,.0f}" if needed else "",
        seeds=max((int(row["n"]) for row in open_rows), default=0),
    )


def _clipped(evidence: Evidence, row: Row) -> dict[str, Any]:
    """A clip to write, on which optimizer, and by which rule its threshold was found."""
    threshold = Threshold.of(row)
    return named(evidence, row) | {
        "optimizer": evidence.short(row["partner"]),
        "lr": short(row["lr"]),
        "set": threshold_words(threshold),
        "torch": torch_line(evidence, row),
        "percentile": short(threshold.percentile) if threshold.is_percentile else "",
        "of_norms": evidence.short(row["arm"]).endswith(" + norm"),
    }


def _beside(evidence: Evidence, row: Row) -> dict[str, str]:
    """The best other optimizer without a clip, if there is one with an interval: whether the clip
    is ahead of it or cannot be told from it.
    """
    known = bool(row["instead"]) and not math.isnan(row["instead_high"])
    return {
        "instead": evidence.short(row["instead"]) if known else "",
        "ahead": "yes" if row["instead_high"] < 0 else "",
    }


def _safer(evidence: Evidence, rows: Iterable[Row]) -> list[dict[str, Any]]:
    """The clips that lose fewer seeds along the whole axis, at 95 %, and at the chosen setting as
    well; those that save most first.
    """
    pairs = evidence.prevented
    fewer = {(*Task.of(one), one["arm"]): one for one in pairs.to_dict("records") if one["low"] > 0}
    saved = [
        row
        for row in rows
        if (*Task.of(row), row["arm"]) in fewer and row["lost_without"] - row["lost"] > SAFER
    ]
    return [
        named(evidence, row)
        | {
            **{name: _share(row, name) for name in ("lost", "lost_without")},
            "fewer": _points(one),
            "verdict": str(row["verdict"]),
        }
        for row in sorted(saved, key=lambda row: row["lost"] - row["lost_without"])
        for one in [fewer[*Task.of(row), row["arm"]]]
    ]


def _points(row: Row) -> str:
    """How many fewer of the runs are lost, in percentage points, with its interval."""
    told = [fixed(100 * row[name], 0) for name in ("fewer", "low", "high")]
    return f"{told[0]} [{told[1]}, {told[2]}]"


def _share(row: Row, name: str) -> str:
    """A share of seeds with its interval."""
    ends = [100 * row[f"{name}_{end}"] for end in ("low", "high")]
    told = "" if any(map(math.isnan, ends)) else f" [{fixed(ends[0], 0)}, {fixed(ends[1], 0)}]"
    return percent(row[name]) + told


def _changes(evidence: Evidence, rows: Iterable[Row]) -> list[dict[str, Any]]:
    """The tasks on which an arm without a clip is ahead of clips at 95 % and beyond the margin."""
    ahead: dict[tuple[Task, str], list[str]] = {}
    for row in rows:
        if row["instead_low"] > 0 and not row["instead_gain"] <= row["margin"]:
            ahead.setdefault((Task.of(row), row["instead"]), []).append(evidence.short(row["arm"]))
    return [
        {
            "label": evidence.labels[task],
            "instead": evidence.short(instead),
            "arms": listed(arms),
            "several": len(arms) > 1,
        }
        for (task, instead), arms in ahead.items()
    ]


def _lowered(evidence: Evidence, rows: Iterable[Row]) -> list[dict[str, str]]:
    """The clips that a lower learning rate without one does not lose to at 95 %."""
    lower = evidence.lower
    by_arm: Mapping[tuple[Any, ...], Row] = {
        (*Task.of(one), one["arm"]): one for one in lower.to_dict("records")
    }
    said = []
    for row in rows:
        one = by_arm.get((*Task.of(row), row["arm"]))
        if one and not one["low"] > 0 and not math.isnan(one["low"]):
            said.append(named(evidence, row) | {"lr": short(one["lr"])})
    return said
