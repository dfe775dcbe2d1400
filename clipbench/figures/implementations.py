"""The figure of implementations: what each takes of the time of torch's default, by model size."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from clipbench.figures.style import (
    FAINT,
    MARKERS,
    OTHER_COLOURS,
    OTHER_MARKERS,
    blank,
    number,
    order,
    styled,
)

APART = 0.11  # of the distance between two sizes


@styled
def draw(table: pd.DataFrame, footer: str) -> Figure:
    """Time of every implementation over that of torch's default with its interval, a panel for
    each optimizer and clip.
    """
    rows = table[np.isfinite(table["relative"]) & (table["clip"] != "none")]
    sizes = list(
        dict.fromkeys(rows.sort_values(["parameters", "tensors", "size"], kind="stable")["size"])
    )
    optimizers, clips, names = (
        order(rows["optimizer"]),
        order(rows["clip"]),
        sorted(set(rows["implementation"])),
    )
    looks = dict(
        zip(
            names,
            zip(OTHER_COLOURS, [*MARKERS.values(), *OTHER_MARKERS], strict=False),
            strict=False,
        )
    )
    figure = blank(7.2, 1.25 * len(optimizers) + 1.9, footer)
    grid = figure.subplots(len(optimizers), len(clips), sharex=True, sharey=True, squeeze=False)
    for across, optimizer in zip(grid, optimizers, strict=True):
        for axes, clip in zip(across, clips, strict=True):
            axes.axhline(1, color=FAINT, lw=0.8)
            axes.set_title(f"{optimizer} + {clip}")
            mine = rows[(rows["optimizer"] == optimizer) & (rows["clip"] == clip)]
            for implementation, timed in mine.groupby("implementation", sort=True):
                tint, marker = looks[str(implementation)]
                aside = APART * (names.index(str(implementation)) - (len(names) - 1) / 2)
                x = timed["size"].map(sizes.index) + aside
                axes.vlines(x, timed["relative_low"], timed["relative_high"], color=tint, lw=1.5)
                axes.plot(x, timed["relative"], marker, color=tint, ms=3.5)
            axes.set_yscale("log", base=2)
            axes.yaxis.set_major_locator(LogLocator(base=2, numticks=8))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter(
                FuncFormatter(lambda value, _: f"×{number(float(f'{value:.2g}'))}")
            )
            axes.set_xticks(
                range(len(sizes)), sizes, rotation=40, ha="right", rotation_mode="anchor"
            )
            axes.set_xlim(-0.6, len(sizes) - 0.4)
            axes.grid(axis="y")
    figure.supylabel("time relative to torch's default", fontsize=8)
    handles = [
        axes.plot([], [], marker, color=tint, ms=4, label=name)[0]
        for name, (tint, marker) in looks.items()
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=len(names))
    return figure
