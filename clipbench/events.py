"""What happened in a run: its events and its status, derived from curve and evaluations by one
function for every engine.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from clipbench.measures import GRAD_NORM, LOSS, UPDATE_NORM
from clipbench.schema import NONFINITE, Kind, Outcome, Status

# a loss near the largest number may overflow its own multiples
SILENT = np.errstate(over="ignore", invalid="ignore")


@dataclass(frozen=True)
class Rules:
    """The event thresholds, settings of a study. Losses are measured from the optimum where it
    is known, from zero elsewhere.
    """

    blow_up: float = 10.0
    """A run blows up above this multiple of max(first loss, reference loss) …"""
    blow_up_steps: int = 10
    """… for this many steps running."""
    spike: float = 5.0
    """A spike is above this multiple of the median of the steps before, and above it by more
    than the reference loss.
    """
    spike_window: int = 50
    """Steps that median looks back on."""
    tail: float = 0.05
    """Share of the steps whose median loss says whether a run came back from a blow-up."""


@dataclass(frozen=True)
class Event:
    """One event: the step it began, its kind, the value the rule looked at, and the rule in
    words.
    """

    step: int
    kind: str
    value: float
    detail: str


class Evaluation(NamedTuple):
    """A value over a whole split after so many updates: a row of the table ``evals``.

    ``error`` is its standard error over the split's examples, known of what outcomes are judged by.
    """

    step: int
    split: str
    metric: str
    value: float
    error: float | None = None


@dataclass(frozen=True)
class Verdict:
    """A run's status and outcome, the event that spoiled it and that event's first step."""

    status: str
    outcome: str
    reason: str | None = None
    diverged_at: int | None = None


ORDER = [*Kind]  # of the events of one step
# of a gradient's norm: the ε of the theory's ε-stationary points, as the published step counts take
# it
STATIONARY = 1e-3


def peak_ratio(rows: np.ndarray, optimum: float | None) -> float | None:
    """The largest loss of the last half of a curve (steps × measures) over its median there,
    both above ``optimum``; or None.
    """
    half = rows[len(rows) // 2 :, LOSS] - (optimum or 0.0)
    middle = np.median(half) if len(half) and np.isfinite(half).all() else 0.0
    return float(half.max() / middle) if middle > 0 else None


def stationary_at(rows: np.ndarray) -> int | None:
    """The first step of a curve (steps × measures) whose raw gradient is no longer than
    `STATIONARY`; None if none is.
    """
    short = rows[:, GRAD_NORM] <= STATIONARY
    return int(np.argmax(short)) if short.any() else None


def ends(rows: np.ndarray) -> np.ndarray:
    """Which steps of a curve end it: those with a loss, gradient or parameter that is not finite
    (``rows``: steps × measures).
    """
    return (
        ~np.isfinite(rows[:, LOSS]) | np.isnan(rows[:, GRAD_NORM]) | np.isnan(rows[:, UPDATE_NORM])
    )


@SILENT
def derive(
    rows: np.ndarray,
    reference: float | None,
    optimum: float | None = None,
    unbounded: bool = False,
    rules: Rules | None = None,
    dtype: str = "float64",
) -> list[Event]:
    """The events of one curve, in the order of their steps.

    :param rows: steps × measures, in the order of `measures.COLUMNS`; a step that ends the curve is
        its last.
    :param reference: the loss of the best constant prediction; None means the first loss (an
        analytic function).
    :param optimum: the loss's infimum, or None if it is unknown.
    :param unbounded: a loss unbounded below gets the rules on non-finite values only.
    :param dtype: of the gradients, ``float32`` or ``float64``: whose range their squares may leave.
    """
    rules = rules or Rules()
    events = [*_nonfinite(rows), *_overflows(rows), *_underflows(rows, dtype)]
    if not unbounded and len(rows):
        level, base = _level(rows, reference, optimum)
        events += _blow_ups(level, base, rules)
        events += _spikes(level, base, rules)
    return ordered(events)


def evaluated(evaluations: Sequence[Evaluation]) -> list[Event]:
    """The events of a run's evaluations: of every split and metric the first value that is not
    finite.

    They end nothing: what is wrong may be the data that are looked at, or the metric.
    """
    first: dict[tuple[str, str], Event] = {}
    for one in evaluations:
        if not math.isfinite(one.value):
            event = Event(
                one.step,
                Kind.NONFINITE_EVALUATION,
                one.value,
                f"{one.metric} on the {one.split} split is not finite",
            )
            first.setdefault((one.split, one.metric), event)
    return ordered(first.values())


def ordered(events: Iterable[Event]) -> list[Event]:
    """Events by their steps; those of one step as `schema.Kind` has them."""
    return sorted(events, key=lambda event: (event.step, ORDER.index(event.kind)))


def judge(events: Sequence[Event], outcome: str) -> Verdict:
    """Status and outcome of a run that was not cut short.

    :param outcome: what became of its training if it did not diverge (`skill.outcome`).
    """
    kinds = {event.kind: event for event in reversed(events)}  # the first of each kind
    broken = [kinds[kind] for kind in NONFINITE if kind in kinds]
    if broken:
        first = min(broken, key=lambda event: event.step)
        return Verdict(Status.DIVERGED, Outcome.DIVERGED, first.kind, first.step)
    if Kind.BLOW_UP in kinds and Kind.RECOVERED not in kinds:
        return Verdict(Status.DIVERGED, Outcome.DIVERGED, Kind.BLOW_UP, kinds[Kind.BLOW_UP].step)
    return Verdict(Status.COMPLETED, outcome)


def _level(
    rows: np.ndarray, reference: float | None, optimum: float | None
) -> tuple[np.ndarray, float]:
    loss = rows[:, LOSS]
    shift = optimum or 0.0
    return loss - shift, (float(loss[0]) if reference is None else reference) - shift


def _tail(level: np.ndarray, rules: Rules) -> float:
    return float(np.median(level[-max(1, math.ceil(rules.tail * len(level))) :]))


def _nonfinite(rows: np.ndarray) -> list[Event]:
    events = []
    for kind, column, broken in (
        (Kind.NONFINITE_LOSS, LOSS, ~np.isfinite(rows[:, LOSS])),
        (Kind.NONFINITE_GRAD, GRAD_NORM, np.isnan(rows[:, GRAD_NORM])),
        (Kind.NONFINITE_PARAM, UPDATE_NORM, np.isnan(rows[:, UPDATE_NORM])),
    ):
        if broken.any():
            step = int(np.argmax(broken))
            noun = (
                kind.removeprefix("nonfinite_")
                .replace("grad", "gradient")
                .replace("param", "parameter")
            )
            events.append(Event(step, kind, float(rows[step, column]), f"{noun} is not finite"))
    return events


def _overflows(rows: np.ndarray) -> list[Event]:
    detail = "the gradient is finite and its norm is not: a norm clip makes it zero"
    return [
        Event(step, Kind.NORM_OVERFLOW, float(rows[step, GRAD_NORM]), detail)
        for step, _ in _excursions(np.isposinf(rows[:, GRAD_NORM]))
    ]


def _underflows(rows: np.ndarray, dtype: str) -> list[Event]:
    norms = rows[:, GRAD_NORM]
    detail = (
        f"the gradient is not zero and its squares are, in {dtype}: a norm taken of them is "
        f"zero or too short"
    )
    low = (norms > 0) & (norms < math.sqrt(np.finfo(dtype).tiny))
    return [
        Event(step, Kind.NORM_UNDERFLOW, float(norms[step]), detail) for step, _ in _excursions(low)
    ]


def _blow_ups(level: np.ndarray, base: float, rules: Rules) -> list[Event]:
    line = rules.blow_up * max(float(level[0]), base)
    if not math.isfinite(line) or line <= 0:
        return []
    long = [
        (first, last)
        for first, last in _excursions(level > line)
        if last - first >= rules.blow_up_steps
    ]
    if not long:
        return []
    words = (
        f"above {line:.6g}, {rules.blow_up:g} times the larger of first and reference loss, "
        f"for {rules.blow_up_steps} steps running"
    )
    events = [Event(first, Kind.BLOW_UP, float(level[first]), words) for first, _ in long]
    end = long[-1][1]
    if end < len(level) and _tail(level, rules) < line:
        events.append(
            Event(
                end,
                Kind.RECOVERED,
                float(level[end]),
                f"back below {line:.6g}, and there at the end",
            )
        )
    return events


def _spikes(level: np.ndarray, base: float, rules: Rules) -> list[Event]:
    window = rules.spike_window
    if len(level) <= window or not base > 0:
        return []
    now = level[window:]
    # A median is no less than the least level: only where even that is far enough below is it
    # worked out.
    far = np.flatnonzero(np.isfinite(now) & (now - np.fmin.reduce(level) > base))
    windows = np.lib.stride_tricks.sliding_window_view(level, window)
    before = np.full(len(now), np.nan)
    before[far] = np.median(windows[far], axis=1)
    high = (now > rules.spike * before) & (now - before > base)
    return [
        Event(
            window + first,
            Kind.SPIKE,
            float(now[first]),
            (
                f"above {rules.spike:g} times the median of the {window} steps before "
                f"({before[first]:.6g}) by more than the reference"
            ),
        )
        for first, _ in _excursions(high)
    ]


def _excursions(mask: np.ndarray) -> list[tuple[int, int]]:
    """Half-open spans of consecutive True steps."""
    edge = np.flatnonzero(np.diff(np.concatenate(([False], mask, [False])).astype(np.int8)))
    return [(int(first), int(last)) for first, last in zip(edge[::2], edge[1::2], strict=True)]


def rules_from(settings: Mapping[str, float]) -> Rules:
    """The rules with a study's changes; changes of a rule that there is no more have no effect."""
    return Rules(**{name: value for name, value in settings.items() if name in vars(Rules())})  # type: ignore[arg-type]
