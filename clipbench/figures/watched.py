"""The figure of a watched loop: its loss, its gradient and its clip, step by step."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clipbench.analysis.curves import extremes
from clipbench.figures.style import FAINT, INK, blank, decades, styled

STRETCHES = 1000  # of a line: more are not seen, and each point takes its bytes
TINT = "#0b5cad"


@styled
def draw(curve: pd.DataFrame, fired: np.ndarray) -> Figure:
    """Loss, raw norm with the threshold, and kept, one above the other.

    :param curve: a loop's steps, as `analysis.watched.Run.curve` gives them.
    :param fired: whether the clip changed the gradient, step by step.
    """
    shown = {"loss": "loss", "grad_norm": "gradient norm"}
    if fired.any():
        shown["kept"] = "kept"
    figure = blank(6.4, 1.45 * len(shown), "")
    panels = figure.subplots(len(shown), 1, sharex=True)
    steps = curve["step"].to_numpy()
    for axes, (name, label) in zip(panels, shown.items(), strict=True):
        _line(axes, steps, curve[name].to_numpy())
        axes.set_ylabel(label)
        axes.grid(axis="y")
    _line(panels[1], steps, curve["threshold"].to_numpy(), color=INK, ls=(0, (3, 2)))
    norms = curve["grad_norm"].to_numpy()
    known = norms[np.isfinite(norms) & (norms > 0)]
    if len(known) and known.max() > 10 * known.min():
        decades(panels[1])
    if fired.any():
        panels[2].set_ylim(-0.08, max(1.05, 1.05 * np.nanmax(curve["kept"].to_numpy())))
        at = steps[fired]
        mark = {"ms": 4, "mew": 0.5, "color": FAINT, "rasterized": True}
        panels[2].plot(at, np.full(len(at), -0.04), "|", **mark)
    panels[-1].set_xlabel("step")
    return figure


def _line(
    axes: Axes, steps: np.ndarray, values: np.ndarray, color: str = TINT, ls: object = "-"
) -> None:
    """A line through the extremes of stretches of steps; what is not finite leaves a gap."""
    kept = extremes(values, stretches=STRETCHES)
    shown = np.where(np.isfinite(values), values, np.nan)[kept]
    axes.plot(steps[kept], shown, lw=0.7, color=color, ls=ls)
