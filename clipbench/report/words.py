"""Numbers → words, with a true minus, ∞ for a value that was never reached, and a dash for NaN.

Shared by the sections. It knows none of them, and neither the store nor the parts of a page.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from clipbench.figures.style import given, number
from clipbench.schema import Outcome, Status
from clipbench.statistics import Interval
from clipbench.task import Threshold

DASH, MINUS, INFINITY = "–", "−", "∞"
METRICS = {"roc_auc": "ROC AUC"}
RANGES = {  # metric → the least and the greatest that it can be; of a user's own it is not known
    **dict.fromkeys(("accuracy", "dice", "roc_auc", "mean_auc"), (0.0, 1.0)),
    **dict.fromkeys(("log_loss", "bits"), (0.0, math.inf)),
}

Row = Mapping[str, Any]


def decimals(values: Iterable[float]) -> int:
    """How many decimals a column of such numbers needs: three digits at the largest, more if the
    values are close to zero.
    """
    finite = [abs(value) for value in values if math.isfinite(value) and value]
    if not finite:
        return 3
    return max(0, min(8, 2 - math.floor(math.log10(max(finite)))))


def gap_places(gaps: pd.DataFrame) -> int:
    """Decimals for differences: two digits of the typical half width."""
    half = ((gaps["high"] - gaps["low"]) / 2).to_numpy(dtype=float)
    half = half[np.isfinite(half) & (half > 0)]
    return decimals([float(np.median(half))]) - 1 if len(half) else 3


def fixed(value: float, places: int) -> str:
    """A number with so many decimals, with a true minus; ∞, and a dash for NaN."""
    if math.isnan(value):
        return DASH
    if math.isinf(value):
        return INFINITY if value > 0 else MINUS + INFINITY
    text = f"{value:.{places}f}"
    if not text.strip("-0."):
        text = text.lstrip("-")
    return text.replace("-", MINUS)


def signed(value: float, places: int) -> str:
    """A difference: its sign always shown."""
    text = fixed(value, places)
    return f"+{text}" if value > 0 and text.strip("0.") else text


def short(value: float) -> str:
    """A number with up to three digits, as settings are written."""
    if not math.isfinite(value):
        return fixed(value, 0)
    return number(float(f"{value:.3g}"))


def threshold_words(threshold: Threshold) -> str:
    """``0.12``, or ``0.12 (0.3×)``, ``0.12 (p90)`` if the study gave the threshold as a multiple or
    a percentile.
    """
    return short(threshold.value) + (f" ({given(threshold)})" if threshold.word else "")


def percent(value: float) -> str:
    """A share in percent."""
    if math.isnan(value):
        return DASH
    return "<1 %" if 0 < value < 0.01 else ">99 %" if 0.99 < value < 1 else f"{100 * value:.0f} %"


def between(interval: Interval, places: int, sign: bool = False) -> str:
    """``[low, high]``, or nothing if there are no bounds."""
    show = signed if sign else fixed

    def bound(value: float) -> str:
        told = show(value, places)
        if value == 0 or told.strip("0."):
            return told
        # a bound that is not zero is not shown as zero: on which side it lies is what is asked
        return "+" * (sign and value > 0) + short(value).replace("-", MINUS)

    return f"[{bound(interval.low)}, {bound(interval.high)}]" if interval.bounded else ""


def signed_gap(row: Row, places: int) -> str:
    """``+.012 [+.004, +.020]``: a row's difference with its interval."""
    bounds = Interval(row["difference"], row["low"], row["high"])
    return f"{signed(bounds.estimate, places)} {between(bounds, places, sign=True)}".strip()


def seconds(value: float) -> str:
    """A duration in the unit that suits it."""
    if not math.isfinite(value):
        return DASH
    unit, size = next(
        (pair for pair in (("s", 1.0), ("ms", 1e-3)) if value >= pair[1]), ("µs", 1e-6)
    )
    return f"{number(float(f'{value / size:.3g}'))} {unit}"


def number_of_bytes(value: float) -> str:
    """A size in the unit that suits it."""
    if not math.isfinite(value):
        return DASH
    unit, size = next(
        (pair for pair in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if abs(value) >= pair[1]),
        ("B", 1.0),
    )
    return f"{number(float(f'{value / size:.3g}'))} {unit}"


def census(ended: Mapping[str, int]) -> str:
    """``2,400 cells: 31 diverged, 120 collapsed, 80 stalled, 0 failed``."""
    others = ", ".join(
        f"{ended[name]:,} {name}"
        for name in (Outcome.DIVERGED, Outcome.COLLAPSED, Outcome.STALLED, Status.FAILED)
    )
    return f"{ended['cells']:,} cell{'s' * (ended['cells'] != 1)}: {others}"


def metric_words(about: Row) -> str:
    """The metric and its better direction."""
    name = str(about["metric"])
    return METRICS.get(name, name.replace("_", " "))


def plural(count: int, noun: str) -> str:
    """``1 cell``, ``2 cells``."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def listed(words: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]])) if words else ""


def interval_of(row: Row) -> Interval:
    """The interval in a row's ``estimate``, ``low`` and ``high``."""
    return Interval(row["estimate"], row["low"], row["high"])


def beyond(levels: pd.DataFrame, about: Row) -> str:
    """A sentence for the caption of a table with an interval that reaches beyond what its metric
    can be; empty if none does, or if nobody knows what it can be.

    :param levels: rows with ``low`` and ``high``, in the unit of the metric.
    """
    least, greatest = RANGES.get(str(about["metric"]), (-math.inf, math.inf))
    if not ((levels["low"] < least).any() or (levels["high"] > greatest).any()):
        return ""
    span = f"{short(least)} to {short(greatest)}" if greatest < math.inf else f"{short(least)} on"
    return (
        f" An interval is as wide below the mean as above it, and here some reach beyond what "
        f"{metric_words(about)} can be ({span}): read these as ending there."
    )


def metric_note(about: Row) -> str:
    """What the numbers of a task are."""
    if about["success"] is not None:
        sign = "≥" if about["higher_is_better"] else "≤"
        return (
            f"share of seeds that succeed ({metric_words(about)} {sign} {short(about['success'])})"
        )
    return f"{metric_words(about)} ({'higher' if about['higher_is_better'] else 'lower'} is better)"


def seeds_note(n: int, about: Row) -> str:
    """``n = 10``, or why there is only one run."""
    return "no randomness: one run" if about["deterministic"] and n == 1 else f"n = {n}"


def unbounded(row: Row, about: Row) -> str:
    """Why a result has no interval."""
    n = int(row["n"])
    if n == 1:
        note = seeds_note(n, about)
        return note if about["deterministic"] else f"{note}, no interval"
    return (
        f"all {n} seeds alike, no interval"
        if row["statistic"] == "mean"
        else "too few seeds for an interval"
    )


def p_value(p: float) -> str:
    """A p value as papers write it."""
    return (
        DASH if math.isnan(p) else "<0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"
    )
