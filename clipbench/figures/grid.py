"""The grid of settings as heat maps: what each gains over the best setting without a clip."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter, NullLocator

from clipbench.figures.style import blank, given, number, order, styled
from clipbench.schema import Outcome, Status
from clipbench.task import Threshold, axis_label

LETTERS = {
    Outcome.DIVERGED: "D",
    Outcome.COLLAPSED: "C",
    Outcome.STALLED: "S",
    Status.FAILED: "F",
    "no_value": "?",
}
HATCHES = {
    Outcome.DIVERGED: "xxxx",
    Outcome.COLLAPSED: "////",
    Outcome.STALLED: "----",
    Status.FAILED: "||||",
    "no_value": "....",
}
BLANK = (Outcome.DIVERGED, Status.FAILED, "no_value")  # a cell with one of these has no mean
SIGNS = {1: ("+", "better"), -1: ("_", "worse")}  # sign of a gain → its marker, and what it is
NARROW = 0.25  # inches of a cell: below, what is written beside each other is written upright
LIGHT = 1.5  # sum of a colour's three parts: above, it is light
SHADES = 40  # matplotlib draws a colour bar of 50 shades or more as an embedded bitmap


@styled
def draw(
    settings: pd.DataFrame,
    arms: pd.DataFrame,
    chosen: pd.DataFrame,
    label: str,
    higher_is_better: bool,
    footer: str,
) -> Figure:
    """The gain over the best setting without a clip, over lr × threshold: a panel per clipped arm,
    with the unclipped optimizer as the lowest row; blue and a plus are better, red and a minus
    worse.

    What is gained is what ``statistic`` says: the mean over the selection seeds, or the share of
    them that succeeded. Without such an optimizer, the arm's own best setting is the one. If a seed
    diverged, collapsed, stalled, failed or has no value, a letter and a hatch say so; a cell with a
    diverged seed has no mean and so no colour, since a mean over the survivors would flatter it; a
    share it has.
    """
    clipped = arms[arms["clip"] != "none"]
    shown = clipped if len(clipped) else arms
    optimizers, clips = order(shown["optimizer_label"]), order(shown["clip_label"])
    panels = [settings[settings["arm"] == arm] for arm in shown["arm"]]
    tall = max((len(_thresholds(rows)) for rows in panels), default=1) + 1
    figure = blank(3.5 * len(clips) + 1.3, (0.26 * tall + 0.75) * len(optimizers) + 0.8, footer)
    grid = figure.subplots(len(optimizers), len(clips), squeeze=False)
    across = max((rows["lr"].nunique() for rows in panels), default=1)
    narrow = (figure.get_figwidth() - 1.3) / len(clips) / across < NARROW
    for axes in grid.flat:
        axes.set_axis_off()
    shares = bool((settings["statistic"] == "share").any())
    settings = _gains(settings, arms, higher_is_better or shares)
    # The scale is that of the runs that kept going; collapsed ones are told by their hatch and
    # would use up all of the contrast.
    valued = settings.loc[
        np.isfinite(settings["value"]) & (settings["diverged"] + settings["collapsed"] == 0),
        "value",
    ]
    norm = Normalize(-1, 1) if shares else _norm(valued)
    paint = mpl.colormaps["RdBu"].resampled(SHADES)
    for arm in shown.to_dict("records"):
        axes = grid[optimizers.index(arm["optimizer_label"])][clips.index(arm["clip_label"])]
        axes.set_axis_on()
        rows = settings[settings["arm"] == arm["arm"]]
        partner = (
            settings[settings["arm"] == arm["partner"]] if arm["partner"] else settings.iloc[:0]
        )
        pick = chosen[chosen["arm"].isin([arm["arm"], arm["partner"]])]
        _panel(axes, rows, partner, pick, norm, paint, narrow)
        title = str(arm.get("label", arm["arm"]))
        axes.set_title(title.replace(" + ", "\n+ ") if narrow else title)
        axes.set_ylabel(axis_label(arm["setting"], relative=False))
    for axes in grid[-1]:
        axes.set_xlabel("learning rate")
    if len(valued) or shares:
        extend = "neither" if shares else "both"
        where = "bottom" if narrow else "right"
        _colour_bar(figure, grid, ScalarMappable(norm=norm, cmap=paint), label, extend, where)
    _legend(figure, settings, shares, columns=3 if narrow else 6)
    return figure


def _colour_bar(
    figure: Figure, grid: Any, colours: ScalarMappable, label: str, extend: str, where: str
) -> None:
    scale = figure.colorbar(
        colours,
        ax=grid,
        location=where,
        shrink=0.7,
        pad=0.02,
        aspect=28,
        extend=extend,
    )
    scale.set_label(label)
    scale.outline.set_visible(False)
    if scale.solids is not None:
        scale.solids.set_edgecolor("face")
    along = scale.ax.xaxis if where == "bottom" else scale.ax.yaxis
    along.set_major_formatter(FuncFormatter(lambda value, _: number(float(f"{value:.3g}"))))
    along.set_minor_locator(NullLocator())


def _legend(figure: Figure, settings: pd.DataFrame, shares: bool, columns: int) -> None:
    handles: list[Any] = [
        Patch(
            facecolor="#d9d9d9"
            if name in BLANK and not (shares and name == Outcome.DIVERGED)
            else "white",
            edgecolor="#555555",
            hatch=HATCHES[name],
            label=f"{letter} {name.replace('_', ' ')}",
        )
        for name, letter in LETTERS.items()
        if settings[name].sum()
    ]
    handles.append(Patch(facecolor="none", edgecolor="#d00000", lw=1.6, label="chosen setting"))
    handles += [
        Line2D([], [], ls="", marker=marker, color="black", ms=4, mew=0.8, label=word)
        for marker, word in SIGNS.values()
    ]
    figure.legend(
        handles=handles, loc="outside upper left", ncols=columns, handlelength=2.2, handleheight=1.4
    )


def _gains(settings: pd.DataFrame, arms: pd.DataFrame, higher_is_better: bool) -> pd.DataFrame:
    """The settings with what they gain as ``value``, positive if better."""
    sign = 1 if higher_is_better else -1
    signed = sign * settings["value"]
    best = signed.where(settings["diverged"] == 0).groupby(settings["arm"]).max()
    of = {row["arm"]: row["partner"] or row["arm"] for row in arms.to_dict("records")}
    base = settings["arm"].map(lambda arm: best.get(of.get(arm, arm), best.get(arm, np.nan)))
    return settings.assign(value=signed - base)


def _norm(gains: pd.Series[float]) -> Normalize:
    """A scale around no gain: as far as the gains go, and at least to what half of the settings
    lose; those that lose more share the colour of its end, so that the good ones can be told apart.
    """
    if gains.empty:
        return Normalize(-1, 1)
    reach = max(float(gains.max()), float((-gains).median()), 1e-9)
    return Normalize(-reach, reach)


def _thresholds(rows: pd.DataFrame) -> list[Threshold]:
    """The thresholds of an arm, small to large."""
    by_key = {one.key: one for one in map(Threshold.of, rows.to_dict("records"))}
    return [by_key[key] for key in sorted(by_key)]


def _panel(
    axes: Axes,
    rows: pd.DataFrame,
    partner: pd.DataFrame,
    pick: pd.DataFrame,
    norm: Normalize,
    paint: Any,
    narrow: bool,
) -> None:
    lrs = sorted(set(rows["lr"]) | set(partner["lr"]))
    levels = [*([Threshold()] if len(partner) else []), *_thresholds(rows)]
    heights = {one.key: height for height, one in reversed([*enumerate(levels)])}
    values, marks = np.full((len(levels), len(lrs)), np.nan), []
    for frame, unclipped in ((partner, True), (rows, False)):
        for cell in frame.to_dict("records"):
            height = 0 if unclipped else heights[Threshold.of(cell).key]
            column = lrs.index(cell["lr"])
            if not cell["diverged"] or cell["statistic"] == "share":
                values[height, column] = cell["value"]
            spoiled = {name: int(cell[name]) for name in LETTERS if cell[name]}
            if spoiled:
                marks.append((column, height, spoiled, int(cell["seeds"])))
    edges_x, edges_y = np.arange(len(lrs) + 1) - 0.5, np.arange(len(levels) + 1) - 0.5
    known = np.ma.masked_invalid(values)
    axes.pcolormesh(
        edges_x, edges_y, known, cmap=paint, norm=norm, edgecolors="white", linewidth=0.6
    )
    for column, height, spoiled, seeds in marks:
        colour = _colour(values[height, column], norm, paint)
        _mark(axes, (column, height), spoiled, seeds, colour, "\n" if narrow else " ")
    _signs(axes, values, norm, paint)
    for choice in pick.to_dict("records"):
        threshold = Threshold.of(choice)
        if (
            threshold.absent
            and not len(partner)
            and len(rows)
            and not rows["threshold"].isna().all()
        ):
            continue
        if choice["lr"] in lrs:
            height = 0 if threshold.absent else heights.get(threshold.key, 0)
            axes.add_patch(
                Rectangle(
                    (lrs.index(choice["lr"]) - 0.46, height - 0.45),
                    0.92,
                    0.9,
                    fill=False,
                    edgecolor="#d00000",
                    lw=1.6,
                    zorder=6,
                )
            )
    if len(partner):
        axes.axhline(0.5, color="white", lw=2.5)
    axes.set_xticks(range(len(lrs)), [number(lr) for lr in lrs], rotation=90 if narrow else 0)
    axes.set_yticks(range(len(levels)), [_tick(one) for one in levels])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _colour(value: float, norm: Normalize, paint: Any) -> Any:
    """The colour of a value; None if it has none."""
    return None if np.isnan(value) else paint(norm(value))


def _signs(axes: Axes, values: Any, norm: Normalize, paint: Any) -> None:
    """A plus or a minus in the corner of every cell that gains or loses: in grey, blue and red are
    one.
    """
    for sign, (marker, _) in SIGNS.items():
        heights, columns = np.nonzero(np.sign(values) == sign)
        light = paint(norm(values[heights, columns]))[:, :3].sum(axis=1) > LIGHT
        for ink, these in (("black", light), ("white", ~light)):
            x, y = columns[these] - 0.34, heights[these] + 0.3
            axes.plot(x, y, marker, color=ink, ms=3.5, mew=0.7, zorder=7)


def _mark(
    axes: Axes,
    place: tuple[int, int],
    spoiled: Mapping[str, int],
    seeds: int,
    colour: Any,
    between: str,
) -> None:
    """The letters and the hatch of a cell with spoiled seeds."""
    worst = next(iter(spoiled))
    column, height = place
    dark = colour is None or sum(colour[:3]) > LIGHT
    axes.add_patch(
        Rectangle(
            (column - 0.48, height - 0.47),
            0.96,
            0.94,
            facecolor="#d9d9d9" if colour is None else "none",
            edgecolor="#8a8a8a" if dark else "#b5b5b5",
            hatch=HATCHES[worst],
            lw=0,
        )
    )
    text = between.join(
        f"{LETTERS[name]}{count if count < seeds else ''}" for name, count in spoiled.items()
    )
    box = {"boxstyle": "square,pad=0.15", "facecolor": "#ffffffd8", "edgecolor": "none"}
    axes.text(column, height, text, ha="center", va="center", fontsize=6, color="black", bbox=box)


def _tick(threshold: Threshold) -> str:
    return "no clip" if threshold.absent else given(threshold)
