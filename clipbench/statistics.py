"""Array → array: intervals, paired differences, tests. Infinities are outcomes here (a run that
diverged), never dropped.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import scipy  # its stats come where they are used first: every worker would wait half a second
from numpy.typing import ArrayLike, NDArray

CONFIDENCE = 0.95
ROUNDING = 1e-9  # a spread below this share of the values is rounding
Array = NDArray[np.float64]


class Interval(NamedTuple):
    """An estimate between its bounds; the bounds are NaN if too few values allow none."""

    estimate: float
    low: float
    high: float

    @property
    def bounded(self) -> bool:
        """Whether there are bounds at all (an infinite one counts)."""
        return not (np.isnan(self.low) or np.isnan(self.high))

    @property
    def sign(self) -> int:
        """1 or −1 if the whole interval lies on that side of zero, else 0."""
        return int(self.bounded) * (int(self.low > 0) - int(self.high < 0))


NOTHING = Interval(np.nan, np.nan, np.nan)


def alike(values: ArrayLike) -> bool:
    """Whether finite values are all the same but for rounding: they show no spread from which to
    infer anything.
    """
    sample = np.asarray(values, dtype=float)
    return bool(sample.size and np.ptp(sample) <= ROUNDING * np.abs(sample).max())


def mean_interval(values: ArrayLike, confidence: float = CONFIDENCE) -> Interval:
    """The mean with Student's t interval; no bounds if the values are all alike, for width zero
    would be certainty.

    :raises ValueError: a value is not finite; such samples have a median, not a mean.
    """
    sample = np.asarray(values, dtype=float)
    if not np.isfinite(sample).all():
        raise ValueError("a mean needs finite values; use median_interval where a run diverged")
    if sample.size == 0:
        return NOTHING
    mean = float(sample.mean())
    if alike(sample):
        return Interval(mean, np.nan, np.nan)
    half = float(
        scipy.stats.t.ppf((1 + confidence) / 2, sample.size - 1)
        * sample.std(ddof=1)
        / np.sqrt(sample.size)
    )
    return Interval(mean, mean - half, mean + half)


def median_interval(values: ArrayLike, confidence: float = CONFIDENCE) -> Interval:
    """The median with the order-statistic interval, which assumes no distribution; ±∞ take part
    like any other value.

    Six values are the fewest for which a 95 % interval exists.
    """
    sample = np.sort(np.asarray(values, dtype=float))
    if np.isnan(sample).any():
        raise ValueError("a median needs numbers or infinities; NaN has no place in an order")
    if sample.size == 0:
        return NOTHING
    rank = _rank(sample.size, confidence)
    if rank == 0:
        return Interval(_median(sample), np.nan, np.nan)
    return Interval(_median(sample), float(sample[rank - 1]), float(sample[-rank]))


@cache  # a report asks for thousands of medians, of a few sizes
def _rank(size: int, confidence: float) -> int:
    """How many values lie below the interval of a median of ``size``, and as many above it."""
    return int(np.sum(scipy.stats.binom.cdf(np.arange(size), size, 0.5) <= (1 - confidence) / 2))


def _median(ordered: Array) -> float:
    low, high = float(ordered[(ordered.size - 1) // 2]), float(ordered[ordered.size // 2])
    return low if low == high else (low + high) / 2  # of −∞ and +∞: NaN, for that middle is unknown


def share_interval(successes: float, trials: int, confidence: float = CONFIDENCE) -> Interval:
    """A share with Wilson's score interval: 0 of 10 still allows 28 %. An expected number of
    successes need not be whole.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} of {trials} is no share")
    if trials == 0:
        return NOTHING
    z = float(scipy.stats.norm.ppf((1 + confidence) / 2))
    share, z2 = successes / trials, z * z
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = z / (1 + z2 / trials) * np.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    return Interval(
        share,
        0.0 if successes == 0 else float(centre - half),
        1.0 if successes == trials else float(centre + half),
    )


def share_difference(
    first: int, second: int, trials: int, confidence: float = CONFIDENCE
) -> Interval:
    """Share of ``first`` minus share of ``second``, with Newcombe's score interval.

    The pairing is not used, which errs on the wide side.
    """
    a, b = share_interval(first, trials, confidence), share_interval(second, trials, confidence)
    if trials == 0:
        return NOTHING
    difference = a.estimate - b.estimate
    low = difference - np.hypot(a.estimate - a.low, b.high - b.estimate)
    high = difference + np.hypot(a.high - a.estimate, b.estimate - b.low)
    return Interval(difference, float(low), float(high))


def differences(first: ArrayLike, second: ArrayLike) -> Array:
    """``first − second``, pair by pair; two runs with the same infinite outcome are a tie."""
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if a.shape != b.shape:
        raise ValueError(f"pairs need equal lengths, not {a.shape} and {b.shape}")
    with np.errstate(invalid="ignore"):
        return np.where(a == b, 0.0, a - b)


def paired_difference(
    first: ArrayLike, second: ArrayLike, confidence: float = CONFIDENCE
) -> Interval:
    """Mean paired difference with its t interval.

    Where a pair holds an infinite outcome, the median with its order-statistic interval.
    """
    gaps = differences(first, second)
    return (
        mean_interval(gaps, confidence)
        if np.isfinite(gaps).all()
        else median_interval(gaps, confidence)
    )


def paired_p(gaps: ArrayLike) -> float:
    """Two-sided p of "no difference": the paired t test, or Wilcoxon's signed ranks where a
    difference is infinite.

    NaN (not testable) with fewer than two pairs, or if all differences are alike; 1 if every
    difference is zero.
    """
    sample = np.asarray(gaps, dtype=float)
    if sample.size < 2:
        return np.nan
    if not sample.any():
        return 1.0
    if np.isfinite(sample).all():
        if alike(sample):
            return np.nan
        return float(scipy.stats.ttest_1samp(sample, 0.0).pvalue)
    return signed_rank_p(sample)


def signed_rank_p(gaps: ArrayLike) -> float:
    """Two-sided p of "no difference" by Wilcoxon's signed ranks, with ties, exactly: over all sign
    flips of the pairs that differ.

    Differences all alike are as good as any others, and one large one counts as its rank: twelve of
    one sign give 2/2¹².
    """
    sample = np.asarray(gaps, dtype=float)
    moved = sample[sample != 0.0]
    signs, ranks = np.sign(moved), scipy.stats.rankdata(np.abs(moved))
    doubled = np.rint(2 * ranks).astype(int)  # ranks are halves
    ways = np.zeros(int(doubled.sum()) + 1)
    ways[0] = 1.0
    for rank in doubled:
        shifted = np.zeros_like(ways)
        shifted[rank:] = ways[: ways.size - rank]
        ways = (ways + shifted) / 2
    positive = int(doubled[signs > 0].sum())
    return float(min(1.0, 2 * min(ways[: positive + 1].sum(), ways[positive:].sum())))


def discordant_p(
    first: Sequence[bool] | NDArray[np.bool_], second: Sequence[bool] | NDArray[np.bool_]
) -> float:
    """McNemar's exact two-sided p for paired successes: only the pairs that disagree say
    anything.
    """
    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    gained, lost = int((a & ~b).sum()), int((~a & b).sum())
    if a.size < 2:
        return np.nan
    return 1.0 if gained + lost == 0 else float(scipy.stats.binomtest(gained, gained + lost).pvalue)


def holm(p_values: ArrayLike) -> Array:
    """Holm's step-down correction over one declared family; NaN (not testable) stays NaN and
    does not count.
    """
    p = np.asarray(p_values, dtype=float)
    corrected = np.full(p.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    if order.size:
        corrected[order] = np.minimum(
            1.0, np.maximum.accumulate(p[order] * np.arange(order.size, 0, -1))
        )
    return corrected


def block_medians(values: ArrayLike, blocks: int) -> tuple[Array, Array]:
    """``(positions, medians)`` of at most ``blocks`` stretches of a curve; a stretch's position is
    its middle.

    ±∞ take part, NaN counts as +∞.
    """
    curve = np.asarray(values, dtype=float)
    curve = np.where(np.isnan(curve), np.inf, curve)
    if curve.size <= blocks:
        return np.arange(curve.size, dtype=float), curve
    cuts = np.linspace(0, curve.size, blocks + 1).round().astype(int)
    medians = [_median(np.sort(curve[start:end])) for start, end in itertools.pairwise(cuts)]
    return (cuts[:-1] + cuts[1:] - 1) / 2, np.asarray(medians)
