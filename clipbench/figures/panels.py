"""Small panels, one for each task and optimizer, a line for each of its clips.

Shared by the questions whose figures are such lines; it knows none of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from clipbench.figures.style import CLIPS, FAINT, blank, colours, decades, log_ticks, styled

NONE = "none"
ACROSS = 4  # panels side by side
LONG = 26  # letters that a title has room for
WIDE, HIGH = 0.58, 0.72  # inches between panels, for labels and titles
DASHES = ("-", "--", ":", "-.")


@styled
def draw(panels: Sequence[Mapping[str, Any]], footer: str) -> Figure:
    """A panel each: ``title``, ``x`` and ``y`` (labels), ``lines``, and if wanted ``log_x``,
    ``log_y``, and ``level``, the height of a thin line.

    A line has ``clip`` (its label), ``x`` and ``y``, and if wanted ``low`` and ``high``, its band.
    That without a clip is black; others differ in colour and in dash, to be told apart in grey.
    """
    across = min(ACROSS, len(panels))
    down = math.ceil(len(panels) / across)
    clips = list(dict.fromkeys(line["clip"] for panel in panels for line in panel["lines"]))
    clips.sort(key=lambda clip: (clip != NONE, clip))
    tints = colours([clip.partition("(")[0] for clip in clips], CLIPS)
    looks: dict[str, Any] = {
        clip: {"color": tints[clip.partition("(")[0]], "ls": DASHES[place % len(DASHES)]}
        for place, clip in enumerate(clips)
    }
    figure = blank(2.35 * across + 0.5, 1.95 * down + 0.6, footer)
    figure.set_layout_engine(None)  # panels are alike: where they stand is known
    width, height = figure.get_size_inches()
    inside, tall = (width - 0.55 - 0.1) / across, (height - 0.55 - 0.6) / down
    grid = figure.subplots(
        down,
        across,
        squeeze=False,
        gridspec_kw={
            "left": 0.55 / width,
            "right": 1 - 0.1 / width,
            "bottom": 0.6 / height,
            "top": 1 - 0.55 / height,
            "wspace": WIDE / (inside - WIDE),
            "hspace": HIGH / (tall - HIGH),
        },
    )
    for axes, panel in zip(grid.flat, panels, strict=False):
        for line in panel["lines"]:
            x, y = np.asarray(line["x"], float), np.asarray(line["y"], float)
            axes.plot(x, y, lw=1.5, **looks[line["clip"]])
            if "low" in line:
                tint = looks[line["clip"]]["color"]
                axes.fill_between(x, line["low"], line["high"], color=tint, alpha=0.12, lw=0)
        if panel.get("level") is not None:
            axes.axhline(panel["level"], color=FAINT, lw=0.7, zorder=0)
        if panel.get("log_x"):
            log_ticks(axes, sorted({x for line in panel["lines"] for x in line["x"]}))
            axes.tick_params(axis="x", rotation=45)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(4))
        if panel.get("log_y"):
            decades(axes)
        long = len(panel["title"]) > LONG
        axes.set_title(
            panel["title"].replace(", ", ",\n") if long else panel["title"], fontsize=7.5
        )
        axes.set_xlabel(panel["x"], fontsize=7)
        axes.set_ylabel(panel["y"], fontsize=7)
        axes.tick_params(labelsize=6.5)
        axes.grid(axis="y")
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_axis_off()
    handles = [
        Line2D([], [], lw=1.5, label="no clip" if clip == NONE else clip, **looks[clip])
        for clip in clips
    ]
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=min(6, len(handles)),
    )
    return figure
