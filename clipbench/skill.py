"""What became of a training run, from what its model could do at the evaluations: learned, stalled
or collapsed.

The training loss of a batch decides nothing here: a model may be confident and wrong about a few
examples, so that its loss is far above that of a constant prediction, and right about nearly all.
*Skill* is the share of the way from the zero point to the target that the graded metric has gone:

    skill(t) = (m(t) − m₀) / (m* − m₀)

m₀ is the better of two values: what the best constant prediction has (`chance`), and what the
untrained model has. m* is the metric of a model that just meets the workload's target. A function
has no constant prediction: its m₀ is the start.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clipbench.events import Evaluation, Event
from clipbench.schema import Kind, Outcome

LOSS = "loss"  # the name of the loss in the table of evaluations
SMALLEST = 1e-16  # a gap to an optimum below it is none: so says the metric of functions

LEAST = 0.1  # of the way to the target: less is not there
ERRORS = 3.0  # standard errors of the validation split: a gain of fewer may be luck
RUNNING = 2  # evaluations in a row that must be there, for a run to have been there
LAST = 3  # evaluations, whose median is the end
SPANS = 20  # of the steps, where evaluations say nothing


@dataclass(frozen=True)
class Scale:
    """What the values of one metric are measured against.

    :param metric: its name in the table of evaluations.
    :param chance: its value for the best constant prediction; None if there is none, as for a
        function.
    :param target: its value for a model that just meets the workload's target. None if it is not
        known: the least loss there can be, and of a function one decade below its start.
    :param optimum: of a function whose infimum is known: its gap to it counts, in decades.
    """

    metric: str
    chance: float | None
    target: float | None
    higher_is_better: bool = True
    optimum: float | None = None

    @classmethod
    def of(cls, about: Mapping[str, Any]) -> Scale | None:
        """The scale of a workload, from its entry in the page of components; None if its loss is
        unbounded below.

        A workload with data is judged by its metric if it says what a constant prediction has of
        it, `chance`, and what a model that meets its target has, `target_metric`; else by its loss.
        """
        if about.get("unbounded"):
            return None
        reference, optimum, target = (
            about.get("reference_loss"),
            about.get("optimum"),
            about.get("target"),
        )
        if reference is None:
            return cls(LOSS, None, target, higher_is_better=False, optimum=optimum)
        if about.get("chance") is not None and about.get("target_metric") is not None:
            return cls(
                about["metric"], about["chance"], about["target_metric"], about["higher_is_better"]
            )
        return cls(
            LOSS, reference, (optimum or 0.0) if target is None else target, higher_is_better=False
        )

    def skill(self, values: Sequence[float]) -> np.ndarray:
        """The skill at each evaluation, that of the untrained model first: 0 at m₀, 1 at the
        target, and beyond either.

        −∞ if a value is not finite; NaN everywhere if the run began at its target or beyond, for
        then there is no way to go.
        """
        ahead, zero, target = self._ends(values)
        return (ahead - zero) / (target - zero) if target > zero else np.full(len(ahead), math.nan)

    def there(self, values: Sequence[float], errors: Sequence[float]) -> np.ndarray:
        """Whether the model is there, at each evaluation: a tenth of the way to the target, and
        further than luck explains.

        A run that began beyond its target is there while it stays beyond.

        :param errors: of each value the standard error on the validation split; 0 for a function.
        """
        ahead, zero, target = self._ends(values)
        if zero >= target:
            return ahead >= target
        return (self.skill(values) >= LEAST) & (ahead - zero >= ERRORS * np.asarray(errors))

    def _ends(self, values: Sequence[float]) -> tuple[np.ndarray, float, float]:
        """The values, of which higher is better and what is not finite is worse than any; m₀;
        and the target.
        """
        ahead = self._ahead(values)
        zero = max(
            [float(ahead[0]), *(self._ahead([self.chance]) if self.chance is not None else [])]
        )
        if self.target is not None:
            return ahead, zero, float(self._ahead([self.target])[0])
        return ahead, zero, zero + (1.0 if self.optimum is not None else max(1.0, abs(zero)))

    def _ahead(self, values: Sequence[float]) -> np.ndarray:
        raw = np.asarray(values, dtype=float)
        if self.optimum is not None:
            with np.errstate(invalid="ignore"):
                raw = np.log10(np.maximum(raw - self.optimum, SMALLEST))
        return np.where(np.isfinite(raw), raw if self.higher_is_better else -raw, -np.inf)


@dataclass(frozen=True)
class Judged:
    """What became of a run that did not diverge, and the event of its evaluations."""

    outcome: Outcome
    events: list[Event]


def judge(
    about: Mapping[str, Any],
    evaluations: Sequence[Evaluation],
    training: Sequence[float] | np.ndarray = (),
) -> Judged:
    """What became of a run, by its evaluations on the validation split in the order of their steps.

    If the untrained model has no finite value, then the data or the metric are at fault and not the
    training, whose loss decides.

    :param about: its workload, as the page of components tells of it.
    :param training: the loss of every step.
    """
    scale = Scale.of(about)
    if scale is None:
        return Judged(Outcome.LEARNED, [])
    validation = [one for one in evaluations if one.split == "validation"]
    graded = [one for one in validation if one.metric == scale.metric]
    values, errors = (
        [one.value for one in graded],
        [math.inf if one.error is None else one.error for one in graded],
    )
    if not (values and math.isfinite(values[0])):
        by_loss = Scale.of({**about, "chance": None})
        return Judged(
            outcome(by_loss, *_spans(training)) if by_loss and len(training) else Outcome.STALLED,
            [],
        )
    losses = {one.step: one.value for one in validation if one.metric == LOSS}
    return Judged(
        outcome(scale, values, errors),
        _overconfident(scale, graded, errors, losses, about.get("reference_loss")),
    )


def _spans(training: Sequence[float] | np.ndarray) -> tuple[list[float], list[float]]:
    """The first loss, then the median of each of some equal spans of steps, and their standard
    errors.
    """
    spans = np.array_split(np.asarray(training, dtype=float), min(SPANS, len(training)))
    with np.errstate(invalid="ignore", over="ignore"):  # a curve may end with an infinite loss
        errors = [float(span.std() / math.sqrt(len(span))) for span in spans]
    return [float(training[0]), *(float(np.median(span)) for span in spans)], [0.0, *errors]


def _overconfident(
    scale: Scale,
    graded: Sequence[Evaluation],
    errors: Sequence[float],
    losses: Mapping[int, float],
    reference: float | None,
) -> list[Event]:
    if reference is None or scale.metric == LOSS:
        return []
    there = scale.there([one.value for one in graded], errors)
    for one, arrived in zip(graded, there, strict=True):
        if arrived and losses.get(one.step, -math.inf) > reference:
            words = (
                f"a validation loss above {reference:.6g}, a constant prediction's, with "
                f"{one.metric} at {one.value:.6g}"
            )
            return [Event(one.step, Kind.OVERCONFIDENT, losses[one.step], words)]
    return []


def outcome(scale: Scale, values: Sequence[float], errors: Sequence[float]) -> Outcome:
    """What became of a run that did not diverge.

    :param values: the graded metric on the validation split at each evaluation, that of the
        untrained model first: alone it is of a run that was never evaluated again.
    :param errors: their standard errors.
    """
    if len(values) < 2:
        return Outcome.STALLED
    end = [_middle(values[1:], scale.higher_is_better), float(np.median(errors[1:][-LAST:]))]
    if scale.there([values[0], end[0]], [errors[0], end[1]])[1]:
        return Outcome.LEARNED
    there = scale.there(values, errors)
    running = [there[at : at + RUNNING].all() for at in range(1, len(there) - RUNNING + 1)]
    return Outcome.COLLAPSED if there[0] or any(running) else Outcome.STALLED


def _middle(values: Sequence[float], higher_is_better: bool) -> float:
    """The median of the last values; what is not finite is worse than any."""
    worst = -math.inf if higher_is_better else math.inf
    return float(np.median([value if math.isfinite(value) else worst for value in values[-LAST:]]))
