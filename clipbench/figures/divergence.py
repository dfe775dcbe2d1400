"""The figure of divergence: loss and gradient norm of single runs around the event."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from clipbench.figures.style import BLUE, INK, ORANGE, blank, decades, styled


@styled
def draw(panels: Sequence[Mapping[str, Any]], footer: str) -> Figure:
    """A panel per run: ``title``, ``rows`` (``step``, ``loss``, ``grad_norm``) and ``at``, the step
    of the event.
    """
    across = min(2, len(panels))
    down = math.ceil(len(panels) / across)
    figure = blank(4.3 * across + 0.2, 2.2 * down + 0.6, footer)
    grid = figure.subplots(down, across, squeeze=False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        rows = panel["rows"]
        for name, tint, dash in (("loss", INK, "-"), ("grad_norm", ORANGE, "--")):
            values = rows[name].to_numpy(dtype=float)
            shown = np.where(np.isfinite(values) & (values > 0), values, np.nan)
            axes.plot(rows["step"], shown, dash, color=tint, lw=1.4)
        axes.axvline(panel["at"], color=BLUE, lw=1.0, ls=":")
        decades(axes)
        axes.set_title(panel["title"], fontsize=7.5)
        axes.set_xlabel("step")
        axes.grid(axis="y")
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_axis_off()
    handles = [
        Line2D([], [], color=INK, lw=1.4, label="training loss"),
        Line2D([], [], color=ORANGE, lw=1.4, ls="--", label="norm of the raw gradient"),
        Line2D([], [], color=BLUE, lw=1.0, ls=":", label="the event"),
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=3)
    return figure
