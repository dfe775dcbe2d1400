"""Small panels, one for each task and optimizer, a line for each of its clips.

Shared by the questions whose figures are such lines; it knows none of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from clipbench.figures.style import CLIPS, FAINT, blank, colours, log_ticks, room, styled

NONE = "none"
ACROSS = 4  # panels side by side
NARROW = 2.2  # inches of a panel, at least
LONG = 26  # letters that a title has room for
# inches: at the edges of the figure, and between panels for labels and titles
LEFT, RIGHT, TOP, BOTTOM, WIDE, HIGH = 0.55, 0.1, 0.55, 0.6, 0.58, 0.72
DASHES = ("-", "--", ":", "-.")


@styled
def draw(panels: Sequence[Mapping[str, Any]], footer: str) -> Figure:
    """A panel each: ``title``, ``x`` and ``y`` (labels), ``lines``, and if wanted ``log_x``
    and ``level``, the height of a thin line.

    A line has ``clip`` (its label), ``x`` and ``y``, and if wanted ``low`` and ``high``, its band.
    That without a clip is black; others differ in colour and in dash, to be told apart in grey.
    """
    across = min(ACROSS, len(panels), max(1, int(min(room(), 99) / NARROW)))
    down = math.ceil(len(panels) / across)
    clips = list(dict.fromkeys(line["clip"] for panel in panels for line in panel["lines"]))
    clips.sort(key=lambda clip: (clip != NONE, clip))
    tints = colours([clip.partition("(")[0] for clip in clips], CLIPS)
    looks: dict[str, Any] = {
        clip: {"color": tints[clip.partition("(")[0]], "ls": DASHES[place % len(DASHES)]}
        for place, clip in enumerate(clips)
    }
    figure = blank(2.35 * across + 0.5, 1.95 * down + 0.6, footer)
    grid = _placed(figure, across, down)
    for axes, panel in zip(grid.flat, panels, strict=False):
        _panel(axes, panel, looks)
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


def _placed(figure: Figure, across: int, down: int) -> Any:
    """The axes. Panels are alike, so that where they stand is known, and no layout need be found:
    that takes longer than all the drawing.
    """
    figure.set_layout_engine(None)
    width, height = figure.get_size_inches()
    inside, tall = (width - LEFT - RIGHT) / across, (height - TOP - BOTTOM) / down
    return figure.subplots(
        down,
        across,
        squeeze=False,
        gridspec_kw={
            "left": LEFT / width,
            "right": 1 - RIGHT / width,
            "bottom": BOTTOM / height,
            "top": 1 - TOP / height,
            "wspace": WIDE / (inside - WIDE),
            "hspace": HIGH / (tall - HIGH),
        },
    )


def _panel(axes: Axes, panel: Mapping[str, Any], looks: Mapping[str, Any]) -> None:
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
    title = panel["title"]
    axes.set_title(title.replace(", ", ",\n") if len(title) > LONG else title, fontsize=7.5)
    axes.set_xlabel(panel["x"], fontsize=7)
    axes.set_ylabel(panel["y"], fontsize=7)
    axes.tick_params(labelsize=6.5)
    axes.grid(axis="y")
