"""Figures: the same bytes each time, colours that stay with their method, and no run left out of
sight.
"""

from __future__ import annotations

import io
import math
import re

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import synthetic
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from clipbench.analysis.cells import arms, current
from clipbench.analysis.cost import cost
from clipbench.analysis.curves import curves
from clipbench.analysis.fired import fired
from clipbench.analysis.grid import grid
from clipbench.analysis.headline import axes as axes_of
from clipbench.analysis.headline import gaps
from clipbench.analysis.implementations import implementations
from clipbench.analysis.outcomes import draws, results
from clipbench.analysis.stable import effective, stable
from clipbench.cell import Cell
from clipbench.figures import style
from clipbench.figures.answer import draw as draw_answer
from clipbench.figures.budget import draw as draw_budget
from clipbench.figures.cost import draw as draw_cost
from clipbench.figures.curves import _panel as curve_panel
from clipbench.figures.curves import draw as draw_curves
from clipbench.figures.divergence import draw as draw_divergence
from clipbench.figures.fired import draw as draw_fired
from clipbench.figures.grid import draw as draw_grid
from clipbench.figures.headline import draw as draw_headline
from clipbench.figures.implementations import draw as draw_implementations
from clipbench.figures.panels import draw as draw_panels
from clipbench.figures.stable import draw as draw_stable
from clipbench.task import ARM, TASK, THRESHOLD

RUN = pd.DataFrame(
    {"step": range(8), "loss": [2.0, 1.0, 3.0, 9.0, 99.0, math.inf, 0.0, math.nan]}
).assign(grad_norm=[1.0, 2.0, 4.0, 8.0, 99.0, math.nan, 1.0, 1.0])
SMALL = {
    "title": "digits, sgd",
    "x": "lr",
    "y": "seeds that learn",
    "log_x": True,
    "level": 0.5,
    "lines": [
        {"clip": "none", "x": [0.1, 1.0], "y": [1.0, 0.0]},
        {"clip": "norm", "x": [0.1, 1.0], "y": [1.0, 0.5], "low": [0.9, 0.2], "high": [1.0, 0.8]},
    ],
}
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    """Every frame a figure is drawn from, of a study with diverged, collapsed and stalled seeds."""

    def change(cell: Cell):
        return synthetic.rows(cell, "diverged") if cell.arm == "sgd" and cell.seed == 1001 else None

    store = synthetic.build(
        tmp_path_factory.mktemp("f") / "s",
        problems=("digits",),
        optimizers=("sgd", "momentum"),
        clips=("none", "norm", "ema"),
        relative=(0.1, 1.0),
        report=3,
        change=change,
    )
    store.add_throughput(
        synthetic.surveyed(
            {name: {"none": 1.0, "norm": cost} for name, cost in (("torch", 2), ("flat", 1.5))}
        )
    )
    cells, _ = current(store)
    components, protocol = store.page("components"), store.page("plan")["protocol"]
    drawn = draws(cells, protocol)
    resulting, compared = results(drawn, components), arms(cells, components)
    return {
        "arms": compared,
        "drawn": drawn,
        "results": resulting.merge(compared, on=ARM),
        "chosen": resulting[resulting["reading"] == "all"],
        "grid": grid(cells, components),
        "stable": stable(cells),
        "steady": effective(stable(cells), compared),
        "fired": fired(cells),
        "cost": cost(store.read("throughput")),
        "implementations": implementations(store.read("throughput")),
        "gaps": differences(store, cells, compared),
        "curves": curves(store.read("curves"), drawn, components),
        "budget": tuned(),
    }


PANEL = {"task": ("digits", 32, "cpu", "float32"), "title": "digits", "label": "accuracy"}


def differences(store, cells, compared) -> pd.DataFrame:
    """The rows of the headline's figure; what is compared is a clip of one threshold."""
    own = cells[cells["relative"].isna() | (cells["relative"] == 1.0)]
    components, protocol = store.page("components"), store.page("plan")["protocol"]
    table = gaps(axes_of(own, components, protocol, {}), compared, components, "best")
    return table.assign(label=table["arm"])


def tuned() -> pd.DataFrame:
    """Two curves of what a tuned threshold is worth, of one optimizer."""
    rows = [
        {
            **dict(zip(TASK, PANEL["task"], strict=True)),
            "arm": arm,
            "partner": "sgd",
            "tries": tries,
            "estimate": 0.9 + worth * tries,
            "without": 0.9 + 0.01 * min(tries, 3),
            "label": arm,
        }
        for arm, worth in (("sgd + norm", 0.004), ("sgd + ema", 0.005))
        for tries in range(1, 9)
    ]
    return pd.DataFrame(rows)


def draw(name: str, frames) -> Figure:
    f = frames
    return {
        "budget": lambda: draw_budget(
            [
                {
                    "rows": f["budget"],
                    "title": "digits, sgd",
                    "label": "accuracy",
                    "without": "sgd, no clip",
                }
            ],
            style.arm_colours(f["arms"]),
            "foot",
        ),
        "headline": lambda: draw_headline(f["gaps"], [PANEL], style.arm_colours(f["arms"]), "foot"),
        "curves": lambda: draw_curves(f["curves"], f["arms"], f["chosen"], "loss", 2.3, "foot"),
        "grid": lambda: draw_grid(f["grid"], f["arms"], f["chosen"], "accuracy", True, "foot"),
        "stable": lambda: draw_stable(f["stable"], f["arms"], f["steady"], "foot"),
        "fired": lambda: draw_fired(f["fired"], f["arms"], "foot"),
        "cost": lambda: draw_cost(f["cost"], "foot"),
        "implementations": lambda: draw_implementations(f["implementations"], "foot"),
        "answer": lambda: draw_answer(
            [
                {
                    "title": "digits",
                    "x": "accuracy",
                    "rows": f["gaps"].assign(label=f["gaps"]["arm"], estimate=f["gaps"]["low"]),
                }
            ],
            style.arm_colours(f["arms"]),
            "foot",
        ),
        "divergence": lambda: draw_divergence([{"title": "one", "rows": RUN, "at": 5}], "foot"),
        "panels": lambda: draw_panels([SMALL], "foot"),
    }[name]()


KINDS = ("budget", "headline", "curves", "grid", "stable", "fired", "cost", "implementations")
KINDS += ("answer", "divergence", "panels")


def drawn(figure: Figure) -> tuple[str, bytes]:
    made = style.render(figure, ("svg", "png"))
    return made["svg"].decode(), made["png"]


@pytest.mark.parametrize("name", KINDS)
def test_the_same_frame_gives_the_same_bytes_and_none_of_them_is_a_date_or_a_version(frames, name):
    svg, png = drawn(draw(name, frames))
    again = drawn(draw(name, frames))
    assert (svg, png) == again
    assert svg.startswith("<?xml")
    assert png.startswith(PNG)
    assert mpl.__version__ not in svg
    assert b"matplotlib" not in png
    assert "foot" in svg
    assert "base64" not in svg


@pytest.mark.parametrize("name", KINDS)
def test_a_figure_for_a_paper_embeds_its_fonts_and_has_no_footer(frames, name):
    """Type 42, as publishers ask for; no wider than a paper's two columns, the same bytes twice."""
    with style.looking(style.COLUMNS):
        made = [style.render(draw(name, frames), ("pdf", "svg")) for _ in range(2)]
    assert made[0] == made[1]
    pdf = made[0]["pdf"]
    assert b"/Type3" not in pdf
    assert b"/FontFile2" in pdf
    box = [float(one) for one in re.search(rb"/MediaBox \[ ([\d. ]+) \]", pdf)[1].split()]
    assert box[2] <= 72 * style.COLUMNS.width
    assert b"foot" not in made[0]["svg"]
    assert b"CreationDate" not in pdf


def test_the_global_style_is_left_alone_and_has_no_influence(frames):
    plain = drawn(draw("stable", frames))
    with mpl.rc_context({"font.size": 33, "axes.facecolor": "red", "lines.linewidth": 9}):
        before = dict(mpl.rcParams)
        assert drawn(draw("stable", frames)) == plain
        assert dict(mpl.rcParams) == before


@pytest.mark.parametrize("name", KINDS)
def test_a_name_that_looks_like_mathematics_is_a_name(frames, name):
    hostile = {}
    for key, frame in frames.items():
        renamed = frame.copy()
        for column in ("arm", "clip", "clip_label", "optimizer_label", "partner", "label"):
            if column in frame:
                renamed[column] = (
                    frame[column]
                    .astype(object)
                    .map(
                        lambda word: (
                            word.replace("norm", r"$\frac{$ <b> norm")
                            if isinstance(word, str)
                            else word
                        )
                    )
                )
        hostile[key] = renamed
    svg, _ = drawn(draw(name, hostile))
    assert "<b>" not in svg


def luminance(colour: str) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def deuteranope(colour: str) -> np.ndarray:
    """Machado et al. 2009, full deuteranopia, in linear RGB."""
    linear = np.array(
        [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    )
    return (
        np.array(
            [
                [0.367322, 0.860646, -0.227968],
                [0.280085, 0.672501, 0.047413],
                [-0.011820, 0.042940, 0.968881],
            ]
        )
        @ linear
    )


def test_the_five_methods_have_five_colours_that_stay_apart_without_red_and_green():
    five = [
        style.OPTIMIZERS["sgd"],
        style.OPTIMIZERS["momentum"],
        style.OPTIMIZERS["rmsprop"],
        style.CLIPS["value"],
        style.CLIPS["norm"],
    ]
    for number, first in enumerate(five):
        for second in five[number + 1 :]:
            assert np.abs(deuteranope(first) - deuteranope(second)).max() > 0.08
            assert first != second


def test_every_colour_is_dark_enough_for_paper():
    for colour in (*style.OPTIMIZERS.values(), *style.CLIPS.values(), *style.OTHER_COLOURS):
        assert luminance(colour) < 0.55


def test_a_stranger_keeps_its_colour_whatever_comes_with_it():
    alone = style.colours(["ema"], style.CLIPS)
    beside = style.colours(["norm", "ema", "none"], style.CLIPS)
    assert alone["ema"] == beside["ema"] == style.OTHER_COLOURS[0]
    assert style.colours(["zeta", "ema"], style.CLIPS) == style.colours(
        ["ema", "zeta"], style.CLIPS
    )
    assert {style.CLIPS[name] for name in ("value", "norm")} == {
        style.colours(["value", "norm", "x"], style.CLIPS)[name] for name in ("value", "norm")
    }


def test_an_arm_has_its_clips_colour_or_its_optimizers(frames):
    tints = style.arm_colours(frames["arms"])
    assert tints["momentum"] == style.OPTIMIZERS["momentum"]
    assert tints["momentum + norm"] == tints["sgd + norm"] == style.CLIPS["norm"]


def test_a_difference_lies_beside_its_margin_and_within_its_intervals(frames):
    """A band from −δ to δ, a row an arm, and what does not fit is an arrow at the edge."""
    axes = draw("headline", frames).axes[0]
    (band,) = [patch for patch in axes.patches if patch.get_width() > 0]
    assert (band.get_x(), band.get_width()) == (-0.02, 0.04)
    assert [text.get_text() for text in axes.get_yticklabels()] == list(frames["gaps"]["arm"])
    far = frames["gaps"].assign(difference=[50.0, *frames["gaps"]["difference"][1:]], low=math.nan)
    axes = draw_headline(far, [PANEL], style.arm_colours(frames["arms"]), "").axes[0]
    (arrow,) = [line for line in axes.lines if line.get_marker() == ">"]
    assert arrow.get_xdata()[0] < axes.get_xlim()[1] < 50


def test_a_diverged_curve_ends_in_a_cross_and_every_seed_has_its_line(frames):
    axes = draw("curves", frames).axes[0]
    assert sum(line.get_marker() == "x" for line in axes.lines) == 1
    assert sum(line.get_linewidth() == 0.5 for line in axes.lines) == 3
    assert "3 seeds, 1 diverged" in [text.get_text() for text in axes.texts]


def test_the_median_of_two_diverged_of_three_ends_where_the_second_did():
    rows = [
        {
            "arm": "sgd",
            "seed": seed,
            "ended": "diverged" if seed else "learned",
            "step": float(step),
            "gap": 1.0,
        }
        for seed, steps in enumerate((100, 40, 30))
        for step in range(steps)
    ]
    figure = Figure()
    axes = figure.subplots()
    curve_panel(axes, pd.DataFrame(rows), "black")
    (middle,) = [
        line for line in axes.lines if line.get_linewidth() == 1.5 and line.get_marker() == "None"
    ]
    assert max(middle.get_xdata()) == 39


def test_heat_map_cells_are_told_apart_by_letter_and_hatch_and_not_by_colour_alone():
    place = {
        "problem": "digits",
        "batch": 32,
        "device": "cpu",
        "dtype": "float32",
        "arm": "sgd",
        "threshold": math.nan,
        "relative": math.nan,
        "percentile": math.nan,
    }
    none = dict.fromkeys(("learned", "stalled", "collapsed", "diverged", "failed", "no_value"), 0)
    kinds = list(none)
    lost = ("diverged", "failed", "no_value")
    rows = [
        {
            **place,
            "lr": 10.0**number,
            "seeds": 3,
            **none,
            kind: 3,
            "value": math.nan if kind in lost else 0.5,
        }
        for number, kind in enumerate(kinds)
    ]
    rows.append({**place, "lr": 1e6, "seeds": 3, **none, "learned": 1, "diverged": 2, "value": 0.9})
    arms = pd.DataFrame(
        [
            {
                **place,
                "optimizer": "sgd",
                "clip": "none",
                "optimizer_label": "sgd",
                "clip_label": "none",
                "setting": None,
                "partner": None,
            }
        ]
    )
    chosen = pd.DataFrame(columns=["arm", "lr", *THRESHOLD])
    figure = draw_grid(
        pd.DataFrame(rows).assign(statistic="mean"), arms, chosen, "accuracy", True, ""
    )
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["S", "C", "D", "F", "?", "D2"]
    assert len({patch.get_hatch() for patch in axes.patches[:5]}) == 5
    colours = axes.collections[0].get_array()
    assert np.ma.getmaskarray(colours).ravel().tolist() == [
        False,
        False,
        False,
        True,
        True,
        True,
        True,
    ]
    # A share of successes counts its diverged seeds, so that it has a colour, on a scale from none
    # to all.
    figure = draw_grid(
        pd.DataFrame(rows).assign(statistic="share"), arms, chosen, "share", False, ""
    )
    mesh = figure.axes[0].collections[0]
    assert np.ma.getmaskarray(mesh.get_array()).ravel().tolist() == [
        False,
        False,
        False,
        True,
        True,
        True,
        False,
    ]
    assert mesh.get_clim() == (-1, 1)
    assert mesh.get_cmap().name == "RdBu"


def test_the_sign_of_a_gain_is_a_mark_and_not_a_colour_alone(frames):
    """In grey the ends of the scale are one: every cell that gains has a plus, every one that loses
    a minus, and the best without a clip, which all are measured by, neither.
    """
    axes = draw("grid", frames).axes[0]
    mesh = axes.collections[0]
    gains = np.ma.filled(mesh.get_array().astype(float), np.nan)
    signs = {"+": 1, "_": -1}
    marked = np.zeros_like(gains)
    for line in axes.lines:
        for x, y in zip(*line.get_data(), strict=True):
            if line.get_marker() in signs:
                marked[round(y), round(x)] = signs[line.get_marker()]
    assert {-1, 1} <= set(np.sign(gains[np.isfinite(gains)]))
    assert (marked == np.nan_to_num(np.sign(gains))).all()


def test_numbers_on_axes_are_short_and_have_a_true_minus():
    assert [style.number(value) for value in (0.001, 30.0, 1e-5, -2.0, 1e6)] == [
        "0.001",
        "30",
        "1e−5",
        "−2",
        "1e6",
    ]


def test_svg_paths_are_rounded_and_text_is_text(frames):
    svg, png = drawn(draw("stable", frames))
    assert ">learning rate" in svg
    assert "<text" in svg
    assert len(svg) < 60_000
    assert all(
        len(part.rpartition(".")[2]) <= 2
        for part in svg.split(' d="')[1].partition('"')[0].split()
        if "." in part
    )
    width, height = np.frombuffer(io.BytesIO(png).getvalue()[16:24], dtype=">u4")
    assert width > 600
    assert height > 200
