"""The figure of the alternatives: what each method reaches, best on top."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from clipbench.figures.style import blank, styled


@styled
def draw(panels: Sequence[Mapping[str, Any]], tints: Mapping[str, str], footer: str) -> Figure:
    """A panel per task: ``title``, ``x`` (label) and ``rows`` (``arm``, ``label``, ``estimate``,
    ``low``, ``high``), the best last. A filled mark has no clip.

    :param tints: arm → colour.
    """
    across = min(2, len(panels))
    down = math.ceil(len(panels) / across)
    most = max(len(panel["rows"]) for panel in panels)
    figure = blank(4.6 * across + 0.4, (0.19 * most + 0.75) * down + 0.3, footer)
    grid = figure.subplots(down, across, squeeze=False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        rows = panel["rows"]
        for place, row in enumerate(rows.to_dict("records")):
            tint = tints[row["arm"]]
            axes.plot([row["low"], row["high"]], [place, place], color=tint, lw=1.8)
            clipped = " + " in row["arm"]
            axes.plot(
                [row["estimate"]],
                [place],
                "o",
                ms=4.5,
                color=tint,
                mfc="white" if clipped else tint,
                mew=1.1,
            )
        axes.set_yticks(range(len(rows)), list(rows["label"]))
        axes.tick_params(axis="y", length=0, labelsize=6.5)
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.grid(axis="x")
        axes.set_title(panel["title"])
        axes.set_xlabel(panel["x"])
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_axis_off()
    return figure
