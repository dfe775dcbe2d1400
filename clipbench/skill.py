"""What became of a training run, from what its model could do at the evaluations: learned, stalled or collapsed.

The training loss of a batch decides nothing here: a model may be confident and wrong about a few examples, so that its loss is far
above that of a constant prediction, and right about nearly all. *Skill* is the share of the way from the zero point to the target
that the graded metric has gone:

    skill(t) = (m(t) − m₀) / (m* − m₀)

m₀ is the better of two values: what the best constant prediction has (`chance`), and what the untrained model has. m* is the
metric of a model that just meets the workload's target. A function has no constant prediction: its m₀ is the start.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clipbench.schema import Outcome

LEAST = 0.1  # of the way to the target: less is not there
ERRORS = 3.0  # standard errors of the validation split: a gain of fewer may be luck
RUNNING = 2  # evaluations in a row that must be there, for a run to have been there
LAST = 3  # evaluations, whose median is the end


@dataclass(frozen=True)
class Scale:
    """What values of the graded metric are measured against.

    :param chance: the metric of the best constant prediction; None if there is none, as for a function.
    :param target: the metric of a model that just meets the workload's target.
    :param higher_is_better: the metric's direction.
    """

    chance: float | None
    target: float
    higher_is_better: bool = True

    def skill(self, values: Sequence[float]) -> np.ndarray:
        """The skill at each evaluation, that of the untrained model first: 0 at m₀, 1 at the target, and beyond either.

        −∞ if a value is not finite; NaN everywhere if the run began at its target or beyond, for then there is no way to go.
        """
        ahead, target = self._ahead(values), float(self._ahead([self.target])[0])
        zero = self._zero(ahead)
        return (ahead - zero) / (target - zero) if target > zero else np.full(len(ahead), math.nan)

    def there(self, values: Sequence[float], errors: Sequence[float]) -> np.ndarray:
        """Whether the model is there, at each evaluation: a tenth of the way to the target, and further than luck explains.

        A run that began beyond its target is there while it stays beyond.

        :param errors: of each value the standard error on the validation split; 0 for a function.
        """
        ahead, target = self._ahead(values), float(self._ahead([self.target])[0])
        zero = self._zero(ahead)
        if zero >= target:
            return ahead >= target
        return (self.skill(values) >= LEAST) & (ahead - zero >= ERRORS * np.asarray(errors))

    def _zero(self, ahead: np.ndarray) -> float:
        known = [] if self.chance is None else [float(self._ahead([self.chance])[0])]
        return max([*known, float(ahead[0])])

    def _ahead(self, values: Sequence[float]) -> np.ndarray:
        """Values of which higher is better; what is not finite is worse than any."""
        found = np.asarray(values, dtype=float) * (1 if self.higher_is_better else -1)
        return np.where(np.isfinite(found), found, -np.inf)


def outcome(scale: Scale, values: Sequence[float], errors: Sequence[float]) -> Outcome:
    """What became of a run that did not diverge.

    :param values: the graded metric on the validation split at each evaluation, that of the untrained model first.
    :param errors: their standard errors.
    """
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
