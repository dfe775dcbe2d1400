"""Events, status and outcome of a run, derived from its recorded curve by the same functions for every engine."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from clipbench.measures import GRAD_NORM, LOSS, UPDATE_NORM
from clipbench.schema import NONFINITE, Kind, Outcome, Status

SILENT = np.errstate(over="ignore", invalid="ignore")  # a loss near the largest number may overflow its own multiples


@dataclass(frozen=True)
class Rules:
    """The event thresholds, settings of a study. Losses are measured from the optimum where it is known, from zero elsewhere."""

    blow_up: float = 10.0
    """A run blows up above this multiple of max(first loss, reference loss) …"""
    blow_up_steps: int = 10
    """… for this many steps running."""
    spike: float = 5.0
    """A spike is above this multiple of the median of the steps before, and above it by more than the reference loss."""
    spike_window: int = 50
    """Steps that median looks back on."""
    tail: float = 0.05
    """Share of the steps whose median loss says how a run ended."""
    left_below: float = 0.9
    """A loss below this multiple of the reference has learned something …"""
    left_above: float = 1.2
    """… and one above this multiple has left it the other way: back at the reference after either is a collapse."""


@dataclass(frozen=True)
class Event:
    """One event: the step it began, its kind, the value the rule looked at, and the rule in words."""

    step: int
    kind: str
    value: float
    detail: str


@dataclass(frozen=True)
class Verdict:
    """A run's status and outcome, the event that spoiled it and that event's first step."""

    status: str
    outcome: str
    reason: str | None = None
    diverged_at: int | None = None


ORDER = [*Kind]  # of the events of one step
STATIONARY = 1e-3  # of a gradient's norm: the ε of the theory's ε-stationary points, as the published step counts take it


def peak_ratio(rows: np.ndarray, optimum: float | None) -> float | None:
    """The largest loss of the last half of a curve (steps × measures) over its median there, both above ``optimum``; or None."""
    half = rows[len(rows) // 2 :, LOSS] - (optimum or 0.0)
    middle = np.median(half) if len(half) and np.isfinite(half).all() else 0.0
    return float(half.max() / middle) if middle > 0 else None


def stationary_at(rows: np.ndarray) -> int | None:
    """The first step of a curve (steps × measures) whose raw gradient is no longer than `STATIONARY`; None if none is."""
    short = rows[:, GRAD_NORM] <= STATIONARY
    return int(np.argmax(short)) if short.any() else None


def ends(rows: np.ndarray) -> np.ndarray:
    """Which steps of a curve end it: those with a loss, gradient or parameter that is not finite (``rows``: steps × measures)."""
    return ~np.isfinite(rows[:, LOSS]) | np.isnan(rows[:, GRAD_NORM]) | np.isnan(rows[:, UPDATE_NORM])


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

    :param rows: steps × measures, in the order of `measures.COLUMNS`; a step that ends the curve is its last.
    :param reference: the loss of the best constant prediction; None means the first loss (an analytic function).
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


def evaluated(evaluations: Sequence[tuple[int, str, str, float]]) -> list[Event]:
    """The events of a run's evaluations, each ``(updates, split, metric, value)``: of every split and metric the first not finite.

    They end nothing: what is wrong may be the data that are looked at, or the metric.
    """
    events: dict[tuple[str, str], Event] = {}
    for updates, split, metric, value in evaluations:
        if not math.isfinite(value):
            event = Event(updates, Kind.NONFINITE_EVALUATION, value, f"{metric} on the {split} split is not finite")
            events.setdefault((split, metric), event)
    return ordered(events.values())


def ordered(events: Iterable[Event]) -> list[Event]:
    """Events by their steps; those of one step as `schema.Kind` has them."""
    return sorted(events, key=lambda event: (event.step, ORDER.index(event.kind)))


@SILENT
def judge(
    rows: np.ndarray,
    events: Sequence[Event],
    reference: float | None,
    optimum: float | None = None,
    unbounded: bool = False,
    validation_loss: float | None = None,
    rules: Rules | None = None,
) -> Verdict:
    """Status and outcome of a run that was not cut short.

    :param validation_loss: of the last evaluation, if there was one. One that is not finite says nothing of the training, which
        is then judged alone.
    """
    rules = rules or Rules()
    kinds = {event.kind: event for event in reversed(events)}  # the first of each kind
    broken = [kinds[kind] for kind in NONFINITE if kind in kinds]
    if broken:
        first = min(broken, key=lambda event: event.step)
        return Verdict(Status.DIVERGED, Outcome.DIVERGED, first.kind, first.step)
    if Kind.BLOW_UP in kinds and Kind.RECOVERED not in kinds:
        return Verdict(Status.DIVERGED, Outcome.DIVERGED, Kind.BLOW_UP, kinds[Kind.BLOW_UP].step)
    if unbounded:
        return Verdict(Status.COMPLETED, Outcome.LEARNED)
    if not len(rows):
        return Verdict(Status.COMPLETED, Outcome.STALLED)
    level, base = _level(rows, reference, optimum)
    last = -math.inf if validation_loss is None or not math.isfinite(validation_loss) else validation_loss - (optimum or 0.0)
    if _tail(level, rules) < base and last < base:
        return Verdict(Status.COMPLETED, Outcome.LEARNED)
    left = np.any((level < rules.left_below * base) | (level > rules.left_above * base))
    return Verdict(Status.COMPLETED, Outcome.COLLAPSED if left else Outcome.STALLED)


def _level(rows: np.ndarray, reference: float | None, optimum: float | None) -> tuple[np.ndarray, float]:
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
            noun = kind.removeprefix("nonfinite_").replace("grad", "gradient").replace("param", "parameter")
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
    detail = f"the gradient is not zero and its squares are, in {dtype}: a norm taken of them is zero or too short"
    low = (norms > 0) & (norms < math.sqrt(np.finfo(dtype).tiny))
    return [Event(step, Kind.NORM_UNDERFLOW, float(norms[step]), detail) for step, _ in _excursions(low)]


def _blow_ups(level: np.ndarray, base: float, rules: Rules) -> list[Event]:
    line = rules.blow_up * max(float(level[0]), base)
    if not math.isfinite(line) or line <= 0:
        return []
    long = [(first, last) for first, last in _excursions(level > line) if last - first >= rules.blow_up_steps]
    if not long:
        return []
    words = (
        f"above {line:.6g}, {rules.blow_up:g} times the larger of first and reference loss, for {rules.blow_up_steps} steps running"
    )
    events = [Event(first, Kind.BLOW_UP, float(level[first]), words) for first, _ in long]
    end = long[-1][1]
    if end < len(level) and _tail(level, rules) < line:
        events.append(Event(end, Kind.RECOVERED, float(level[end]), f"back below {line:.6g}, and there at the end"))
    return events


def _spikes(level: np.ndarray, base: float, rules: Rules) -> list[Event]:
    window = rules.spike_window
    if len(level) <= window or not base > 0:
        return []
    before = np.median(np.lib.stride_tricks.sliding_window_view(level, window)[:-1], axis=1)
    now = level[window:]
    high = np.isfinite(now) & (now > rules.spike * before) & (now - before > base)
    return [
        Event(
            window + first,
            Kind.SPIKE,
            float(now[first]),
            f"above {rules.spike:g} times the median of the {window} steps before ({before[first]:.6g}) by more than the reference",
        )
        for first, _ in _excursions(high)
    ]


def _excursions(mask: np.ndarray) -> list[tuple[int, int]]:
    """Half-open spans of consecutive True steps."""
    edge = np.flatnonzero(np.diff(np.concatenate(([False], mask, [False])).astype(np.int8)))
    return [(int(first), int(last)) for first, last in zip(edge[::2], edge[1::2], strict=True)]


def rules_from(settings: Mapping[str, float]) -> Rules:
    """The rules with a study's changes."""
    return Rules(**settings)  # type: ignore[arg-type]
