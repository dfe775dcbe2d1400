"""The figure of stable learning rates: a bar per arm."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from clipbench.figures.style import INK, arm_colours, blank, log_ticks, order, styled

USUAL = 30  # characters of an arm's name that a figure has room for


@styled
def draw(ranges: pd.DataFrame, arms: pd.DataFrame, steady: pd.DataFrame, footer: str) -> Figure:
    """The learning rates at which every seed learned: a bar per arm; inside a clipped arm's, the
    bar of its best single threshold.

    ``steady`` has the ranges of momentum arms with ``factor``: they are drawn once more as lr/(1 −
    μ).
    """
    optimizers, clips = order(arms["optimizer_label"]), order(arms["clip_label"])
    ordered = sorted(
        arms.to_dict("records"),
        key=lambda row: (optimizers.index(row["optimizer_label"]), clips.index(row["clip_label"])),
    )
    names = [arm.get("label", arm["arm"]) for arm in ordered]
    figure = blank(6.6 + _room(names), 0.27 * len(ordered) + 1.0, footer)
    axes, tints = figure.subplots(), arm_colours(arms)
    tried: set[float] = set()
    for row, arm in enumerate(ordered):
        for one in ranges[ranges["arm"] == arm["arm"]].to_dict("records"):
            tried |= set(one["tried"])
            _range(axes, row, one, tints[arm["arm"]])
    for one in steady.to_dict("records"):
        y = [arm["arm"] for arm in ordered].index(one["arm"]) + 0.4
        if not math.isnan(one["low"]):
            axes.plot(
                [one["low"] * one["factor"], one["high"] * one["factor"]],
                [y, y],
                "-",
                marker="|",
                ms=4,
                lw=0.9,
                color=INK,
                zorder=6,
            )
            tried.add(one["high"] * one["factor"])
    axes.set_yticks(range(len(ordered)), names)
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


def _range(axes: Axes, row: int, one: Mapping[str, Any], tint: Any) -> None:
    """The bar of the stable learning rates, and a mark at each that was tried."""
    outer = one["basis"] == "best threshold"
    if one["basis"] != "one threshold":
        axes.plot(
            one["tried"],
            [row] * len(one["tried"]),
            "|",
            ms=5,
            mew=0.7,
            color="#bdbdbd",
            zorder=1,
        )
        axes.plot(
            one["lrs"],
            [row] * len(one["lrs"]),
            "o",
            ms=3.2,
            mew=0.5,
            mfc="white",
            mec=INK,
            zorder=5,
        )
    if math.isnan(one["low"]):
        if one["basis"] != "one threshold":
            axes.text(
                min(one["tried"]),
                row - 0.32,
                "none stable",
                fontsize=6,
                color="#777777",
                va="center",
            )
        return
    height = 0.56 if outer or one["basis"] == "no clip" else 0.24
    low, high = one["low"] / 1.12, one["high"] * 1.12
    alpha = 0.4 if outer else 1.0
    axes.barh(
        row,
        high - low,
        left=low,
        height=height,
        color=tint,
        alpha=alpha,
        lw=0,
        zorder=2 if outer else 3,
    )
    if one["above"] and one["basis"] != "one threshold":
        axes.annotate(
            "",
            (high * 1.35, row),
            (high, row),
            arrowprops={"arrowstyle": "->", "color": INK, "lw": 0.9},
        )


def _tried_axis(axes: Axes, tried: set[float]) -> None:
    if tried:
        log_ticks(axes, sorted(tried))
        axes.set_xlim(min(tried) / 1.6, max(tried) * 1.9)
        axes.tick_params(axis="x", rotation=45 if len(tried) > 9 else 0)


def _room(labels: Iterable[str]) -> float:
    """What a figure is wider by for labels longer than `USUAL`, in inches: else they take it
    from the axes.
    """
    return 0.06 * max(0, max(map(len, labels), default=0) - USUAL)
