"""The figure of loss curves: a panel per arm, a line per seed."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clipbench.figures.style import FAINT, INK, arm_colours, blank, decades, order, setting, styled
from clipbench.schema import Outcome


@styled
def draw(
    lines: pd.DataFrame,
    arms: pd.DataFrame,
    chosen: pd.DataFrame,
    label: str,
    reference: float | None,
    footer: str,
) -> Figure:
    """Training loss at the chosen settings: a panel per arm, every seed a thin line, the median
    thick, diverged ends a cross.
    """
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
        title = arm.get("label", arm["arm"])
        if arm["arm"] in settings and len(mine):
            title += f"\n{setting(settings[arm['arm']])}"
        axes.set_title(title, fontsize=7.5, fontweight="normal")
        _panel(axes, mine, tints[arm["arm"]])
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


def _panel(axes: Axes, mine: pd.DataFrame, tint: str) -> None:
    if mine.empty:
        axes.text(
            0.5,
            0.5,
            "no curve stored",
            transform=axes.transAxes,
            ha="center",
            fontsize=7,
            color="#777777",
        )
        return
    lost = 0
    for _, line in mine.groupby("seed", sort=True):
        shown = line[np.isfinite(line["gap"]) & (line["gap"] > 0)]
        axes.plot(shown["step"], shown["gap"], "-", lw=0.5, color=tint, alpha=0.45)
        if line["ended"].iloc[0] == Outcome.DIVERGED and len(shown):
            axes.plot(
                shown["step"].iloc[-1:],
                shown["gap"].iloc[-1:],
                "x",
                ms=5,
                mew=1.1,
                color=INK,
                zorder=5,
            )
        lost += line["ended"].iloc[0] == Outcome.DIVERGED
    seeds = mine["seed"].nunique()
    # A run that ended early stays in the median, as infinite: the median line ends where half of
    # the seeds have.
    table = mine.pivot_table(
        index="step", columns="seed", values="gap", aggfunc="first", dropna=False
    )
    middle = (
        table.interpolate(limit_area="inside")
        .bfill()
        .fillna(np.inf)
        .quantile(0.5, axis=1, interpolation="higher")
    )
    middle = middle[np.isfinite(middle) & (middle > 0)]
    axes.plot(middle.index, middle, "-", lw=1.5, color=tint)
    note = f"{seeds} seed{'s' * (seeds != 1)}" + (f", {lost} diverged" if lost else "")
    axes.text(
        0.98,
        0.95,
        note,
        transform=axes.transAxes,
        ha="right",
        va="top",
        fontsize=6,
        color="#555555",
    )
