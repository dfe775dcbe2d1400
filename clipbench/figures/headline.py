"""The figure of the named methods: their results on report seeds, and every seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from clipbench.analysis.cells import of_task
from clipbench.analysis.outcomes import READING_LABELS
from clipbench.figures.style import FAINT, INK, arm_colours, blank, decades, number, styled
from clipbench.schema import Outcome, Reading
from clipbench.selection import BASELINE

READING_MARKERS = {Reading.ALL: "o", Reading.EQUAL: "s", Reading.UNTUNED: "D"}


@styled
def draw(
    results: pd.DataFrame,
    drawn: pd.DataFrame,
    panels: Sequence[Mapping[str, Any]],
    methods: Mapping[str, str],
    footer: str,
) -> Figure:
    """The named methods per task: three readings with their intervals, every seed a faint dot.

    ``panels``: ``task`` (values of ``TASK``), ``title``, ``label``, ``success``,
    ``higher_is_better``. ``methods``: name → arm.
    """
    columns = 1 if len(panels) == 1 else 2
    rows = math.ceil(len(panels) / columns)
    figure = blank(4.6 * columns + 0.6, 0.46 * len(methods) * rows + 0.55 * rows + 0.6, footer)
    grid = figure.subplots(rows, columns, squeeze=False)
    tints = arm_colours(results.drop_duplicates("arm"))
    used: set[str] = set()
    for axes, panel in zip(grid.flat, panels, strict=False):
        used |= _panel(axes, panel, results, drawn, methods, tints)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_axis_off()
    handles = [
        Line2D(
            [],
            [],
            marker=READING_MARKERS[name],
            color=INK,
            markerfacecolor=INK if name != Reading.UNTUNED else "white",
            lw=1.2,
            ms=5,
            label=word,
        )
        for name, word in READING_LABELS.items()
        if name in used
    ]
    handles.append(Line2D([], [], marker="o", color=FAINT, alpha=0.6, lw=0, ms=3, label="one seed"))
    handles.append(
        Line2D([], [], marker="<", mfc="white", mec=INK, lw=0, ms=5, label="seeds beyond the axis")
    )
    handles.append(Line2D([], [], marker="x", color=INK, lw=0, ms=5, label="diverged seeds"))
    figure.legend(handles=handles, loc="outside upper left", ncols=6 if columns == 2 else 3)
    return figure


def _panel(
    axes: Axes,
    panel: Mapping[str, Any],
    results: pd.DataFrame,
    drawn: pd.DataFrame,
    methods: Mapping[str, str],
    tints: Mapping[str, str],
) -> set[str]:
    here, seeds = of_task(results, panel["task"]), of_task(drawn, panel["task"])
    here, seeds = (
        here[here["arm"].isin(list(methods.values()))],
        seeds[seeds["arm"].isin(list(methods.values()))],
    )
    finite = (
        pd.concat([here["estimate"], seeds["value"]]) if not panel["success"] else here["estimate"]
    )
    finite = finite[np.isfinite(finite)]
    logarithmic = (
        not panel["success"]
        and len(finite) > 0
        and finite.min() > 0
        and finite.max() / finite.min() > 50
    )
    low, high = _span(_within_fences(finite, here["estimate"]), panel["success"], logarithmic)
    worst = low if panel["higher_is_better"] else high
    used: set[str] = set()
    for row, (_, arm) in enumerate(methods.items()):
        for offset, reading in zip((-0.25, 0.0, 0.25), Reading, strict=True):
            one = here[(here["arm"] == arm) & (here["reading"] == reading)]
            if one.empty:
                continue
            used.add(reading)
            result, y = one.iloc[0], row + offset
            mine = seeds[(seeds["arm"] == arm) & (seeds["reading"] == reading)]
            if not panel["success"]:
                _seeds(axes, mine["value"], y, (low, high), tints[arm])
            lost = int((mine["ended"] == Outcome.DIVERGED).sum())
            if lost:
                _lost(axes, f"{lost} of {len(mine)}", (worst, y), panel["higher_is_better"])
            if np.isfinite(result["estimate"]):
                _estimate(axes, result, y, (low, high), tints[arm])
    baseline = here[(here["arm"] == methods.get(BASELINE)) & (here["reading"] == Reading.EQUAL)][
        "estimate"
    ]
    if len(baseline) and np.isfinite(baseline.iloc[0]):
        axes.axvline(baseline.iloc[0], color=FAINT, lw=0.8, ls=(0, (4, 3)), zorder=0)
    axes.set_yticks(range(len(methods)), list(methods))
    axes.tick_params(axis="y", length=0, labelsize=8)
    axes.set_ylim(len(methods) - 0.45, -0.55)
    if logarithmic:
        decades(axes, "x")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(round(value, 6))))
    axes.set_xlim(low, high)
    axes.grid(axis="x")
    axes.set_title(panel["title"])
    axes.set_xlabel(panel["label"])
    return used


def _seeds(
    axes: Axes, values: pd.Series[float], y: float, span: tuple[float, float], tint: Any
) -> None:
    """A faint dot for every seed, and at each end of the axis the number of those beyond it."""
    low, high = span
    inside = values.between(low, high)
    axes.plot(
        values[inside],
        np.full(inside.sum(), y),
        "o",
        ms=2.4,
        mew=0,
        color=tint,
        alpha=0.35,
    )
    for edge, beyond, glyph in (
        (low, values < low, "<"),
        (high, values > high, ">"),
    ):
        if beyond.any():
            axes.plot(
                [edge],
                [y],
                glyph,
                ms=5,
                mfc="white",
                mec=tint,
                clip_on=False,
                zorder=5,
            )
            shift = (6, -2.2) if glyph == "<" else (-6, -2.2)
            side = "left" if glyph == "<" else "right"
            axes.annotate(
                f"{beyond.sum()}",
                (edge, y),
                shift,
                textcoords="offset points",
                fontsize=6,
                ha=side,
            )


def _lost(axes: Axes, words: str, place: tuple[float, float], higher_is_better: bool) -> None:
    """The number of diverged seeds, at the worse end of the axis."""
    axes.plot([place[0]], [place[1]], "x", ms=5, color=INK, clip_on=False, zorder=5)
    shift = (5, -2.2) if higher_is_better else (-5, -2.2)
    side = "left" if higher_is_better else "right"
    axes.annotate(
        words,
        place,
        shift,
        textcoords="offset points",
        fontsize=6,
        ha=side,
    )


def _estimate(axes: Axes, result: Any, y: float, span: tuple[float, float], tint: Any) -> None:
    """A result and its interval."""
    bounds = np.clip([result["low"], result["high"]], *span)
    if not np.isnan(bounds).any():
        axes.plot(bounds, [y, y], "-", color=tint, lw=1.6, solid_capstyle="butt")
    face = "white" if result["reading"] == Reading.UNTUNED else tint
    axes.plot(
        [result["estimate"]],
        [y],
        READING_MARKERS[result["reading"]],
        ms=5.5,
        color=tint,
        mfc=face,
        mew=1.1,
        zorder=4,
    )


def _within_fences(values: pd.Series[float], estimates: pd.Series[float]) -> pd.Series[float]:
    """The values without far outliers, which the panel marks at its edge instead of being squeezed
    by them.

    Estimates always stay.
    """
    if values.empty:
        return values
    low, middle, high = values.quantile([0.1, 0.5, 0.9])
    reach = 2 * max(high - middle, middle - low)
    known = estimates[np.isfinite(estimates)]
    return (
        values[values.between(min(low - reach, known.min()), max(high + reach, known.max()))]
        if len(known)
        else values
    )


def _span(values: pd.Series[float], success: bool, logarithmic: bool) -> tuple[float, float]:
    if success:
        return -0.04, 1.04
    if values.empty:
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    if logarithmic:
        pad = max(0.05 * math.log10(high / low), 0.05)
        return low / 10**pad, high * 10**pad
    pad = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    return low - pad, high + pad
