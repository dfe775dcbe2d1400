"""The decision on a benchmark, from arrays of seconds: it is slower than its reference, or not, or
the machine is too noisy.

There are two statistics of samples that were taken in turn. The *least ratio* compares the shortest
sample of each side: the time of the work if nothing disturbs it. The *paired median* compares the
samples of each round, over the quietest quarter of the rounds: a disturbance that both share
cancels out. Under load each may be wrong, but seldom both in the same direction. So an alarm needs
both. The reference is timed twice, the second time in the role of ours: if both statistics stray
there, the machine is noisy, and only a ratio above the limits by more than the reference strays
from itself is an alarm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipbench.schema import Term

Array = NDArray[np.float64]

AGREEMENT = 0.03  # the reference agrees with itself if its ratio to itself is this close to 1
QUIETEST = 0.25  # the share of the rounds that the paired median is taken over


class Decision(Term):
    """What one measurement says of a benchmark."""

    PASS = "pass", "no slower than its reference, within the limits"
    ALARM = "alarm", "slower than the limits allow, until a fresh process says otherwise"
    INCONCLUSIVE = "inconclusive", "the machine was too noisy to tell"


PASS, ALARM, INCONCLUSIVE = Decision


@dataclass(frozen=True)
class Samples:
    """Seconds of the same number of calls, one value a round: ours, the reference, and the
    reference once more.
    """

    ours: Array
    reference: Array
    again: Array

    def __post_init__(self) -> None:
        sizes = {len(self.ours), len(self.reference), len(self.again)}
        if len(sizes) > 1 or 0 in sizes:
            raise ValueError(f"rounds need one sample of each, not {sorted(sizes)}")

    @property
    def ratios(self) -> tuple[float, float]:
        """Ours over the reference: the least ratio and the paired median."""
        return compared(self.ours, self.reference)

    @property
    def ratios_again(self) -> tuple[float, float]:
        """The same for the reference over itself."""
        return compared(self.again, self.reference)

    @property
    def agrees(self) -> bool:
        """Whether the reference agrees with itself, by one statistic at least: an alarm needs
        both to stray.
        """
        return min(abs(ratio - 1) for ratio in self.ratios_again) <= AGREEMENT

    def settled(self, min_ratio: float, paired_median: float) -> bool:
        """Whether no more rounds are needed: the reference agrees with itself by both statistics,
        and they agree on ours.

        :param min_ratio: the least ratio above which there is an alarm; ``paired_median`` likewise.
        """
        least, paired = self.ratios
        return max(abs(ratio - 1) for ratio in self.ratios_again) <= AGREEMENT and (
            least > min_ratio
        ) == (paired > paired_median)


def compared(ours: Array, reference: Array) -> tuple[float, float]:
    """The least ratio, and the paired median over the quietest quarter of the rounds, by both
    samples' lengths.
    """
    disturbed = ours / ours.min() + reference / reference.min()
    quiet = np.argsort(disturbed, kind="stable")[: max(1, round(QUIETEST * len(ours)))]
    return float(ours.min() / reference.min()), float(np.median(ours[quiet] / reference[quiet]))


def decide(samples: Samples, min_ratio: float, paired_median: float) -> Decision:
    """The decision that the samples lead to.

    :param min_ratio: the least ratio above which there is an alarm; ``paired_median`` likewise.
    """
    stray = 1.0 if samples.agrees else max(max(ratio, 1 / ratio) for ratio in samples.ratios_again)
    least, paired = samples.ratios
    if least > min_ratio * stray and paired > paired_median * stray:
        return ALARM
    return PASS if samples.agrees else INCONCLUSIVE


def confirmed(first: Decision, others: list[Decision]) -> Decision:
    """The decision after a measurement and those that repeat it: an alarm stands if every one of
    them alarms.
    """
    if first != ALARM or PASS in others:
        return INCONCLUSIVE if first == INCONCLUSIVE else PASS
    return INCONCLUSIVE if INCONCLUSIVE in others else ALARM
