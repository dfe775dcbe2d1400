"""The figure of how often a clip fires: a panel per clip, a line per optimizer."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from clipbench.figures.style import (
    MARKERS,
    OPTIMIZERS,
    OTHER_MARKERS,
    among,
    blank,
    colours,
    log_ticks,
    order,
    styled,
)
from clipbench.task import axis_label

ASIDE = 0.025  # decades between the bars of two optimizers


@styled
def draw(shares: pd.DataFrame, arms: pd.DataFrame, footer: str) -> Figure:
    """Share of steps clipped against the threshold: a panel per clip, a line per optimizer; the
    bars span the learning rates, side by side.
    """
    clips = order(arms.loc[arms["clip"] != "none", "clip_label"])
    figure = blank(3.1 * max(1, len(clips)) + 0.6, 2.5, footer)
    grid = figure.subplots(1, max(1, len(clips)), squeeze=False, sharey=True)
    tints, handles = colours(arms["optimizer"], OPTIMIZERS), dict[str, Any]()
    for axes, clip in zip(grid.flat, clips, strict=True):
        thresholds: set[float] = set()
        setting = arms.loc[arms["clip_label"] == clip, "setting"].iloc[0]
        for arm in arms[arms["clip_label"] == clip].to_dict("records"):
            line = shares[shares["arm"] == arm["arm"]].sort_values("place")
            if line.empty:
                continue
            thresholds |= set(line["place"])
            tint, marker = (
                tints[arm["optimizer"]],
                among(arm["optimizer"], arms["optimizer"], MARKERS, OTHER_MARKERS),
            )
            aside = 10 ** (ASIDE * list(tints).index(arm["optimizer"]))
            axes.vlines(line["place"] * aside, line["low"], line["high"], color=tint, lw=0.9)
            drawn = axes.plot(
                line["place"],
                line["median"],
                "-",
                marker=marker,
                ms=4,
                lw=1.2,
                color=tint,
                label=arm["optimizer_label"],
            )
            handles.setdefault(arm["optimizer_label"], drawn[0])
        if thresholds:
            log_ticks(axes, sorted(thresholds))
        axes.set_title(clip)
        relative = shares[shares["arm"].isin(arms.loc[arms["clip_label"] == clip, "arm"])][
            "relative"
        ].notna()
        axes.set_xlabel(axis_label(setting, relative=bool(relative.any())))
        axes.set_ylim(-0.03, 1.03)
        axes.grid(axis="y")
    grid[0][0].set_ylabel("share of steps clipped")
    if handles:
        figure.legend(
            handles=[handles[label] for label in order(handles)], loc="outside upper left", ncols=6
        )
    return figure
