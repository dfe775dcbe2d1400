"""The figure of the headline: each clip's difference from the same optimizer without it, beside the
margin inside which no difference matters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import CARETLEFTBASE as LEFT
from matplotlib.markers import CARETRIGHTBASE as RIGHT
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from clipbench.analysis.cells import of_task
from clipbench.figures.style import FAINT, INK, blank, number, room, styled

WIDE = 6.0  # inches in which two panels with the names of their rows stand side by side
BAND = "#e4ebf3"  # of the margin
REACH = 6.0  # margins and middling bounds that the axis shows at most, from zero


@styled
def draw(
    gaps: pd.DataFrame,
    panels: Sequence[Mapping[str, Any]],
    tints: Mapping[str, str],
    footer: str,
) -> Figure:
    """A panel per task: a row per clip, its difference with the interval of 95 % (thick) and of its
    family (thin).

    ``gaps`` has a ``label`` for each arm. ``panels``: ``task`` (values of ``TASK``), ``title``,
    ``label``. ``tints``: arm → colour.
    """
    columns = 1 if len(panels) == 1 or room() < WIDE else 2
    rows = math.ceil(len(panels) / columns)
    most = max((len(of_task(gaps, panel["task"])) for panel in panels), default=1)
    figure = blank(4.6 * columns + 0.6, (0.24 * most + 0.75) * rows + 0.6, footer)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        _panel(axes, panel, of_task(gaps, panel["task"]), tints)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_axis_off()
    handles = [
        Line2D([], [], color=INK, lw=2.6, label="95 %"),
        Line2D([], [], color=INK, lw=0.8, label="all of its family"),
        Line2D([], [], color=INK, marker="D", mfc="white", lw=0, ms=4, label="at the last step"),
        Patch(facecolor=BAND, label="does not matter"),
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=4 if columns == 2 else 2)
    return figure


def _panel(
    axes: Axes, panel: Mapping[str, Any], rows: pd.DataFrame, tints: Mapping[str, str]
) -> None:
    reach = _reach(rows)
    margin = rows["margin"].max()
    if margin > 0:
        axes.axvspan(-margin, margin, color=BAND, lw=0, zorder=0)
    axes.axvline(0.0, color=FAINT, lw=0.8, zorder=1)
    for place, row in enumerate(rows.to_dict("records")):
        tint = tints[row["arm"]]
        for low, high, width in (
            (row["family_low"], row["family_high"], 0.8),
            (row["low"], row["high"], 2.6),
        ):
            if not math.isnan(low):
                ends = np.clip([low, high], -reach, reach)
                axes.plot(ends, [place, place], "-", color=tint, lw=width, solid_capstyle="butt")
                for end, on, caret in ((low, low < -reach, LEFT), (high, high > reach, RIGHT)):
                    if on:  # it goes on beyond the axis
                        edge = math.copysign(reach, end)
                        axes.plot([edge], [place], marker=caret, ms=4, color=tint, clip_on=False)
        _mark(axes, row["difference"], place, reach, "o", tint, filled=True)
        _mark(axes, row["last"], place, reach, "D", tint, filled=False)
    axes.set_yticks(range(len(rows)), list(rows["label"]))
    axes.tick_params(axis="y", length=0, labelsize=7)
    axes.set_ylim(max(1, len(rows)) - 0.45, -0.55)
    axes.set_xlim(-1.04 * reach, 1.04 * reach)
    axes.xaxis.set_major_locator(MaxNLocator(5 if room() >= WIDE else 3))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(round(value, 6))))
    axes.grid(axis="x")
    axes.set_title(panel["title"])
    axes.set_xlabel(panel["label"])


def _mark(
    axes: Axes, value: float, place: int, reach: float, shape: str, tint: str, *, filled: bool
) -> None:
    """A difference; one beyond the axis is an arrow at its edge."""
    if math.isnan(value):
        return
    beyond = abs(value) > reach
    axes.plot(
        [max(-reach, min(reach, value))],
        [place],
        (">" if value > 0 else "<") if beyond else shape,
        ms=5 if filled else 3.6,
        color=tint,
        mfc=tint if filled else "white",
        mew=0.9,
        clip_on=False,
        zorder=5 if filled else 4,
    )


def _reach(rows: pd.DataFrame) -> float:
    """How far the axis goes either way: to the furthest bound, but not much beyond what most rows
    need.
    """
    bounds = rows[["low", "high", "difference"]].abs().to_numpy(dtype=float)
    furthest = np.nanmax(np.where(np.isfinite(bounds), bounds, np.nan), axis=1, initial=0.0)
    margin = float(rows["margin"].fillna(0.0).max()) if len(rows) else 0.0
    least = 1.5 * margin or 1e-3
    if not len(furthest):
        return least
    return float(max(least, min(furthest.max(), REACH * max(margin, float(np.median(furthest))))))
