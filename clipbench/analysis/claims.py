"""Published claims on gradient clipping, as data: each has sides, and bounds that must hold.

The bounds were set before anything ran. If a count is chaotic they leave room: rounding alone
decides how unclipped runs over a cliff go on. What the packaged study `published` trains is what
they ask for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from clipbench.schema import Term

PASCANU = "Pascanu, Mikolov & Bengio 2013"
ZHANG = "Zhang, He, Sra & Jadbabaie 2020"
GORBUNOV = "Gorbunov, Danilova & Gasnikov 2020"
MENON = "Menon, Rawat, Reddi & Kumar 2020"
CHEN = "Chen, Wu & Hong 2020"
KARIMIREDDY = "Karimireddy, Rebjock, Stich & Jaggi 2019"
INF = math.inf

SHARE, STEPS, PEAK, TYPICAL_PEAK, GAP, ACCURACY = (
    "share of runs that succeed",
    "steps until ‖∇f‖ ≤ 1e-3",
    "worst peak over median",
    "peak over median, median seed",
    "mean f − f* at the end",
    "mean accuracy",
)


class Setting(Term):
    """Whose experiment a claim repeats."""

    PAPER = (
        "the paper's own setting",
        "the paper states the result of this function, this start and this method",
    )
    OURS = (
        "the paper's claim, at a setting of ours",
        "the paper says so, and something that may matter is not as it is there",
    )
    CHECK = "a check of ours", "the paper does not say it"


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
    setting: Setting
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


AT_BEST = (Side("no clip, best lr"), Side("norm 1, best lr", "norm", 1.0))

CLIFF = (
    Claim(
        "A cliff, lr .1",
        f"{PASCANU}, the surface of Fig. 6",
        Setting.OURS,
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
        f"{PASCANU}, the surface of Fig. 6",
        Setting.OURS,
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
)

STEEPNESS = (
    Claim(
        "Steepness far out, R = 10",
        f"{ZHANG}, a function of their class",
        Setting.OURS,
        "clipped descent is faster than any fixed rate, without limit as R grows",
        "each at its best lr of the same twelve: the clip takes at most a tenth of the steps",
        STEPS,
        "cosh",
        10_000,
        1,
        1,
        AT_BEST,
        {"radius": 10.0, "noise": 0.0, "start": "even"},
        # both arrive: an infinite count would be no multiple of another
        lambda seen: seen[0] < INF and seen[1] <= seen[0] / 10,
    ),
    Claim(
        "Steepness near by, R = 2",
        f"{ZHANG}, the same function near its minimum",
        Setting.CHECK,
        "(not said there: near its minimum the function is all but quadratic)",
        "each at its best lr of the same twelve: the clip is not faster",
        STEPS,
        "cosh",
        10_000,
        1,
        1,
        AT_BEST,
        {"radius": 2.0, "noise": 0.0, "start": "even"},
        lambda seen: seen[0] < INF and seen[1] >= seen[0],
    ),
)

HEAVY_TAILS = (
    Claim(
        "Normal noise",
        f"{GORBUNOV}, a fifth of their steps",
        Setting.OURS,
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
            f"{tail.capitalize()} tails, {seed} seed",
            f"{GORBUNOV}, a fifth of their steps",
            setting,
            says,
            "unclipped at least 4, and twice the clipped",
            measure,
            "heavy-tails",
            20_000,
            1,
            10,
            (_sgd(1e-3, low=4.0), _sgd(1e-3, "norm", 100.0)),
            {} if tail == "weibull" else {"noise": tail},
            lambda seen: seen[0] >= 2 * seen[1],
        )
        for tail in ("weibull", "burr")
        for seed, measure, setting, says in (
            (
                "worst",
                PEAK,
                Setting.OURS,
                (
                    "under noise of the same variance and heavy tails, only clipped descent stays "
                    "down (curves of single runs)"
                ),
            ),
            (
                "median",
                TYPICAL_PEAK,
                Setting.CHECK,
                "(not said there: the same bounds, for the seed in the middle)",
            ),
        )
    ),
)

WRONG_LABELS = (
    Claim(
        "Wrong labels",
        f"{MENON}, their mixture",
        Setting.OURS,
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
)

TEMPORAL_ORDER = (
    Claim(
        "Temporal order, lr .3",
        f"{PASCANU}, the task at a small size",
        Setting.OURS,
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
        Setting.CHECK,
        "(trains at this rate, for millions of updates)",
        "in 1,500 updates the clip gains nothing",
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
        Setting.OURS,
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

# What f − f* is at a point is arithmetic. torch's guard in the norm, 1e-6, moves it by less than
# these shares of it: at the end of 100 steps at lr .5, x by 5e-8 and by 1.2e-5.
ENDS, STAYS = 1e-6, 1e-4


def _each_clipped(gap: float, share: float) -> Side:
    """A side that ends at this gap, up to a share of it."""
    return Side(
        "norm 1 of each example, lr 0.5",
        "norm",
        1.0,
        0.5,
        clip_settings={"on": "example"},
        low=gap * (1 - share),
        high=gap * (1 + share),
    )


CLIPPING_BIAS = (
    Claim(
        "Examples clipped at 1: (−3, −3, 9)",
        f"{CHEN}, Example 1",
        Setting.PAPER,
        "at the minimum, x = 1, the clipped gradients have the mean 1/3: descent is led away from "
        "it",
        "unclipped ends at the minimum, clipped 6.125 above it: at x = −5/2, where their mean is 0",
        GAP,
        "clipping-bias",
        100,
        3,
        1,
        (
            _sgd(0.5, high=1e-12),
            _each_clipped(6.125, ENDS),
        ),
    ),
    Claim(
        "Examples clipped at 1: (−3, 3)",
        f"{CHEN}, Example 2",
        Setting.PAPER,
        "every x in [−2, 2] is stationary, and the minimum at 0 may never be reached",
        "unclipped ends at the minimum, clipped 1.125 above it: at x = −3/2, where it began",
        GAP,
        "clipping-bias",
        100,
        2,
        1,
        (
            _sgd(0.5, high=1e-12),
            _each_clipped(1.125, STAYS),
        ),
        {"examples": "symmetric"},
    ),
)

RATE, MOVES, DRAWS, CUT = 0.0025, 100, 400, 0.5


def _drifting(
    mean: float, variance: float, clip: str = "none", threshold: float | None = None
) -> Side:
    """A side of runs on f = x/4 whose steps, as gradients, have this mean and variance.

    After T steps at rate γ, x has the mean −γT·mean and the variance γ²T·variance; f is a quarter
    of it, above the minimum −1/4. The bounds are three standard errors of the mean over the seeds.
    """
    expected = 0.25 - RATE * MOVES * mean / 4
    error = RATE * math.sqrt(MOVES * variance) / 4 / math.sqrt(DRAWS)
    return _sgd(RATE, clip, threshold, expected - 3 * error, expected + 3 * error)


SIGN_BIAS = (
    # A gradient is 4 with probability 1/4, else −1: of mean 1/4 and variance 19/4 − 1/16. Its sign
    # is of mean −1/2 and variance 3/4. In one dimension a clip at c ≤ 1, by value or by norm, is c
    # times the sign: a step of length γ = c·lr. No run leaves [−1, 1], for 4·lr·T = 1.
    Claim(
        "Signs lead away",
        f"{KARIMIREDDY}, Counterexample 1",
        Setting.PAPER,
        "f = x/4: steps of length γ along the sign raise f by γ/8 each in expectation",
        "clipped, f rises by γT/8, γ = lr/2, to .2656 above its minimum; unclipped it falls by "
        "lr·T/16 to .2344: within three standard errors",
        GAP,
        "sign-bias",
        MOVES,
        1,
        DRAWS,
        (
            _drifting(1 / 4, 19 / 4 - 1 / 16),
            _drifting(-CUT / 2, CUT**2 * 3 / 4, "value", CUT),
            _drifting(-CUT / 2, CUT**2 * 3 / 4, "norm", CUT),
        ),
    ),
    Claim(
        "Signs lead to and fro",
        f"{KARIMIREDDY}, Counterexample 2",
        Setting.PAPER,
        "f = ε|x₁ + x₂| + |x₁ − x₂|: along the signs x stays on the line x₁ + x₂ = 2, and f never "
        "falls below f(x₀) = 2ε",
        "ε = 1/2: value stays at 1 or above; none and norm get below a tenth of it",
        GAP,
        "non-smooth",
        2000,
        1,
        1,
        (
            _sgd(0.01, high=0.1),
            # but for the rounding of x₁ + x₂
            _sgd(0.01, "value", CUT, low=1 - 1e-9),
            _sgd(0.01, "norm", CUT, high=0.1),
        ),
    ),
)

CLAIMS = (
    *CLIPPING_BIAS,
    *SIGN_BIAS,
    *CLIFF,
    *STEEPNESS,
    *HEAVY_TAILS,
    *WRONG_LABELS,
    *TEMPORAL_ORDER,
)
