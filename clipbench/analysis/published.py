"""Published results beside a store's own: each is a claim, with sides, and bounds that must hold.

The cells of a claim are found among the selection cells by their settings, so that any study which
has them is judged by the claim, once it has run as many of them as the claim asks for. If a count
is chaotic its bounds leave room: rounding alone decides how unclipped runs over a cliff go on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from clipbench.analysis.cells import Components, plain, table_of, workload
from clipbench.analysis.outcomes import succeeded
from clipbench.schema import Role, Status

PASCANU = "Pascanu, Mikolov & Bengio 2013"
ZHANG = "Zhang, He, Sra & Jadbabaie 2020"
GORBUNOV = "Gorbunov, Danilova & Gasnikov 2020"
MENON = "Menon, Rawat, Reddi & Kumar 2020"
INF = math.inf
EXACT = 0.01  # the share by which a step count without randomness may change under another rounding

COLUMNS = [
    "claim",
    "source",
    "says",
    "wanted",
    "measure",
    "side",
    "n",
    "seen",
    "low",
    "high",
    "complete",
    "holds",
]
SHARE, STEPS, PEAK, ACCURACY = (
    "share of runs that succeed",
    "steps until ‖∇f‖ ≤ 1e-3",
    "worst peak over median",
    "mean accuracy",
)


@dataclass(frozen=True)
class Side:
    """One side of a claim: its cells, by clip, threshold and rate (None: the best of all rates),
    and the bounds of its value.

    ``settings`` are the workload's, besides the claim's; ``clip_settings`` the clip's, besides its
    threshold.
    """

    label: str
    clip: str = "none"
    threshold: float | None = None
    lr: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    clip_settings: Mapping[str, Any] = field(default_factory=dict)
    low: float = -INF
    high: float = INF


@dataclass(frozen=True)
class Claim:
    """A published claim, in the terms of a study that repeats it.

    ``settings`` are the workload's, besides each side's own; ``runs`` is how many runs a side needs
    at each rate; ``between`` says what must hold between the sides' values, besides their bounds.
    All cells are in float64.
    """

    what: str
    source: str
    says: str
    wanted: str
    measure: str
    workload: str
    steps: int
    batch: int
    runs: int
    sides: Sequence[Side]
    settings: Mapping[str, Any] = field(default_factory=dict)
    between: Callable[[Sequence[float]], bool] = lambda _: True


def _sgd(
    lr: float,
    clip: str = "none",
    threshold: float | None = None,
    low: float = -INF,
    high: float = INF,
) -> Side:
    label = f"no clip, lr {lr:g}" if threshold is None else f"{clip} {threshold:g}, lr {lr:g}"
    return Side(label, clip, threshold, lr, low=low, high=high)


def _taking(
    steps: float,
    label: str,
    clip: str = "none",
    threshold: float | None = None,
    lr: float | None = None,
) -> Side:
    return Side(label, clip, threshold, lr, low=steps * (1 - EXACT), high=steps * (1 + EXACT))


CLAIMS = (
    Claim(
        "A cliff, lr .1",
        f"{PASCANU}, Fig. 6",
        "the unclipped step is thrown far off the wall, the clipped one reaches its foot",
        "none at most 65 %, norm at least 99 %",
        SHARE,
        "cliff",
        2000,
        1,
        400,
        (_sgd(0.1, high=0.65), _sgd(0.1, "norm", 1.0, low=0.99)),
    ),
    Claim(
        "A cliff, lr .5",
        f"{PASCANU}, Fig. 6",
        "it is the length that has to be bounded: the direction down the wall is right",
        "norm ahead of value by at least 60 points",
        SHARE,
        "cliff",
        2000,
        1,
        400,
        (_sgd(0.5, "value", 0.1), _sgd(0.5, "norm", 0.1)),
        {},
        lambda seen: seen[1] - seen[0] >= 0.6,
    ),
    Claim(
        "Steepness far out, R = 10",
        ZHANG,
        "clipped descent is faster than any fixed rate, without limit as R grows",
        "8897 and 59 steps, within 1 %",
        STEPS,
        "cosh",
        10_000,
        1,
        1,
        (_taking(8897, "no clip, best lr"), _taking(59, "norm 1, lr 0.5", "norm", 1.0, 0.5)),
        {"radius": 10.0, "noise": 0.0, "start": "even"},
    ),
    Claim(
        "Steepness near by, R = 2",
        f"{ZHANG}, begun near the minimum",
        "(not said there: near its minimum the same function is all but quadratic)",
        "4 and 18 steps, within 1 %: the clip loses",
        STEPS,
        "cosh",
        10_000,
        1,
        1,
        (_taking(4, "no clip, best lr"), _taking(18, "norm 1, lr 0.5", "norm", 1.0, 0.5)),
        {"radius": 2.0, "noise": 0.0, "start": "even"},
    ),
    Claim(
        "Normal noise",
        GORBUNOV,
        "no gradient is long enough to be clipped",
        "both the same, below 2",
        PEAK,
        "heavy-tails",
        20_000,
        1,
        10,
        (_sgd(1e-3, high=2.0), _sgd(1e-3, "norm", 100.0, high=2.0)),
        {"noise": "normal"},
        lambda seen: seen[0] == seen[1],
    ),
    *(
        Claim(
            f"Heavy tails, {tail}",
            GORBUNOV,
            "under noise of the same variance and heavy tails, only clipped descent stays down",
            "unclipped at least 4, and twice the clipped",
            PEAK,
            "heavy-tails",
            20_000,
            1,
            10,
            (_sgd(1e-3, low=4.0), _sgd(1e-3, "norm", 100.0)),
            {} if tail == "weibull" else {"noise": tail},
            lambda seen: seen[0] >= 2 * seen[1],
        )
        for tail in ("weibull", "burr")
    ),
    Claim(
        "Wrong labels",
        MENON,
        (
            "clipping the loss's slope by the score, the huberised loss, does not mend wrong "
            "labels; the partially huberised loss does"
        ),
        "huberised at most .65, partially at least .98",
        ACCURACY,
        "label-noise",
        300,
        1000,
        50,
        (
            Side("logistic", lr=30.0),
            Side("huberised", lr=30.0, settings={"objective": "huberised", "tau": 0.26}, high=0.65),
            Side(
                "partially huberised",
                lr=30.0,
                settings={"objective": "partially-huberised", "tau": 1.36},
                low=0.98,
            ),
            # It has no bounds: the paper has no such row. If examples differ in length it is
            # another method.
            Side("norm 0.05 of each example", "norm", 0.05, 30.0, clip_settings={"on": "example"}),
        ),
    ),
    Claim(
        "Temporal order, lr .3",
        f"{PASCANU}, the task at a small size",
        "a norm clip solves what unclipped descent does not",
        "none at most 1 of 10, norm at least 9",
        SHARE,
        "temporal-order",
        1500,
        20,
        10,
        (_sgd(0.3, high=0.1), _sgd(0.3, "norm", 1.0, low=0.9)),
    ),
    Claim(
        "Temporal order, lr .01",
        f"{PASCANU}, the task at a small size",
        "trains at this rate, for millions of updates",
        "the clip gains nothing",
        SHARE,
        "temporal-order",
        1500,
        20,
        10,
        (_sgd(0.01, high=0.3), _sgd(0.01, "norm", 1.0)),
        {},
        lambda seen: seen[1] <= seen[0] + 0.1,
    ),
    Claim(
        "Temporal order, T = 50",
        f"{PASCANU}, the task at a small size",
        "a clip is for gradients that explode, not that vanish",
        "both none",
        SHARE,
        "temporal-order",
        1500,
        20,
        10,
        (_sgd(0.3, high=0.0), _sgd(0.3, "norm", 1.0, high=0.0)),
        {"length": 50},
    ),
)


def published(cells: pd.DataFrame, components: Components) -> pd.DataFrame:
    """A row per side of every claim, if each of its sides has at least one run.

    ``COLUMNS``: ``n`` counts runs that did not fail; the value ``seen`` must lie between ``low``
    and ``high``, which are infinite if there is no bound. ``complete`` and ``holds`` are of the
    whole claim: whether as many runs as it needs did not fail, and whether it holds; an incomplete
    claim never holds.
    """
    frame = plain(
        cells[
            (cells["role"] == Role.SELECT)
            & (cells["optimizer"] == "sgd")
            & (cells["dtype"] == "float64")
        ]
    )
    documents = frame["settings"].map(json.loads)
    frame = frame.assign(
        own=[document["workload"]["settings"] for document in documents],
        asked=[document["steps"] for document in documents],
        bare=[not document["optimizer"]["settings"] for document in documents],
        beside=[_clip_settings(document["clip"]["settings"]) for document in documents],
        value=frame["metric_value"],
        ended=frame["outcome"],
    )
    rows = []
    for claim in CLAIMS:
        sides = [_of(frame, claim, side) for side in claim.sides]
        if any(side.empty for side in sides):
            continue
        ran = [side[side["status"] != Status.FAILED] for side in sides]
        complete = all(_enough(mine, claim.runs) for mine in ran)
        seen = [_value(side, claim.measure, components) for side in ran]
        within = all(
            side.low <= value <= side.high for side, value in zip(claim.sides, seen, strict=True)
        )
        shared = {
            "claim": claim.what,
            "source": claim.source,
            "says": claim.says,
            "wanted": claim.wanted,
            "measure": claim.measure,
        }
        ends = {"complete": complete, "holds": bool(complete and within and claim.between(seen))}
        rows += [
            {
                **shared,
                "side": side.label,
                "n": len(mine),
                "seen": value,
                "low": side.low,
                "high": side.high,
                **ends,
            }
            for side, mine, value in zip(claim.sides, ran, seen, strict=True)
        ]
    return table_of(rows, COLUMNS)


def _clip_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A clip's settings without its threshold, which has a column of its own."""
    return {
        name: value for name, value in settings.items() if name not in ("max_norm", "max_value")
    }


def _of(frame: pd.DataFrame, claim: Claim, side: Side) -> pd.DataFrame:
    settings = {**claim.settings, **side.settings}
    mine = frame[
        (frame["workload"] == claim.workload)
        & (frame["clip"] == side.clip)
        & (frame["asked"] == claim.steps)
    ]
    mine = mine[mine["bare"] & mine["relative"].isna() & (mine["batch"] == claim.batch)]
    mine = mine[
        (mine["own"].map(lambda own: own == settings))
        & mine["beside"].map(lambda beside: beside == side.clip_settings)
    ]
    if side.threshold is not None:
        mine = mine[mine["threshold"] == side.threshold]
    mine = mine if side.lr is None else mine[mine["lr"] == side.lr]
    # the processor's if two devices ran the same
    return mine[mine["device"] == mine["device"].min()]


def _enough(mine: pd.DataFrame, runs: int) -> bool:
    """Whether every rate of a side has its runs."""
    return len(mine) > 0 and bool((mine.groupby("lr").size() >= runs).all())


def _value(mine: pd.DataFrame, measure: str, components: Components) -> float:
    """The value of a side's runs in a measure; a run without a value, such as a diverged one,
    counts as the worst.
    """
    if mine.empty:
        return math.nan
    if measure == SHARE:
        return float(succeeded(mine, workload(components, str(mine["problem"].iloc[0]))).mean())
    if measure == STEPS:
        return float(mine["stationary_at"].astype(float).fillna(INF).min())
    if measure == PEAK:
        return float(mine["peak_ratio"].astype(float).fillna(INF).max())
    return float(np.nan_to_num(mine["metric_value"].to_numpy(dtype=float)).mean())
