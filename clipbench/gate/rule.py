"""The rule of the speed gate, on arrays of seconds: when a benchmark is slower than its reference, and when nobody can tell.

Two statistics of samples that were taken in turn. The *least ratio* compares the shortest sample of each side: what the work takes
when nothing disturbs it. The *paired median* compares the samples of each round: what a disturbance shared by both leaves alone.
Under load either goes astray by itself, and seldom both to the same side. So an alarm takes both; and the reference stands in for
our side as well, in an arm of its own: where that one seems changed, the machine speaks, and not the code.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

AGREEMENT = 0.03  # within which the reference must find itself
PASS, ALARM, INCONCLUSIVE = "pass", "alarm", "inconclusive"


@dataclass(frozen=True)
class Samples:
    """Seconds of the same number of calls, one value a round: ours, the reference, and the reference once more."""

    ours: Array
    reference: Array
    again: Array

    def __post_init__(self) -> None:
        sizes = {len(self.ours), len(self.reference), len(self.again)}
        if len(sizes) > 1 or 0 in sizes:
            raise ValueError(f"rounds need one sample of each, not {sorted(sizes)}")

    @property
    def least(self) -> float:
        """Our shortest sample over the reference's."""
        return float(self.ours.min() / self.reference.min())

    @property
    def paired(self) -> float:
        """The median over the rounds of ours / reference."""
        return float(np.median(self.ours / self.reference))

    @property
    def least_again(self) -> float:
        """The reference's shortest sample in its second arm over that in its first."""
        return float(self.again.min() / self.reference.min())

    @property
    def agrees(self) -> bool:
        """Whether the reference finds itself."""
        return abs(self.least_again - 1) <= AGREEMENT


def judge(samples: Samples, ratio: float, min_ratio: float, paired_median: float) -> str:
    """``pass``, ``alarm`` or ``inconclusive``.

    :param ratio: ours / reference as it is expected to be.
    :param min_ratio: what the least ratio may exceed it by, as a factor.
    :param paired_median: what the paired median may exceed it by, as a factor.
    """
    if not samples.agrees:
        return INCONCLUSIVE
    return ALARM if samples.least > min_ratio * ratio and samples.paired > paired_median * ratio else PASS


def confirmed(first: str, others: list[str]) -> str:
    """The verdict of a measurement and of those that repeat it: an alarm stands where every one of them alarms."""
    if first != ALARM or PASS in others:
        return INCONCLUSIVE if first == INCONCLUSIVE else PASS
    return INCONCLUSIVE if INCONCLUSIVE in others else ALARM
