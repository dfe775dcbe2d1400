"""Figure of published results: what was seen, beside what must hold."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from clipbench.analysis.claims import GAP
from clipbench.figures.style import CLIPS, FAINT, INK, blank, decades, number, styled

COLUMNS = 3
WIDE = 20.0  # from this ratio between the largest and the smallest value on, an axis is logarithmic


@styled
def draw(rows: pd.DataFrame, footer: str) -> Figure:
    """A panel per claim, a bar per side; shaded is where a side's bar must end.

    ``rows``: as ``analysis.published.published`` returns them.
    """
    claims = list(dict.fromkeys(rows["claim"]))
    down = math.ceil(len(claims) / COLUMNS)
    figure = blank(3.5 * COLUMNS, 1.35 * down + 0.3, footer)
    grid = figure.subplots(down, COLUMNS, squeeze=False)
    for axes, claim in zip(grid.flat, claims, strict=False):
        _panel(axes, rows[rows["claim"] == claim].to_dict("records"))
    for axes in list(grid.flat)[len(claims) :]:
        axes.set_axis_off()
    return figure


def _panel(axes: Axes, sides: list[dict[str, Any]]) -> None:
    finite = [side["seen"] for side in sides if math.isfinite(side["seen"])]
    lows = [side["low"] for side in sides if math.isfinite(side["low"])]
    largest, smallest = (
        max([*finite, *lows], default=1.0),
        min((value for value in finite if value > 0), default=1.0),
    )
    wide = largest / smallest >= WIDE and sides[0]["measure"].startswith(("steps", "worst"))
    share = largest <= 1 and sides[0]["measure"] != GAP
    end = largest * 3 if wide else 1.0 if share else 1.12 * largest
    start = smallest / 3 if wide else 0.0
    for y, side in enumerate(sides):
        if math.isnan(side["seen"]):
            continue
        seen = min(side["seen"], end)
        clip = side["side"].split()[0]
        axes.barh(
            y, seen - start, left=start, height=0.55, color=CLIPS.get(clip, CLIPS["none"]), zorder=2
        )
        low, high = max(side["low"], start), min(side["high"], end)
        if (side["low"], side["high"]) != (-math.inf, math.inf):
            axes.barh(y, high - low, left=low, height=0.9, color=FAINT, alpha=0.3, zorder=1)
        axes.annotate(
            number(float(f"{side['seen']:.4g}")),
            (seen, y),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
            color=INK,
        )
    axes.set_yticks(range(len(sides)), [side["side"] for side in sides])
    axes.set_ylim(len(sides) - 0.4, -0.6)
    axes.set_xlim(start, end * 1.15)
    if wide:
        decades(axes, "x")
        axes.set_xlim(start, end * 1.15)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.set_xlabel(sides[0]["measure"])
    ending = (
        "" if sides[0]["holds"] else ": DOES NOT HOLD" if sides[0]["complete"] else ": lacks runs"
    )
    axes.set_title(f"{sides[0]['claim']}{ending}")
