"""One look for every figure, and a figure's bytes: no pyplot, no global style, no dates.

Shared by the figures. It knows none of them, and no table that they draw.
"""

from __future__ import annotations

import functools
import io
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, ParamSpec

import matplotlib as mpl
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from clipbench.task import Threshold

P = ParamSpec("P")

BLUE, ORANGE, GREEN, RED, PINK, *_, SKY = sns.color_palette("colorblind").as_hex()
OPTIMIZERS = {
    "sgd": "#4d4d4d",
    "momentum": BLUE,
    "nesterov": SKY,
    "rmsprop": GREEN,
    "adam": PINK,
    "adamw": "#882255",
}
CLIPS = {"none": "#4d4d4d", "value": ORANGE, "norm": RED, "layer": SKY, "adaptive": GREEN}
OTHER_COLOURS = (
    "#332288",
    "#88ccee",
    "#44aa99",
    "#117733",
    "#999933",
    "#cc6677",
    "#aa4499",
    "#661100",
)
MARKERS = {"sgd": "o", "momentum": "s", "nesterov": "D", "rmsprop": "^", "adam": "v", "adamw": "P"}
OTHER_MARKERS = ("X", "p", "h", "*")
INK, FAINT = "#222222", "#9a9a9a"
STYLE: Any = {
    **sns.axes_style("ticks"),
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titley": 1.0,  # no ticks are above a panel: what looks for them takes time
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


class Look(NamedTuple):
    """How figures look: on a page as wide as they need, with a footer; in a paper at most
    ``width`` inches wide, without one, with embedded fonts.
    """

    width: float = math.inf
    footer: bool = True
    rc: Any = ()


TRUE_TYPE = (("pdf.fonttype", 42), ("ps.fonttype", 42))  # what publishers ask for: no Type 3 fonts
PAGE = Look()
COLUMN, COLUMNS = (Look(width, footer=False, rc=TRUE_TYPE) for width in (3.4, 7.0))
_look: ContextVar[Look] = ContextVar("look", default=PAGE)


@contextmanager
def looking(look: Look) -> Iterator[None]:
    """Draw and render figures with another look."""
    token = _look.set(look)
    try:
        yield
    finally:
        _look.reset(token)


def room() -> float:
    """How wide a figure may be, in inches."""
    return _look.get().width


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """A drawing function that uses our style, whatever the process's own is."""

    @functools.wraps(draw)
    def styled(*arguments: P.args, **named: P.kwargs) -> Figure:
        defaults: Any = mpl.rcParamsDefault
        with mpl.rc_context({**defaults, "backend": mpl.rcParams["backend"], **STYLE}):
            return draw(*arguments, **named)

    return styled


def colours(names: Iterable[str], known: Mapping[str, str]) -> dict[str, str]:
    """Name → colour: a known name's own; a user-defined one's from `OTHER_COLOURS`, in the order
    of their names.
    """
    unlisted = sorted(set(names) - set(known))
    return {
        **known,
        **{
            name: OTHER_COLOURS[number % len(OTHER_COLOURS)] for number, name in enumerate(unlisted)
        },
    }


def arm_colours(arms: pd.DataFrame) -> dict[str, str]:
    """Arm → colour: its clip's, or its optimizer's if nothing is clipped."""
    optimizers, clips = colours(arms["optimizer"], OPTIMIZERS), colours(arms["clip"], CLIPS)
    return {
        row.arm: optimizers[row.optimizer] if row.clip == "none" else clips[row.clip]
        for row in arms.itertuples()
    }


def among(name: str, names: Iterable[str], known: Mapping[str, Any], others: Sequence[Any]) -> Any:
    """A known name's value, or one of ``others`` in the order of the unknown names."""
    return (
        known[name]
        if name in known
        else others[sorted(set(names) - set(known)).index(name) % len(others)]
    )


def number(value: float) -> str:
    """A tick's number, short."""
    return f"{value:g}".replace("-", "−").replace("e−0", "e−").replace("e+0", "e")


def setting(row: Mapping[str, Any]) -> str:
    """``lr 0.1, 0.3×``: a setting as a title names it; the threshold as a multiple if the study
    gave it so.
    """
    words = [f"lr {number(row['lr'])}"]
    threshold = Threshold.of(row)
    if not threshold.absent:
        words.append(f"clip {given(threshold)}")
    return ", ".join(words)


def given(threshold: Threshold) -> str:
    """``0.3×``, ``p90`` or ``0.01``: a threshold as the study gave it."""
    before, after = "p" * threshold.is_percentile, "×" * threshold.is_relative
    return f"{before}{number(threshold.given)}{after}"


def order(labels: Iterable[str]) -> list[str]:
    """Known names first, in the order of the survey; user-defined ones by name."""
    known = [*OPTIMIZERS, *CLIPS]
    return sorted(
        set(labels),
        key=lambda label: (
            known.index(name) if (name := label.partition("(")[0]) in known else len(known),
            label,
        ),
    )


def ordered(arms: pd.DataFrame) -> list[str]:
    """The arms by optimizer, then clip, in the order of the survey."""
    optimizers, clips = order(arms["optimizer_label"]), order(arms["clip_label"])
    rows = arms.drop_duplicates("arm").to_dict("records")
    rows.sort(
        key=lambda row: (optimizers.index(row["optimizer_label"]), clips.index(row["clip_label"]))
    )
    return [row["arm"] for row in rows]


class Drawing(Figure):
    """A figure that a notebook shows by itself."""

    def _repr_png_(self) -> bytes:
        return render(self, ["png"])["png"]


def blank(width: float, height: float, footer: str) -> Figure:
    """An empty figure with its footer, of these inches; a paper's look bounds the width."""
    look = _look.get()
    engine = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.05)
    figure = Drawing(figsize=(min(width, look.width), height), layout=engine)
    if look.footer:
        figure.supxlabel(footer, x=0.008, ha="left", fontsize=6, color="#777777")
    return figure


def log_ticks(axes: Axes, values: Sequence[float], axis: str = "x") -> None:
    """A logarithmic axis whose ticks are the values tried."""
    one = getattr(axes, f"{axis}axis")
    getattr(axes, f"set_{axis}scale")("log")
    one.set_major_locator(FixedLocator(sorted(set(values))))
    one.set_minor_locator(NullLocator())
    one.set_major_formatter(FuncFormatter(lambda value, _: number(value)))


def decades(axes: Axes, axis: str = "y") -> None:
    """A logarithmic axis with a tick a decade."""
    one = getattr(axes, f"{axis}axis")
    getattr(axes, f"set_{axis}scale")("log")
    one.set_major_locator(LogLocator(numticks=6))
    one.set_minor_locator(NullLocator())
    one.set_major_formatter(FuncFormatter(lambda value, _: number(value)))


DPI = 150  # of a PNG


def render(figure: Figure, forms: Iterable[str]) -> dict[str, bytes]:
    """The figure in each of ``forms`` (``svg``, ``png``, ``pdf``): no date, no version; of SVG,
    coordinates to a hundredth of a point.
    """
    made = {}
    with mpl.rc_context({**STYLE, **dict(_look.get().rc)}):
        # text is wider or narrower at another resolution: what is laid out must be what is drawn
        figure.set_dpi(DPI)
        if (engine := figure.get_layout_engine()) is not None:
            engine.execute(figure)
        figure.set_layout_engine(None)  # laid out once; any engine would have it drawn again
        for form in forms:
            drawn = io.BytesIO()
            figure.savefig(drawn, format=form, dpi=DPI, metadata=NOTHING_NOTED[form])
            made[form] = drawn.getvalue()
    if "svg" in made:
        text = made["svg"].decode()
        text = text.replace("'DejaVu Sans', sans-serif", "'DejaVu Sans', Verdana, sans-serif")
        made["svg"] = _slim(text).encode()
    return made


NOTHING_NOTED: dict[str, dict[str, None]] = {
    "svg": dict.fromkeys(("Date", "Creator", "Format", "Type")),
    "png": {"Software": None},
    "pdf": dict.fromkeys(("CreationDate", "Creator", "Producer")),
}

NAMELESS = re.compile(
    r' id="(?:text|line2d|patch|[xy]tick|axes|legend|QuadMesh|[A-Za-z]+Collection|'
    r'matplotlib\.axis)_\d+"'
)
COORDINATES = re.compile(r'(?<=transform="rotate\()[^"]*|(?<= [xy]=")[^"]*')


def _slim(svg: str) -> str:
    """The same picture in half the bytes: styles named once, no comments, no unused names,
    rounded coordinates.
    """
    styles: dict[str, str] = {}

    def slim(tag: str) -> str:
        tag = COORDINATES.sub(lambda coordinates: _rounded(coordinates[0]), NAMELESS.sub("", tag))
        tag = re.sub(r'(?<= d=")[^"]*', lambda path: _path(path[0]), tag)
        tag = re.sub(r' transform="rotate\(-0 [-\d. ]+\)"', "", tag)
        return re.sub(
            r' style="([^"]*)"',
            lambda style: f' class="{styles.setdefault(style[1], f"s{len(styles)}")}"',
            tag,
        )

    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    # tags alone: a label may look like an attribute
    svg = re.sub(r"<[a-z][^<>]*>", lambda tag: slim(tag[0]), svg)
    rules = "".join(f".{name}{{{style}}}" for style, name in styles.items())
    return re.sub(r">\s*\n\s*<", "><", svg.replace("</style>", f"{rules}</style>", 1))


def _path(path: str) -> str:
    """The same path in relative steps, which have fewer digits; the end of each is rounded, so
    that no error adds up.
    """
    if set(re.findall("[A-Za-z]", path)) - set("MLz"):
        return " ".join(_rounded(path).split())  # curves: few, as of markers
    pieces, x, y = [], 0, 0
    for command, *target in (one.split() for one in re.findall(r"[MLz][^MLz]*", path)):
        if command == "z":
            pieces.append("z")
            continue
        to_x, to_y = (round(100 * float(number)) for number in target)
        if command == "M":
            pieces.append(f"M{_short(to_x)} {_short(to_y)}l")
        else:
            pieces.append(f"{_short(to_x - x)} {_short(to_y - y)} ")
        x, y = to_x, to_y
    return "".join(pieces).replace(" z", "z").rstrip(" l")


def _short(hundredths: int) -> str:
    return f"{hundredths / 100:.2f}".rstrip("0").rstrip(".")


def _rounded(path: str) -> str:
    return re.sub(
        r"-?\d+\.\d{3,}", lambda digits: f"{float(digits[0]):.2f}".rstrip("0").rstrip("."), path
    )
