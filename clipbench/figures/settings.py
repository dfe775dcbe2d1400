"""Figures of the selection phase and of cost: heat maps, ranges, shares and ratios."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter, NullLocator

from clipbench.figures.style import (
    CLIPS,
    FAINT,
    INK,
    MARKERS,
    OPTIMIZERS,
    OTHER_MARKERS,
    among,
    arm_colours,
    blank,
    colours,
    log_ticks,
    number,
    order,
    styled,
)
from clipbench.task import Threshold, axis_label

LETTERS = {"diverged": "D", "collapsed": "C", "stalled": "S", "failed": "F", "no_value": "?"}
HATCHES = {"diverged": "xxxx", "collapsed": "////", "stalled": "----", "failed": "||||", "no_value": "...."}
USUAL = 30  # characters of an arm's name that a figure has room for
SHADES = 40  # matplotlib draws a colour bar of 50 shades or more as an embedded bitmap


@styled
def heat(
    settings: pd.DataFrame, arms: pd.DataFrame, chosen: pd.DataFrame, label: str, higher_is_better: bool, footer: str
) -> Figure:
    """The metric over lr × threshold, a panel per clipped arm, with the unclipped optimizer as the lowest row.

    Colour is what ``statistic`` says: the mean over the selection seeds, or the share of them that succeeded. Where a seed
    diverged, collapsed, stalled, failed or has no value, a letter and a hatch say so; a cell with a diverged seed has no mean
    and so no colour, since a mean over the survivors would flatter it; a share it has.
    """
    clipped = arms[arms["clip"] != "none"]
    shown = clipped if len(clipped) else arms
    optimizers, clips = order(shown["optimizer_label"]), order(shown["clip_label"])
    tall = max((len(_thresholds(settings[settings["arm"] == arm])) for arm in shown["arm"]), default=1) + 1
    figure = blank(3.5 * len(clips) + 1.3, (0.26 * tall + 0.75) * len(optimizers) + 0.8, footer)
    grid = figure.subplots(len(optimizers), len(clips), squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    # The scale is that of the runs that kept going; collapsed ones are told by their hatch and would use up all of the contrast.
    valued = settings.loc[np.isfinite(settings["value"]) & (settings["diverged"] + settings["collapsed"] == 0), "value"]
    shares = bool((settings["statistic"] == "share").any())
    norm = Normalize(0, 1) if shares else _norm(valued, higher_is_better)
    higher_is_better = higher_is_better or shares
    paint = mpl.colormaps["cividis" if higher_is_better else "cividis_r"].resampled(SHADES)
    for arm in shown.to_dict("records"):
        axes = grid[optimizers.index(arm["optimizer_label"])][clips.index(arm["clip_label"])]
        axes.set_axis_on()
        rows = settings[settings["arm"] == arm["arm"]]
        partner = settings[settings["arm"] == arm["partner"]] if arm["partner"] else settings.iloc[:0]
        pick = chosen[chosen["arm"].isin([arm["arm"], arm["partner"]])]
        _heat_panel(axes, rows, partner, pick, norm, paint)
        axes.set_title(arm["arm"])
        axes.set_ylabel(axis_label(arm["setting"], relative=False))
    for axes in grid[-1]:
        axes.set_xlabel("learning rate")
    if len(valued) or shares:
        ends = "min" if higher_is_better else "max"
        extend = "neither" if shares else ends
        scale = figure.colorbar(ScalarMappable(norm=norm, cmap=paint), ax=grid, shrink=0.7, pad=0.02, aspect=28, extend=extend)
        scale.set_label(label)
        scale.outline.set_visible(False)
        if scale.solids is not None:
            scale.solids.set_edgecolor("face")
        scale.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(float(f"{value:.3g}"))))
        scale.ax.yaxis.set_minor_locator(NullLocator())
    handles = [
        Patch(
            facecolor="#d9d9d9" if name in ("diverged", "failed", "no_value") and not (shares and name == "diverged") else "white",
            edgecolor="#555555",
            hatch=HATCHES[name],
            label=f"{letter} {name.replace('_', ' ')}",
        )
        for name, letter in LETTERS.items()
        if settings[name].sum()
    ]
    handles.append(Patch(facecolor="none", edgecolor="#d00000", lw=1.6, label="chosen setting"))
    figure.legend(handles=handles, loc="outside upper left", ncols=6, handlelength=2.2, handleheight=1.4)
    return figure


def _norm(values: pd.Series[float], higher_is_better: bool) -> Normalize:
    """The scale of the better runs: the worst sixth shares the colour of its end, so that the good ones can be told apart."""
    if values.empty:
        return Normalize(0, 1)
    low = float(values.quantile(1 / 6)) if higher_is_better else float(values.min())
    high = float(values.max()) if higher_is_better else float(values.quantile(5 / 6))
    if low > 0 and high / low > 50:
        return LogNorm(low, high)
    return Normalize(low, high if high > low else low + 1e-9)


def _thresholds(rows: pd.DataFrame) -> list[Threshold]:
    """The thresholds of an arm, small to large."""
    found = {one.key: one for one in map(Threshold.of, rows.to_dict("records"))}
    return [found[key] for key in sorted(found)]


def _heat_panel(axes: Axes, rows: pd.DataFrame, partner: pd.DataFrame, pick: pd.DataFrame, norm: Normalize, paint: Any) -> None:
    lrs = sorted(set(rows["lr"]) | set(partner["lr"]))
    levels = [*([Threshold()] if len(partner) else []), *_thresholds(rows)]
    heights = {one.key: height for height, one in reversed([*enumerate(levels)])}
    values, marks = np.full((len(levels), len(lrs)), np.nan), []
    for frame, unclipped in ((partner, True), (rows, False)):
        for cell in frame.to_dict("records"):
            height = 0 if unclipped else heights[Threshold.of(cell).key]
            column = lrs.index(cell["lr"])
            if not cell["diverged"] or cell["statistic"] == "share":
                values[height, column] = cell["value"]
            spoiled = {name: int(cell[name]) for name in LETTERS if cell[name]}
            if spoiled:
                marks.append((column, height, spoiled, int(cell["seeds"])))
    edges_x, edges_y = np.arange(len(lrs) + 1) - 0.5, np.arange(len(levels) + 1) - 0.5
    axes.pcolormesh(edges_x, edges_y, np.ma.masked_invalid(values), cmap=paint, norm=norm, edgecolors="white", linewidth=0.6)
    for column, height, spoiled, seeds in marks:
        worst = next(iter(spoiled))
        blank = np.isnan(values[height, column])
        dark = blank or sum(paint(norm(values[height, column]))[:3]) > 1.5
        axes.add_patch(
            Rectangle(
                (column - 0.48, height - 0.47),
                0.96,
                0.94,
                facecolor="#d9d9d9" if blank else "none",
                edgecolor="#8a8a8a" if dark else "#b5b5b5",
                hatch=HATCHES[worst],
                lw=0,
            )
        )
        text = " ".join(f"{LETTERS[name]}{count if count < seeds else ''}" for name, count in spoiled.items())
        box = {"boxstyle": "square,pad=0.15", "facecolor": "#ffffffd8", "edgecolor": "none"}
        axes.text(column, height, text, ha="center", va="center", fontsize=6, color="black", bbox=box)
    for choice in pick.to_dict("records"):
        threshold = Threshold.of(choice)
        if threshold.absent and not len(partner) and len(rows) and not rows["threshold"].isna().all():
            continue
        if choice["lr"] in lrs:
            height = 0 if threshold.absent else heights.get(threshold.key, 0)
            axes.add_patch(
                Rectangle(
                    (lrs.index(choice["lr"]) - 0.46, height - 0.45), 0.92, 0.9, fill=False, edgecolor="#d00000", lw=1.6, zorder=6
                )
            )
    if len(partner):
        axes.axhline(0.5, color="white", lw=2.5)
    axes.set_xticks(range(len(lrs)), [number(lr) for lr in lrs])
    axes.set_yticks(range(len(levels)), [_tick(one) for one in levels])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _tick(threshold: Threshold) -> str:
    return "no clip" if threshold.absent else f"{number(threshold.given)}{'×' * threshold.is_relative}"


@styled
def stable(ranges: pd.DataFrame, arms: pd.DataFrame, steady: pd.DataFrame, footer: str) -> Figure:
    """The learning rates at which every seed learned: a bar per arm; inside a clipped arm's, the bar of its best single threshold.

    ``steady`` has the ranges of momentum arms with ``factor``: they are drawn once more as lr/(1 − μ).
    """
    optimizers, clips = order(arms["optimizer_label"]), order(arms["clip_label"])
    ordered = sorted(
        arms.to_dict("records"), key=lambda row: (optimizers.index(row["optimizer_label"]), clips.index(row["clip_label"]))
    )
    figure = blank(6.6 + _room(arm["arm"] for arm in ordered), 0.27 * len(ordered) + 1.0, footer)
    axes, tints = figure.subplots(), arm_colours(arms)
    tried: set[float] = set()
    for row, arm in enumerate(ordered):
        for one in ranges[ranges["arm"] == arm["arm"]].to_dict("records"):
            tried |= set(one["tried"])
            outer = one["basis"] == "best threshold"
            if one["basis"] != "one threshold":
                axes.plot(one["tried"], [row] * len(one["tried"]), "|", ms=5, mew=0.7, color="#bdbdbd", zorder=1)
                axes.plot(one["lrs"], [row] * len(one["lrs"]), "o", ms=3.2, mew=0.5, mfc="white", mec=INK, zorder=5)
            if math.isnan(one["low"]):
                if one["basis"] != "one threshold":
                    axes.text(min(one["tried"]), row - 0.32, "none stable", fontsize=6, color="#777777", va="center")
                continue
            height = 0.56 if outer or one["basis"] == "no clip" else 0.24
            low, high = one["low"] / 1.12, one["high"] * 1.12
            alpha = 0.4 if outer else 1.0
            axes.barh(
                row, high - low, left=low, height=height, color=tints[arm["arm"]], alpha=alpha, lw=0, zorder=2 if outer else 3
            )
            if one["above"] and one["basis"] != "one threshold":
                axes.annotate("", (high * 1.35, row), (high, row), arrowprops={"arrowstyle": "->", "color": INK, "lw": 0.9})
    for one in steady.to_dict("records"):
        place = [arm["arm"] for arm in ordered].index(one["arm"]) + 0.4
        if not math.isnan(one["low"]):
            axes.plot(
                [one["low"] * one["factor"], one["high"] * one["factor"]],
                [place, place],
                "-",
                marker="|",
                ms=4,
                lw=0.9,
                color=INK,
                zorder=6,
            )
            tried.add(one["high"] * one["factor"])
    axes.set_yticks(range(len(ordered)), [arm["arm"] for arm in ordered])
    axes.set_ylim(len(ordered) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    for row in range(1, len(ordered)):
        if ordered[row]["optimizer_label"] != ordered[row - 1]["optimizer_label"]:
            axes.axhline(row - 0.5, color="#dddddd", lw=0.6)
    _tried_axis(axes, tried)
    axes.set_xlabel("learning rate (an arrow: stable up to the largest one tried)")
    handles = [
        Patch(facecolor="#777777", label="no clip, or one threshold"),
        Patch(facecolor="#777777", alpha=0.4, label="best threshold at each lr"),
        Line2D([], [], marker="o", mfc="white", mec=INK, lw=0, ms=3.2, label="stable"),
        Line2D([], [], marker="|", color="#bdbdbd", lw=0, ms=5, label="tried"),
    ]
    if len(steady):
        handles.append(Line2D([], [], marker="|", color=INK, lw=0.9, ms=4, label="as lr/(1 − μ)"))
    figure.legend(handles=handles, loc="outside upper left", ncols=5, columnspacing=1.2)
    return figure


def _tried_axis(axes: Axes, tried: set[float]) -> None:
    if tried:
        log_ticks(axes, sorted(tried))
        axes.set_xlim(min(tried) / 1.6, max(tried) * 1.9)
        axes.tick_params(axis="x", rotation=45 if len(tried) > 9 else 0)


@styled
def fired(shares: pd.DataFrame, arms: pd.DataFrame, footer: str) -> Figure:
    """Share of steps clipped against the threshold: a panel per clip, a line per optimizer; the band spans the learning rates."""
    clips = order(arms.loc[arms["clip"] != "none", "clip_label"])
    figure = blank(3.1 * max(1, len(clips)) + 0.6, 2.5, footer)
    grid = figure.subplots(1, max(1, len(clips)), squeeze=False, sharey=True)
    tints, handles = colours(arms["optimizer"], OPTIMIZERS), dict[str, Any]()
    for axes, clip in zip(grid.flat, clips, strict=True):
        places: set[float] = set()
        setting = arms.loc[arms["clip_label"] == clip, "setting"].iloc[0]
        for arm in arms[arms["clip_label"] == clip].to_dict("records"):
            line = shares[shares["arm"] == arm["arm"]].sort_values("place")
            if line.empty:
                continue
            places |= set(line["place"])
            tint, marker = tints[arm["optimizer"]], among(arm["optimizer"], arms["optimizer"], MARKERS, OTHER_MARKERS)
            axes.fill_between(line["place"], line["low"], line["high"], color=tint, alpha=0.1, lw=0)
            drawn = axes.plot(
                line["place"], line["median"], "-", marker=marker, ms=4, lw=1.2, color=tint, label=arm["optimizer_label"]
            )
            handles.setdefault(arm["optimizer_label"], drawn[0])
        if places:
            log_ticks(axes, sorted(places))
        axes.set_title(clip)
        relative = shares[shares["arm"].isin(arms.loc[arms["clip_label"] == clip, "arm"])]["relative"].notna()
        axes.set_xlabel(axis_label(setting, relative=bool(relative.any())))
        axes.set_ylim(-0.03, 1.03)
        axes.grid(axis="y")
    grid[0][0].set_ylabel("share of steps clipped")
    if handles:
        figure.legend(handles=[handles[label] for label in order(handles)], loc="outside upper left", ncols=6)
    return figure


@styled
def cost(table: pd.DataFrame, footer: str) -> Figure:
    """Time of a clipped step over the unclipped step beside it, with the interval of the median."""
    rows = table[(table["clip"] != "none") & np.isfinite(table["ratio"])]
    optimizers = order(rows["optimizer"])
    clips = order(rows["clip"])
    ordered = sorted(rows.to_dict("records"), key=lambda row: (optimizers.index(row["optimizer"]), clips.index(row["clip"])))
    figure = blank(6.2, 0.25 * len(ordered) + 0.9, footer)
    axes = figure.subplots()
    # A label may carry settings; its colour is the colour of the name before them.
    tints = colours([clip.partition("(")[0] for clip in clips], CLIPS)
    for place, row in enumerate(ordered):
        tint = tints[row["clip"].partition("(")[0]]
        marker = among(row["optimizer"].partition("(")[0], [name.partition("(")[0] for name in optimizers], MARKERS, OTHER_MARKERS)
        if not math.isnan(row["low"]):
            axes.plot([row["low"], row["high"]], [place, place], "-", color=tint, lw=2)
        axes.plot([row["ratio"]], [place], marker, color=tint, ms=5.5)
    axes.axvline(1, color=FAINT, lw=0.8)
    axes.set_yticks(range(len(ordered)), [f"{row['optimizer']} + {row['clip']}" for row in ordered])
    axes.set_ylim(len(ordered) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"×{number(round(value, 4))}"))
    axes.set_xlabel("step time relative to the same optimizer without a clip")
    return figure


def _room(labels: Iterable[str]) -> float:
    """What a figure is wider by for labels longer than `USUAL`, in inches: else they take it from the axes."""
    return 0.06 * max(0, max(map(len, labels), default=0) - USUAL)
