"""The figure of the budget: what tuning is expected to reach, against the number of settings
tried.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from clipbench.figures.style import INK, blank, styled


@styled
def draw(panels: Sequence[Mapping[str, Any]], tints: Mapping[str, str], footer: str) -> Figure:
    """A panel per task and optimizer: a line per clip, and one of the optimizer without a clip.

    :param panels: ``rows`` (the curves, with a ``label`` for each arm), ``title``, ``label`` and
        ``without``, what the unclipped line is called.
    :param tints: arm → colour.
    """
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = blank(4.2 * columns + 0.2, 2.5 * rows + 0.3, footer)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        _panel(axes, panel, tints)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_axis_off()
    return figure


def _panel(axes: Axes, panel: Mapping[str, Any], tints: Mapping[str, str]) -> None:
    rows: pd.DataFrame = panel["rows"]
    for arm, curve in rows.groupby("arm", sort=False):
        axes.plot(curve["tries"], curve["estimate"], color=tints[str(arm)], lw=1.6, label=arm)
    longest = rows[rows["arm"] == rows.loc[rows["tries"].idxmax(), "arm"]]
    axes.plot(longest["tries"], longest["without"], "--", color=INK, lw=1.2, label=panel["without"])
    names = {**dict(zip(rows["arm"], rows["label"], strict=True)), panel["without"]: None}
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles, [names.get(one) or one for one in labels], fontsize=7)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel("settings tried")
    axes.set_ylabel(panel["label"])
    axes.set_title(panel["title"])
    axes.grid(axis="y")
