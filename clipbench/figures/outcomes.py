"""Figures of the report phase: the headline, and the loss curves."""

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

from clipbench.analysis import BASELINE, of_task
from clipbench.figures.style import FAINT, INK, arm_colours, blank, decades, number, order, setting, styled
from clipbench.selection import READINGS

READING_MARKERS = {"all": "o", "equal": "s", "untuned": "D"}
READING_WORDS = {"all": "all settings", "equal": "equal budget", "untuned": "untuned"}


@styled
def headline(
    results: pd.DataFrame, drawn: pd.DataFrame, panels: Sequence[Mapping[str, Any]], methods: Mapping[str, str], footer: str
) -> Figure:
    """The named methods per task: three readings with their intervals, every seed a faint dot.

    ``panels``: ``task`` (values of ``TASK``), ``title``, ``label``, ``success``, ``higher_is_better``. ``methods``: name → arm.
    """
    columns = 1 if len(panels) == 1 else 2
    rows = math.ceil(len(panels) / columns)
    figure = blank(4.6 * columns + 0.6, 0.46 * len(methods) * rows + 0.55 * rows + 0.6, footer)
    grid = figure.subplots(rows, columns, squeeze=False)
    tints = arm_colours(results.drop_duplicates("arm"))
    used: set[str] = set()
    for place, panel in zip(grid.flat, panels, strict=False):
        used |= _headline_panel(place, panel, results, drawn, methods, tints)
    for place in list(grid.flat)[len(panels) :]:
        place.set_axis_off()
    handles = [
        Line2D(
            [],
            [],
            marker=READING_MARKERS[name],
            color=INK,
            markerfacecolor=INK if name != "untuned" else "white",
            lw=1.2,
            ms=5,
            label=word,
        )
        for name, word in READING_WORDS.items()
        if name in used
    ]
    handles.append(Line2D([], [], marker="o", color=FAINT, alpha=0.6, lw=0, ms=3, label="one seed"))
    handles.append(Line2D([], [], marker="<", mfc="white", mec=INK, lw=0, ms=5, label="seeds beyond the axis"))
    handles.append(Line2D([], [], marker="x", color=INK, lw=0, ms=5, label="diverged seeds"))
    figure.legend(handles=handles, loc="outside upper left", ncols=6 if columns == 2 else 3)
    return figure


def _headline_panel(
    axes: Axes,
    panel: Mapping[str, Any],
    results: pd.DataFrame,
    drawn: pd.DataFrame,
    methods: Mapping[str, str],
    tints: Mapping[str, str],
) -> set[str]:
    here, seeds = of_task(results, panel["task"]), of_task(drawn, panel["task"])
    here, seeds = here[here["arm"].isin(list(methods.values()))], seeds[seeds["arm"].isin(list(methods.values()))]
    finite = pd.concat([here["estimate"], seeds["value"]]) if not panel["success"] else here["estimate"]
    finite = finite[np.isfinite(finite)]
    logarithmic = not panel["success"] and len(finite) > 0 and finite.min() > 0 and finite.max() / finite.min() > 50
    low, high = _span(_fenced(finite, here["estimate"]), panel["success"], logarithmic)
    worst = low if panel["higher_is_better"] else high
    used = set()
    for row, (_, arm) in enumerate(methods.items()):
        for offset, reading in zip((-0.25, 0.0, 0.25), READINGS, strict=True):
            one = here[(here["arm"] == arm) & (here["reading"] == reading)]
            if one.empty:
                continue
            used.add(reading)
            result, y = one.iloc[0], row + offset
            mine = seeds[(seeds["arm"] == arm) & (seeds["reading"] == reading)]
            if not panel["success"]:
                inside = mine["value"].between(low, high)
                axes.plot(mine["value"][inside], np.full(inside.sum(), y), "o", ms=2.4, mew=0, color=tints[arm], alpha=0.35)
                for edge, beyond, glyph in ((low, mine["value"] < low, "<"), (high, mine["value"] > high, ">")):
                    if beyond.any():
                        axes.plot([edge], [y], glyph, ms=5, mfc="white", mec=tints[arm], clip_on=False, zorder=5)
                        shift = (6, -2.2) if glyph == "<" else (-6, -2.2)
                        side = "left" if glyph == "<" else "right"
                        axes.annotate(f"{beyond.sum()}", (edge, y), shift, textcoords="offset points", fontsize=6, ha=side)
            lost = int((mine["ended"] == "diverged").sum())
            if lost:
                axes.plot([worst], [y], "x", ms=5, color=INK, clip_on=False, zorder=5)
                shift = (5, -2.2) if panel["higher_is_better"] else (-5, -2.2)
                side = "left" if panel["higher_is_better"] else "right"
                axes.annotate(f"{lost} of {len(mine)}", (worst, y), shift, textcoords="offset points", fontsize=6, ha=side)
            if np.isfinite(result["estimate"]):
                bounds = np.clip([result["low"], result["high"]], low, high)
                if not np.isnan(bounds).any():
                    axes.plot(bounds, [y, y], "-", color=tints[arm], lw=1.6, solid_capstyle="butt")
                face = "white" if reading == "untuned" else tints[arm]
                axes.plot(
                    [result["estimate"]], [y], READING_MARKERS[reading], ms=5.5, color=tints[arm], mfc=face, mew=1.1, zorder=4
                )
    baseline = here[(here["arm"] == methods.get(BASELINE)) & (here["reading"] == "equal")]["estimate"]
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


def _fenced(values: pd.Series[float], estimates: pd.Series[float]) -> pd.Series[float]:
    """The values without far outliers, which the panel marks at its edge instead of being squeezed by them.

    Estimates always stay.
    """
    if values.empty:
        return values
    low, middle, high = values.quantile([0.1, 0.5, 0.9])
    reach = 2 * max(high - middle, middle - low)
    known = estimates[np.isfinite(estimates)]
    return values[values.between(min(low - reach, known.min()), max(high + reach, known.max()))] if len(known) else values


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


@styled
def curves(
    lines: pd.DataFrame, arms: pd.DataFrame, chosen: pd.DataFrame, label: str, reference: float | None, footer: str
) -> Figure:
    """Training loss at the chosen settings: a panel per arm, every seed a thin line, the median thick, diverged ends a cross."""
    optimizers, clips = order(arms["optimizer_label"]), order(arms["clip_label"])
    figure = blank(2.45 * len(clips) + 0.7, 1.75 * len(optimizers) + 0.5, footer)
    grid = figure.subplots(len(optimizers), len(clips), squeeze=False, sharex=True, sharey=True)
    tints, settings = arm_colours(arms), {row["arm"]: row for row in chosen.to_dict("records")}
    for axes in grid.flat:
        axes.set_axis_off()
    for arm in arms.to_dict("records"):
        axes = grid[optimizers.index(arm["optimizer_label"])][clips.index(arm["clip_label"])]
        axes.set_axis_on()
        mine = lines[lines["arm"] == arm["arm"]]
        title = arm["arm"]
        if arm["arm"] in settings and len(mine):
            title += f"\n{setting(settings[arm['arm']])}"
        axes.set_title(title, fontsize=7.5, fontweight="normal")
        _curve_panel(axes, mine, tints[arm["arm"]])
        if reference is not None and reference > 0:
            axes.axhline(reference, color=FAINT, lw=0.7, ls=(0, (2, 2)), zorder=0)
        axes.grid(axis="y")
    positive = lines["gap"][np.isfinite(lines["gap"]) & (lines["gap"] > 0)]
    if len(positive):
        decades(grid[0][0], "y")
        low, high = float(positive.quantile(0.001)), float(positive.max())
        if reference:
            high = min(high, 1e3 * max(reference, float(positive.quantile(0.5))))
        grid[0][0].set_ylim(low / 1.3, max(high, 1.1 * low) * 1.3)
    figure.supylabel(label, fontsize=8)
    for axes in grid[-1]:
        axes.set_xlabel("step")
    return figure


def _curve_panel(axes: Axes, mine: pd.DataFrame, tint: str) -> None:
    if mine.empty:
        axes.text(0.5, 0.5, "no curve stored", transform=axes.transAxes, ha="center", fontsize=7, color="#777777")
        return
    lost = 0
    for _, line in mine.groupby("seed", sort=True):
        shown = line[np.isfinite(line["gap"]) & (line["gap"] > 0)]
        axes.plot(shown["step"], shown["gap"], "-", lw=0.5, color=tint, alpha=0.45)
        if line["ended"].iloc[0] == "diverged" and len(shown):
            axes.plot(shown["step"].iloc[-1:], shown["gap"].iloc[-1:], "x", ms=5, mew=1.1, color=INK, zorder=5)
        lost += line["ended"].iloc[0] == "diverged"
    seeds = mine["seed"].nunique()
    # A run that ended early stays in the median, as infinite: the median line ends where half of the seeds have.
    table = mine.pivot_table(index="step", columns="seed", values="gap", aggfunc="first", dropna=False)
    middle = table.interpolate(limit_area="inside").bfill().fillna(np.inf).quantile(0.5, axis=1, interpolation="higher")
    middle = middle[np.isfinite(middle) & (middle > 0)]
    axes.plot(middle.index, middle, "-", lw=1.5, color=tint)
    note = f"{seeds} seed{'s' * (seeds != 1)}" + (f", {lost} diverged" if lost else "")
    axes.text(0.98, 0.95, note, transform=axes.transAxes, ha="right", va="top", fontsize=6, color="#555555")
