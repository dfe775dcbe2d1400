"""What a family of comparisons says, each against its margin: whether a difference is there, and
whether it matters.

A comparison asks three questions of one interval: does it exclude zero, does it lie inside the
margin, does it lie beyond. Whatever the true difference is, of the first two at most one answer
"yes" is wrong, so that Holm's steps need to count comparisons and not questions (Shaffer 1986).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from clipbench.schema import Verdict

LEVEL = 0.05  # the chance that a family says anything wrong
POWER = 0.8  # with which a planned number of seeds decides
MANY = 100_000  # seeds: nobody trains so often


class Comparison(NamedTuple):
    """A paired difference (positive is better), its standard error, the number of seeds, and the
    margin inside which it does not matter; NaN if none is known.
    """

    difference: float
    error: float
    seeds: int
    margin: float


def decide(family: Sequence[Comparison], level: float = LEVEL) -> list[Verdict]:
    """A verdict for each comparison, wrong about any of them with a probability of ``level`` at
    most.

    A comparison without an error (no spread, or too few seeds) is undecided, and still counts.
    """
    asked = [_p_values(one) for one in family]
    order = sorted(
        ((p, which, question) for which, ps in enumerate(asked) for question, p in enumerate(ps)),
        key=lambda item: item[0],
    )
    open_questions = [len(ps) for ps in asked]
    said: list[set[int]] = [set() for _ in family]
    factor = [float(len(family))] * len(family)
    for p, which, question in order:
        counted = sum(left > 0 for left in open_questions)
        if not p * counted <= level:
            break
        said[which].add(question)
        open_questions[which] -= 1
        factor[which] = counted
    return [
        _verdict(one, answers, level / count)
        for one, answers, count in zip(family, said, factor, strict=True)
    ]


DIFFERENT, INSIDE = range(2)


def _p_values(one: Comparison) -> tuple[float, float]:
    """Two-sided p of "no difference", and of "a difference beyond the margin, either way"."""
    if not one.error > 0:
        return math.inf, math.inf
    different = _two_sided(abs(one.difference), one)
    inside = _two_sided(one.margin - abs(one.difference), one)
    return different, math.inf if math.isnan(inside) else inside


def _two_sided(distance: float, one: Comparison) -> float:
    """p of a bound of the interval that lies ``distance`` from the difference; above 1 if the
    difference is on the wrong side of it.
    """
    return 2 * float(special.stdtr(one.seeds - 1, -distance / one.error))


def _verdict(one: Comparison, answers: set[int], level: float) -> Verdict:
    if INSIDE in answers:
        return Verdict.SAME
    if DIFFERENT not in answers:
        return Verdict.UNDECIDED
    beyond = _two_sided(abs(one.difference) - one.margin, one) <= level
    if one.difference > 0:
        return Verdict.BETTER if beyond else Verdict.PERHAPS_BETTER
    return Verdict.WORSE if beyond else Verdict.PERHAPS_WORSE


def smallest_margin(one: Comparison, level: float) -> float:
    """The smallest margin at which "no difference that matters" would hold: the bound of its
    interval that is further from zero. NaN without an error.
    """
    if not one.error > 0:
        return math.nan
    return abs(one.difference) + float(special.stdtrit(one.seeds - 1, 1 - level / 2)) * one.error


def seeds_needed(one: Comparison, level: float) -> float:
    r"""The number of seeds that would decide, with a power of 80 % at least, if there is no
    difference at all, or one of twice the margin: never at the difference that was seen.

    .. math:: n \ge s^2 (t_{1 - \alpha / 2} + t_{.9})^2 / \delta^2

    Both planned differences lie δ from what they must be told from; .9, for of no difference two
    bounds must be told from it, with a chance of .1 each of failing. NaN without an error or a
    margin; ∞ if it is more than anybody trains.
    """
    if not (one.error > 0 and one.margin > 0):
        return math.nan
    ratio = one.seeds * (one.error / one.margin) ** 2
    numbers = np.unique(np.geomspace(3, MANY, 2000).round().astype(int))
    quantiles = special.stdtrit(numbers - 1, 1 - level / 2) + special.stdtrit(
        numbers - 1, (1 + POWER) / 2
    )
    enough = numbers >= ratio * quantiles**2
    return float(numbers[np.argmax(enough)]) if enough.any() else math.inf
