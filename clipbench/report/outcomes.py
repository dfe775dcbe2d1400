"""Rows of `analysis.outcomes` in the words of a table: results, differences, endings, settings.

Shared by the sections that compare methods. It knows neither sections nor pages nor which methods
there are.
"""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from clipbench.analysis.outcomes import Note
from clipbench.report.words import (
    DASH,
    Row,
    between,
    fixed,
    interval_of,
    metric_words,
    percent,
    seeds_note,
    short,
    signed,
    threshold_words,
    unbounded,
)
from clipbench.schema import Outcome
from clipbench.task import Threshold

END_HEAD = ("div.", "coll.", "stall.", "failed")


def estimate(row: Row, places: int, about: Row) -> str:
    """A result with its interval and, where it is no mean, what it is."""
    interval, n = interval_of(row), int(row["n"])
    known = n - int(row["failed"]) - int(row["missing"]) - int(row["no_value"])
    if row["statistic"] == "incomplete":
        lacking = f", {int(row['no_value'])} with no value" if row["no_value"] else ""
        if not known:
            return (
                f"no seed has a value{lacking and ' though they ran'}"
                if row["no_value"] == n
                else "no seed finished"
            )
        return (
            (
                f"{fixed(interval.estimate, places)} (median of {known} of {n} seeds, "
                f"incomplete{lacking})"
            )
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
    if row["note"] == Note.NEVER_FIRED:
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


def ends(row: Row) -> list[str]:
    """How many seeds there are, and how many of them ended in each of the ways of `END_HEAD`."""
    lost = int(row["failed"]) + int(row["missing"])
    return [
        str(int(row["n"])),
        *(str(int(row[name])) for name in (Outcome.DIVERGED, Outcome.COLLAPSED, Outcome.STALLED)),
        str(lost),
    ]


def target(row: Row) -> str:
    """The steps until the target, ∞ if most seeds never met it, and how many did."""
    if math.isnan(row["steps_to_target"]):
        return DASH
    if math.isinf(row["steps_to_target"]):
        return f"∞ ({int(row['reached'])}/{int(row['n'])})"
    return f"{row['steps_to_target']:.0f} ({int(row['reached'])}/{int(row['n'])})"


def setting(row: Row) -> str:
    """The setting behind a result."""
    words = [f"lr {short(row['lr'])}"]
    if not (threshold := Threshold.of(row)).absent:
        words.append(f"threshold {threshold_words(threshold)}")
    if row["edge"]:
        words.append(f"at an edge: {row['edge']}")
    return ", ".join(words)


def prefixed(against: Row | None) -> dict[str, Any]:
    """A difference as columns beside those of a result."""
    names = ("baseline", "statistic", "estimate", "low", "high", "p", "note")
    return {f"difference_{name}": against[name] if against else None for name in names}


def n_words(results: pd.DataFrame, about: Row) -> str:
    """What the columns of `ends` count."""
    alone = about["deterministic"] and len(results) and results["n"].max() == 1
    return (
        f"n: {seeds_note(1, about) if alone else 'seeds'}; div., coll., stall., failed: how "
        f"many of them ended so."
    )


def value_head(about: Row) -> str:
    """The head of a column of results."""
    return "succeeded" if about["success"] is not None else metric_words(about)
