"""The figure of what a clip costs: a ratio of step times per optimizer and clip."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from clipbench.figures.style import (
    CLIPS,
    FAINT,
    MARKERS,
    OTHER_MARKERS,
    among,
    blank,
    colours,
    number,
    order,
    styled,
)


@styled
def draw(table: pd.DataFrame, footer: str) -> Figure:
    """Time of a clipped step over the unclipped step beside it, with the interval of the median."""
    rows = table[(table["clip"] != "none") & np.isfinite(table["ratio"])]
    optimizers = order(rows["optimizer"])
    clips = order(rows["clip"])
    ordered = sorted(
        rows.to_dict("records"),
        key=lambda row: (optimizers.index(row["optimizer"]), clips.index(row["clip"])),
    )
    figure = blank(6.2, 0.25 * len(ordered) + 0.9, footer)
    axes = figure.subplots()
    # A label may carry settings; its colour is the colour of the name before them.
    tints = colours([clip.partition("(")[0] for clip in clips], CLIPS)
    for y, row in enumerate(ordered):
        tint = tints[row["clip"].partition("(")[0]]
        marker = among(
            row["optimizer"].partition("(")[0],
            [name.partition("(")[0] for name in optimizers],
            MARKERS,
            OTHER_MARKERS,
        )
        if not math.isnan(row["low"]):
            axes.plot([row["low"], row["high"]], [y, y], "-", color=tint, lw=2)
        axes.plot([row["ratio"]], [y], marker, color=tint, ms=5.5)
    axes.axvline(1, color=FAINT, lw=0.8)
    axes.set_yticks(range(len(ordered)), [f"{row['optimizer']} + {row['clip']}" for row in ordered])
    axes.set_ylim(len(ordered) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"×{number(round(value, 4))}"))
    axes.set_xlabel("step time relative to the same optimizer without a clip")
    return figure
