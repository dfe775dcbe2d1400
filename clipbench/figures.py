"""DataFrame → Figure. No pyplot, no global style, no dates: the same frame gives the same bytes.

A method keeps its colour in every figure: a clip's colour, or the optimizer's where nothing is clipped. Markers tell optimizers apart and
line styles clips, so that nothing depends on colour alone.
"""

from __future__ import annotations

import functools
import io
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Concatenate, ParamSpec

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from clipbench import schema
from clipbench.selection import READINGS, TASK

P = ParamSpec("P")

OPTIMIZERS = {
    "sgd": "#4d4d4d",
    "momentum": "#0072b2",
    "nesterov": "#56b4e9",
    "rmsprop": "#009e73",
    "adam": "#cc79a7",
    "adamw": "#882255",
}
CLIPS = {"none": "#4d4d4d", "value": "#e69f00", "norm": "#d55e00", "layer": "#56b4e9", "adaptive": "#009e73"}
STRANGERS = ("#332288", "#88ccee", "#44aa99", "#117733", "#999933", "#cc6677", "#aa4499", "#661100")
MARKERS = {"sgd": "o", "momentum": "s", "nesterov": "D", "rmsprop": "^", "adam": "v", "adamw": "P"}
DASHES: dict[str, Any] = {"none": "-", "value": (0, (5, 2)), "norm": (0, (1, 1)), "layer": (0, (5, 1, 1, 1))}
OTHER_MARKERS, OTHER_DASHES = ("X", "p", "h", "*"), ((0, (3, 1, 1, 1, 1, 1)), (0, (8, 2)))
READING_MARKERS = {"all": "o", "equal": "s", "untuned": "D"}
READING_WORDS = {"all": "all settings", "equal": "equal budget", "untuned": "untuned"}
LETTERS = {"diverged": "D", "collapsed": "C", "stalled": "S", "failed": "F"}
HATCHES = {"diverged": "xxxx", "collapsed": "////", "stalled": "----", "failed": "||||"}
SHADES = 40  # matplotlib draws a colour bar of 50 shades or more as an embedded bitmap
INK, FAINT = "#222222", "#9a9a9a"
STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#666666",
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "legend.fontsize": 7,
    "legend.frameon": False,
    "hatch.linewidth": 0.5,
    "text.parse_math": False,  # a name such as $\frac{$ is a name
    "svg.fonttype": "none",
    "svg.hashsalt": "clipbench",
    "path.simplify": True,
    "figure.constrained_layout.use": False,
}


def _styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    @functools.wraps(draw)
    def styled(*arguments: P.args, **named: P.kwargs) -> Figure:
        with matplotlib.rc_context({**matplotlib.rcParamsDefault, "backend": matplotlib.rcParams["backend"], **STYLE}):
            return draw(*arguments, **named)

    return styled


# ------------------------------------------------------------------------------------------------------ names, colours, numbers


def colours(names: Iterable[str], known: Mapping[str, str]) -> dict[str, str]:
    """A colour for every name: its own, or one of the strangers' in the order of their names."""
    strangers = sorted(set(names) - set(known))
    return {**known, **{name: STRANGERS[number % len(STRANGERS)] for number, name in enumerate(strangers)}}


def arm_colours(arms: pd.DataFrame) -> dict[str, str]:
    """Arm → colour: its clip's, or its optimizer's where nothing is clipped."""
    optimizers, clips = colours(arms["optimizer"], OPTIMIZERS), colours(arms["clip"], CLIPS)
    return {row.arm: optimizers[row.optimizer] if row.clip == "none" else clips[row.clip] for row in arms.itertuples()}


def _among(name: str, names: Iterable[str], known: Mapping[str, Any], others: Sequence[Any]) -> Any:
    return known[name] if name in known else others[sorted(set(names) - set(known)).index(name) % len(others)]


def number(value: float) -> str:
    """A tick's number, short."""
    return f"{value:g}".replace("-", "−").replace("e−0", "e−").replace("e+0", "e")


def setting(row: Mapping[str, Any]) -> str:
    """``lr 0.1, 0.3×``: a setting as a title names it; the threshold as a multiple where the study gave it so."""
    words = [f"lr {number(row['lr'])}"]
    if not math.isnan(row["relative"]):
        words.append(f"clip {number(row['relative'])}×")
    elif not math.isnan(row["threshold"]):
        words.append(f"clip {number(row['threshold'])}")
    return ", ".join(words)


def _figure(width: float, height: float, footer: str) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.05)  # type: ignore[union-attr]
    figure.supxlabel(footer, x=0.008, ha="left", fontsize=6, color="#777777")
    return figure


def _log_ticks(axes: Axes, values: Sequence[float], axis: str = "x") -> None:
    """A logarithmic axis whose ticks are the values tried."""
    one = getattr(axes, f"{axis}axis")
    getattr(axes, f"set_{axis}scale")("log")
    one.set_major_locator(FixedLocator(sorted(set(values))))
    one.set_minor_locator(NullLocator())
    one.set_major_formatter(FuncFormatter(lambda value, _: number(value)))


def _decades(axes: Axes, axis: str = "y") -> None:
    one = getattr(axes, f"{axis}axis")
    getattr(axes, f"set_{axis}scale")("log")
    one.set_major_locator(LogLocator(numticks=6))
    one.set_minor_locator(NullLocator())
    one.set_major_formatter(FuncFormatter(lambda value, _: number(value)))


# ----------------------------------------------------------------------------------------------------------------- the figures


@_styled
def headline(
    results: pd.DataFrame, drawn: pd.DataFrame, panels: Sequence[Mapping[str, Any]], methods: Mapping[str, str], footer: str
) -> Figure:
    """The named methods per task: three readings with their intervals, every seed a faint dot.

    ``panels``: ``task`` (values of ``TASK``), ``title``, ``label``, ``success``, ``higher_is_better``. ``methods``: name → arm.
    """
    columns = 1 if len(panels) == 1 else 2
    rows = math.ceil(len(panels) / columns)
    figure = _figure(4.6 * columns + 0.6, 0.46 * len(methods) * rows + 0.55 * rows + 0.6, footer)
    grid = figure.subplots(rows, columns, squeeze=False)
    tints = arm_colours(results.drop_duplicates("arm"))
    used: set[str] = set()
    for place, panel in zip(grid.flat, panels, strict=False):
        used |= _headline_panel(place, panel, results, drawn, methods, tints)
    for place in list(grid.flat)[len(panels) :]:
        place.set_axis_off()
    handles = [
        Line2D(
            [],
            [],
            marker=READING_MARKERS[name],
            color=INK,
            markerfacecolor=INK if name != "untuned" else "white",
            lw=1.2,
            ms=5,
            label=word,
        )
        for name, word in READING_WORDS.items()
        if name in used
    ]
    handles.append(Line2D([], [], marker="o", color=FAINT, alpha=0.6, lw=0, ms=3, label="one seed"))
    handles.append(Line2D([], [], marker="<", mfc="white", mec=INK, lw=0, ms=5, label="seeds beyond the axis"))
    handles.append(Line2D([], [], marker="x", color=INK, lw=0, ms=5, label="diverged seeds"))
    figure.legend(handles=handles, loc="outside upper left", ncols=6 if columns == 2 else 3)
    return figure


def _headline_panel(
    axes: Axes,
    panel: Mapping[str, Any],
    results: pd.DataFrame,
    drawn: pd.DataFrame,
    methods: Mapping[str, str],
    tints: Mapping[str, str],
) -> set[str]:
    here, seeds = _task(results, panel["task"]), _task(drawn, panel["task"])
    here, seeds = here[here["arm"].isin(list(methods.values()))], seeds[seeds["arm"].isin(list(methods.values()))]
    finite = pd.concat([here["estimate"], seeds["value"]]) if not panel["success"] else here["estimate"]
    finite = finite[np.isfinite(finite)]
    logarithmic = not panel["success"] and len(finite) > 0 and finite.min() > 0 and finite.max() / finite.min() > 50
    low, high = _span(_fenced(finite, here["estimate"]), panel["success"], logarithmic)
    worst = low if panel["higher_is_better"] else high
    used = set()
    for row, (_, arm) in enumerate(methods.items()):
        for offset, reading in zip((-0.25, 0.0, 0.25), READINGS, strict=True):
            one = here[(here["arm"] == arm) & (here["reading"] == reading)]
            if one.empty:
                continue
            used.add(reading)
            result, y = one.iloc[0], row + offset
            mine = seeds[(seeds["arm"] == arm) & (seeds["reading"] == reading)]
            if not panel["success"]:
                inside = mine["value"].between(low, high)
                axes.plot(mine["value"][inside], np.full(inside.sum(), y), "o", ms=2.4, mew=0, color=tints[arm], alpha=0.35)
                for edge, beyond, glyph in ((low, mine["value"] < low, "<"), (high, mine["value"] > high, ">")):
                    if beyond.any():
                        axes.plot([edge], [y], glyph, ms=5, mfc="white", mec=tints[arm], clip_on=False, zorder=5)
                        shift = (6, -2.2) if glyph == "<" else (-6, -2.2)
                        side = "left" if glyph == "<" else "right"
                        axes.annotate(f"{beyond.sum()}", (edge, y), shift, textcoords="offset points", fontsize=6, ha=side)
            lost = int((mine["ended"] == "diverged").sum())
            if lost:
                axes.plot([worst], [y], "x", ms=5, color=INK, clip_on=False, zorder=5)
                shift = (5, -2.2) if panel["higher_is_better"] else (-5, -2.2)
                side = "left" if panel["higher_is_better"] else "right"
                axes.annotate(f"{lost} of {len(mine)}", (worst, y), shift, textcoords="offset points", fontsize=6, ha=side)
            if np.isfinite(result["estimate"]):
                bounds = np.clip([result["low"], result["high"]], low, high)
                if not np.isnan(bounds).any():
                    axes.plot(bounds, [y, y], "-", color=tints[arm], lw=1.6, solid_capstyle="butt")
                face = "white" if reading == "untuned" else tints[arm]
                axes.plot(
                    [result["estimate"]], [y], READING_MARKERS[reading], ms=5.5, color=tints[arm], mfc=face, mew=1.1, zorder=4
                )
    baseline = here[(here["arm"] == next(iter(methods.values()), None)) & (here["reading"] == "equal")]["estimate"]
    if len(baseline) and np.isfinite(baseline.iloc[0]):
        axes.axvline(baseline.iloc[0], color=FAINT, lw=0.8, ls=(0, (4, 3)), zorder=0)
    axes.set_yticks(range(len(methods)), list(methods))
    axes.tick_params(axis="y", length=0, labelsize=8)
    axes.set_ylim(len(methods) - 0.45, -0.55)
    if logarithmic:
        _decades(axes, "x")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(round(value, 6))))
    axes.set_xlim(low, high)
    axes.grid(axis="x")
    axes.set_title(panel["title"])
    axes.set_xlabel(panel["label"])
    return used


def _fenced(values: pd.Series[float], estimates: pd.Series[float]) -> pd.Series[float]:
    """The values without far outliers, which the panel marks at its edge instead of being squeezed by them; estimates always stay."""
    if values.empty:
        return values
    low, middle, high = values.quantile([0.1, 0.5, 0.9])
    reach = 2 * max(high - middle, middle - low)
    known = estimates[np.isfinite(estimates)]
    return values[values.between(min(low - reach, known.min()), max(high + reach, known.max()))] if len(known) else values


def _span(values: pd.Series[float], success: bool, logarithmic: bool) -> tuple[float, float]:
    if success:
        return -0.04, 1.04
    if values.empty:
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    if logarithmic:
        pad = max(0.05 * math.log10(high / low), 0.05)
        return low / 10**pad, high * 10**pad
    pad = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    return low - pad, high + pad


def _task(frame: pd.DataFrame, task: Sequence[Any]) -> pd.DataFrame:
    mask = pd.Series(True, index=frame.index)
    for name, value in zip(TASK, task, strict=True):
        mask &= frame[name] == value
    return frame[mask]


@_styled
def curves(
    lines: pd.DataFrame, arms: pd.DataFrame, chosen: pd.DataFrame, label: str, reference: float | None, footer: str
) -> Figure:
    """Training loss at the chosen settings: a panel per arm, every seed a thin line, the median thick, diverged ends a cross."""
    optimizers, clips = _order(arms["optimizer_label"]), _order(arms["clip_label"])
    figure = _figure(2.45 * len(clips) + 0.7, 1.75 * len(optimizers) + 0.5, footer)
    grid = figure.subplots(len(optimizers), len(clips), squeeze=False, sharex=True, sharey=True)
    tints, settings = arm_colours(arms), {row["arm"]: row for row in chosen.to_dict("records")}
    for axes in grid.flat:
        axes.set_axis_off()
    for arm in arms.to_dict("records"):
        axes = grid[optimizers.index(arm["optimizer_label"])][clips.index(arm["clip_label"])]
        axes.set_axis_on()
        mine = lines[lines["arm"] == arm["arm"]]
        title = arm["arm"]
        if arm["arm"] in settings and len(mine):
            title += f"\n{setting(settings[arm['arm']])}"
        axes.set_title(title, fontsize=7.5, fontweight="normal")
        _curve_panel(axes, mine, tints[arm["arm"]])
        if reference is not None and reference > 0:
            axes.axhline(reference, color=FAINT, lw=0.7, ls=(0, (2, 2)), zorder=0)
        axes.grid(axis="y")
    positive = lines["gap"][np.isfinite(lines["gap"]) & (lines["gap"] > 0)]
    if len(positive):
        _decades(grid[0][0], "y")
        low, high = float(positive.quantile(0.001)), float(positive.max())
        if reference:
            high = min(high, 1e3 * max(reference, float(positive.quantile(0.5))))
        grid[0][0].set_ylim(low / 1.3, max(high, 1.1 * low) * 1.3)
    figure.supylabel(label, fontsize=8)
    for axes in grid[-1]:
        axes.set_xlabel("step")
    return figure


def _curve_panel(axes: Axes, mine: pd.DataFrame, tint: str) -> None:
    if mine.empty:
        axes.text(0.5, 0.5, "no curve stored", transform=axes.transAxes, ha="center", fontsize=7, color="#777777")
        return
    lost = 0
    for _, line in mine.groupby("seed", sort=True):
        shown = line[np.isfinite(line["gap"]) & (line["gap"] > 0)]
        axes.plot(shown["step"], shown["gap"], "-", lw=0.5, color=tint, alpha=0.45)
        if line["ended"].iloc[0] == "diverged" and len(shown):
            axes.plot(shown["step"].iloc[-1:], shown["gap"].iloc[-1:], "x", ms=5, mew=1.1, color=INK, zorder=5)
        lost += line["ended"].iloc[0] == "diverged"
    seeds = mine["seed"].nunique()
    # A run that ended early stays in the median, as infinite: the median line ends where half of the seeds have.
    table = mine.pivot_table(index="step", columns="seed", values="gap", aggfunc="first", dropna=False)
    middle = table.interpolate(limit_area="inside").fillna(np.inf).quantile(0.5, axis=1, interpolation="higher")
    middle = middle[np.isfinite(middle) & (middle > 0)]
    axes.plot(middle.index, middle, "-", lw=1.5, color=tint)
    note = f"{seeds} seed{'s' * (seeds != 1)}" + (f", {lost} diverged" if lost else "")
    axes.text(0.98, 0.95, note, transform=axes.transAxes, ha="right", va="top", fontsize=6, color="#555555")


def _order(labels: Iterable[str]) -> list[str]:
    """Known names first, in the order of the survey; strangers by name."""
    known = [*OPTIMIZERS, *CLIPS]
    return sorted(set(labels), key=lambda label: (known.index(label) if label in known else len(known), label))


def ordered(arms: pd.DataFrame) -> list[str]:
    """The arms by optimizer, then clip, in the order of the survey."""
    optimizers, clips = _order(arms["optimizer_label"]), _order(arms["clip_label"])
    rows = arms.drop_duplicates("arm").to_dict("records")
    rows.sort(key=lambda row: (optimizers.index(row["optimizer_label"]), clips.index(row["clip_label"])))
    return [row["arm"] for row in rows]


@_styled
def heat(
    settings: pd.DataFrame, arms: pd.DataFrame, chosen: pd.DataFrame, label: str, higher_is_better: bool, footer: str
) -> Figure:
    """The metric over lr × threshold, a panel per clipped arm, with the unclipped optimizer as the lowest row.

    Colour is the mean over the selection seeds. Where a seed diverged, collapsed, stalled or failed, a letter and a hatch say so; a cell
    with a diverged seed has no colour, since a mean over the survivors would flatter it.
    """
    clipped = arms[arms["clip"] != "none"]
    shown = clipped if len(clipped) else arms
    optimizers, clips = _order(shown["optimizer_label"]), _order(shown["clip_label"])
    tall = max((_levels(settings[settings["arm"] == arm]).__len__() for arm in shown["arm"]), default=1) + 1
    figure = _figure(3.5 * len(clips) + 1.3, (0.26 * tall + 0.75) * len(optimizers) + 0.8, footer)
    grid = figure.subplots(len(optimizers), len(clips), squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    # The scale is that of the runs that kept going; collapsed ones are told by their hatch and would use up all of the contrast.
    valued = settings.loc[np.isfinite(settings["value"]) & (settings["diverged"] + settings["collapsed"] == 0), "value"]
    norm = _norm(valued)
    paint = matplotlib.colormaps["cividis" if higher_is_better else "cividis_r"].resampled(SHADES)
    for arm in shown.to_dict("records"):
        axes = grid[optimizers.index(arm["optimizer_label"])][clips.index(arm["clip_label"])]
        axes.set_axis_on()
        rows = settings[settings["arm"] == arm["arm"]]
        partner = settings[settings["arm"] == arm["partner"]] if arm["partner"] else settings.iloc[:0]
        pick = chosen[chosen["arm"].isin([arm["arm"], arm["partner"]])]
        _heat_panel(axes, rows, partner, pick, norm, paint)
        axes.set_title(arm["arm"])
    for axes in grid[-1]:
        axes.set_xlabel("learning rate")
    for row in grid:
        row[0].set_ylabel("threshold")
    if len(valued):
        ends = "min" if higher_is_better else "max"
        scale = figure.colorbar(
            matplotlib.cm.ScalarMappable(norm=norm, cmap=paint), ax=grid, shrink=0.7, pad=0.02, aspect=28, extend=ends
        )
        scale.set_label(label)
        scale.outline.set_visible(False)  # type: ignore[operator]
        scale.solids.set_edgecolor("face")
        scale.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(float(f"{value:.3g}"))))
        scale.ax.yaxis.set_minor_locator(NullLocator())
    words = {"diverged": "diverged", "collapsed": "collapsed", "stalled": "stalled", "failed": "failed"}
    handles = [
        Patch(
            facecolor="#d9d9d9" if name in ("diverged", "failed") else "white",
            edgecolor="#555555",
            hatch=HATCHES[name],
            label=f"{LETTERS[name]} {word}",
        )
        for name, word in words.items()
        if settings[name].sum()
    ]
    handles.append(Patch(facecolor="none", edgecolor="#d00000", lw=1.6, label="chosen setting"))
    figure.legend(handles=handles, loc="outside upper left", ncols=5, handlelength=2.2, handleheight=1.4)
    return figure


def _norm(values: pd.Series[float]) -> Normalize:
    if values.empty:
        return Normalize(0, 1)
    low, high = float(values.min()), float(values.max())
    if low > 0 and high / low > 50:
        return LogNorm(low, high)
    return Normalize(low, high if high > low else low + 1e-9)


def _levels(rows: pd.DataFrame) -> list[tuple[float, float]]:
    """The thresholds of an arm, small to large, as (threshold, relative)."""
    pairs = rows[["threshold", "relative"]].drop_duplicates().itertuples(index=False)
    return sorted(
        {(pair.threshold, pair.relative) for pair in pairs}, key=lambda pair: tuple(-1.0 if math.isnan(x) else x for x in pair)
    )


def _heat_panel(axes: Axes, rows: pd.DataFrame, partner: pd.DataFrame, pick: pd.DataFrame, norm: Normalize, paint: Any) -> None:
    lrs = sorted(set(rows["lr"]) | set(partner["lr"]))
    levels: list[tuple[float, float] | None] = [*([None] if len(partner) else []), *_levels(rows)]
    names = [_level_name(level) for level in levels]
    values, marks = np.full((len(levels), len(lrs)), np.nan), []
    for frame, unclipped in ((partner, True), (rows, False)):
        for cell in frame.to_dict("records"):
            height = 0 if unclipped else _level_index(levels, cell)
            column = lrs.index(cell["lr"])
            if not cell["diverged"]:
                values[height, column] = cell["value"]
            spoiled = {name: int(cell[name]) for name in LETTERS if cell[name]}
            if spoiled:
                marks.append((column, height, spoiled, int(cell["seeds"])))
    edges_x, edges_y = np.arange(len(lrs) + 1) - 0.5, np.arange(len(levels) + 1) - 0.5
    axes.pcolormesh(edges_x, edges_y, np.ma.masked_invalid(values), cmap=paint, norm=norm, edgecolors="white", linewidth=0.6)
    for column, height, spoiled, seeds in marks:
        worst = next(iter(spoiled))
        blank = np.isnan(values[height, column])
        dark = blank or sum(paint(norm(values[height, column]))[:3]) > 1.5
        axes.add_patch(
            Rectangle(
                (column - 0.48, height - 0.47),
                0.96,
                0.94,
                facecolor="#d9d9d9" if blank else "none",
                edgecolor="#8a8a8a" if dark else "#b5b5b5",
                hatch=HATCHES[worst],
                lw=0,
            )
        )
        text = " ".join(f"{LETTERS[name]}{count if count < seeds else ''}" for name, count in spoiled.items())
        box = {"boxstyle": "square,pad=0.15", "facecolor": "#ffffffd8", "edgecolor": "none"}
        axes.text(column, height, text, ha="center", va="center", fontsize=6, color="black", bbox=box)
    for choice in pick.to_dict("records"):
        unclipped = math.isnan(choice["threshold"]) and math.isnan(choice["relative"])
        if unclipped and not len(partner) and len(rows) and not rows["threshold"].isna().all():
            continue
        if choice["lr"] in lrs:
            height = 0 if unclipped else _level_index(levels, choice)
            axes.add_patch(
                Rectangle(
                    (lrs.index(choice["lr"]) - 0.46, height - 0.45), 0.92, 0.9, fill=False, edgecolor="#d00000", lw=1.6, zorder=6
                )
            )
    if len(partner):
        axes.axhline(0.5, color="white", lw=2.5)
    axes.set_xticks(range(len(lrs)), [number(lr) for lr in lrs])
    axes.set_yticks(range(len(levels)), names)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _level_index(levels: Sequence[tuple[float, float] | None], cell: Mapping[str, Any]) -> int:
    for index, level in enumerate(levels):
        if level is not None and all(
            a == b or (math.isnan(a) and math.isnan(b)) for a, b in zip(level, (cell["threshold"], cell["relative"]), strict=True)
        ):
            return index
    return 0


def _level_name(level: tuple[float, float] | None) -> str:
    if level is None or (math.isnan(level[0]) and math.isnan(level[1])):
        return "no clip"
    return f"{number(level[1])}×" if not math.isnan(level[1]) else number(level[0])


@_styled
def stable(ranges: pd.DataFrame, arms: pd.DataFrame, steady: pd.DataFrame, footer: str) -> Figure:
    """The learning rates at which every seed learned: a bar per arm; inside a clipped arm's, the bar of its best single threshold.

    ``steady`` has the ranges of momentum arms with ``factor``: they are drawn once more as lr/(1 − μ).
    """
    optimizers, clips = _order(arms["optimizer_label"]), _order(arms["clip_label"])
    ordered = sorted(
        arms.to_dict("records"), key=lambda row: (optimizers.index(row["optimizer_label"]), clips.index(row["clip_label"]))
    )
    figure = _figure(6.6, 0.27 * len(ordered) + 1.0, footer)
    axes, tints = figure.subplots(), arm_colours(arms)
    tried: set[float] = set()
    for row, arm in enumerate(ordered):
        for one in ranges[ranges["arm"] == arm["arm"]].to_dict("records"):
            tried |= set(one["tried"])
            outer = one["basis"] == "best threshold"
            if one["basis"] != "one threshold":
                axes.plot(one["tried"], [row] * len(one["tried"]), "|", ms=5, mew=0.7, color="#bdbdbd", zorder=1)
                axes.plot(one["lrs"], [row] * len(one["lrs"]), "o", ms=3.2, mew=0.5, mfc="white", mec=INK, zorder=5)
            if math.isnan(one["low"]):
                if one["basis"] != "one threshold":
                    axes.text(min(one["tried"]), row - 0.32, "none stable", fontsize=6, color="#777777", va="center")
                continue
            height = 0.56 if outer or one["basis"] == "no clip" else 0.24
            low, high = one["low"] / 1.12, one["high"] * 1.12
            alpha = 0.4 if outer else 1.0
            axes.barh(
                row, high - low, left=low, height=height, color=tints[arm["arm"]], alpha=alpha, lw=0, zorder=2 if outer else 3
            )
            if one["above"] and one["basis"] != "one threshold":
                axes.annotate("", (high * 1.35, row), (high, row), arrowprops={"arrowstyle": "->", "color": INK, "lw": 0.9})
    for one in steady.to_dict("records"):
        place = [arm["arm"] for arm in ordered].index(one["arm"]) + 0.4
        if not math.isnan(one["low"]):
            axes.plot(
                [one["low"] * one["factor"], one["high"] * one["factor"]],
                [place, place],
                "-",
                marker="|",
                ms=4,
                lw=0.9,
                color=INK,
                zorder=6,
            )
            tried.add(one["high"] * one["factor"])
    axes.set_yticks(range(len(ordered)), [arm["arm"] for arm in ordered])
    axes.set_ylim(len(ordered) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    for row in range(1, len(ordered)):
        if ordered[row]["optimizer_label"] != ordered[row - 1]["optimizer_label"]:
            axes.axhline(row - 0.5, color="#dddddd", lw=0.6)
    if tried:
        _log_ticks(axes, sorted(tried))
        axes.set_xlim(min(tried) / 1.6, max(tried) * 1.9)
        axes.tick_params(axis="x", rotation=45 if len(tried) > 9 else 0)
    axes.set_xlabel("learning rate (an arrow: stable up to the largest one tried)")
    handles = [
        Patch(facecolor="#777777", label="no clip, or one threshold"),
        Patch(facecolor="#777777", alpha=0.4, label="best threshold at each lr"),
        Line2D([], [], marker="o", mfc="white", mec=INK, lw=0, ms=3.2, label="stable"),
        Line2D([], [], marker="|", color="#bdbdbd", lw=0, ms=5, label="tried"),
    ]
    if len(steady):
        handles.append(Line2D([], [], marker="|", color=INK, lw=0.9, ms=4, label="as lr/(1 − μ)"))
    figure.legend(handles=handles, loc="outside upper left", ncols=5, columnspacing=1.2)
    return figure


@_styled
def fired(shares: pd.DataFrame, arms: pd.DataFrame, footer: str) -> Figure:
    """Share of steps clipped against the threshold: a panel per clip, a line per optimizer; the band spans the learning rates."""
    clips = _order(arms.loc[arms["clip"] != "none", "clip_label"])
    figure = _figure(3.1 * max(1, len(clips)) + 0.6, 2.5, footer)
    grid = figure.subplots(1, max(1, len(clips)), squeeze=False, sharey=True)
    tints, handles = colours(arms["optimizer"], OPTIMIZERS), dict[str, Any]()
    for axes, clip in zip(grid.flat, clips, strict=True):
        places: set[float] = set()
        for arm in arms[arms["clip_label"] == clip].to_dict("records"):
            line = shares[shares["arm"] == arm["arm"]].sort_values("place")
            if line.empty:
                continue
            places |= set(line["place"])
            tint, marker = tints[arm["optimizer"]], _among(arm["optimizer"], arms["optimizer"], MARKERS, OTHER_MARKERS)
            axes.fill_between(line["place"], line["low"], line["high"], color=tint, alpha=0.1, lw=0)
            drawn = axes.plot(
                line["place"], line["median"], "-", marker=marker, ms=4, lw=1.2, color=tint, label=arm["optimizer_label"]
            )
            handles.setdefault(arm["optimizer_label"], drawn[0])
        if places:
            _log_ticks(axes, sorted(places))
        axes.set_title(clip)
        relative = shares[shares["arm"].isin(arms.loc[arms["clip_label"] == clip, "arm"])]["relative"].notna()
        axes.set_xlabel("threshold / median size of the raw gradient" if relative.any() else "threshold")
        axes.set_ylim(-0.03, 1.03)
        axes.grid(axis="y")
    grid[0][0].set_ylabel("share of steps clipped")
    if handles:
        figure.legend(handles=[handles[label] for label in _order(handles)], loc="outside upper left", ncols=6)
    return figure


@_styled
def cost(table: pd.DataFrame, footer: str) -> Figure:
    """Time of a clipped step over the unclipped step beside it, with the interval of the median."""
    rows = table[(table["clip"] != "none") & np.isfinite(table["ratio"])]
    optimizers = _order(rows["optimizer"])
    clips = _order(rows["clip"])
    ordered = sorted(rows.to_dict("records"), key=lambda row: (optimizers.index(row["optimizer"]), clips.index(row["clip"])))
    figure = _figure(6.2, 0.25 * len(ordered) + 0.9, footer)
    axes = figure.subplots()
    # A label may carry settings; its colour is the colour of the name before them.
    tints = colours([clip.partition("(")[0] for clip in clips], CLIPS)
    for place, row in enumerate(ordered):
        tint = tints[row["clip"].partition("(")[0]]
        marker = _among(row["optimizer"].partition("(")[0], [name.partition("(")[0] for name in optimizers], MARKERS, OTHER_MARKERS)
        if not math.isnan(row["low"]):
            axes.plot([row["low"], row["high"]], [place, place], "-", color=tint, lw=2)
        axes.plot([row["ratio"]], [place], marker, color=tint, ms=5.5)
    axes.axvline(1, color=FAINT, lw=0.8)
    axes.set_yticks(range(len(ordered)), [f"{row['optimizer']} + {row['clip']}" for row in ordered])
    axes.set_ylim(len(ordered) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"×{number(round(value, 4))}"))
    axes.set_xlabel("step time relative to the same optimizer without a clip")
    return figure


# ------------------------------------------------------------------------------------------------------------------------ bytes


def render(figure: Figure, dpi: int = 150) -> tuple[str, bytes]:
    """The figure as SVG text and PNG: no date, no version, coordinates to a hundredth of a point."""
    vector, pixels = io.StringIO(), io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # laid out once, for both
        figure.savefig(vector, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
        figure.savefig(pixels, format="png", dpi=dpi, metadata={"Software": None})
    text = re.sub(r'(?<= d=")[^"]*', lambda path: _rounded(path[0]), vector.getvalue())
    text = re.sub(r'(?<=transform="rotate\()[^"]*', lambda turn: _rounded(turn[0]), text)
    return text.replace("'DejaVu Sans', sans-serif", "'DejaVu Sans', Verdana, sans-serif"), pixels.getvalue()


def _rounded(path: str) -> str:
    return re.sub(r"-?\d+\.\d{3,}", lambda digits: f"{float(digits[0]):.2f}".rstrip("0").rstrip("."), path)
