"""Array → array: what somebody reaches who tunes a learning rate on a few seeds, and how sure one
can be of it.

Nothing here is drawn at random: all choices that a few of the seeds could lead to are made.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from clipbench.statistics import CONFIDENCE, Interval, alike

TUNED_ON = 3  # seeds on which a setting is chosen
SETS = 2**17  # of seeds, looked at at once
TIE = 1e-12  # means of the same values in another order differ by less
Array = NDArray[np.float64]


class Tuned(NamedTuple):
    """What tuning reaches: the ``estimate``, what it is ``without`` each seed in turn, and the
    share of the choices that fall on each setting.
    """

    estimate: float
    without: Array
    chosen: Array


def expected(validation: Array, test: Array, tuned_on: int = TUNED_ON) -> Tuned:
    r"""The expected result of somebody who tunes on ``tuned_on`` seeds and trains once more on
    another: the mean over all sets of so many seeds, and over all seeds outside the set.

    .. math:: \theta = \operatorname{mean}_{T} \operatorname{mean}_{s \notin T}
              \text{test}_s(\arg\max_c \textstyle\sum_{t \in T} \text{validation}_t(c))

    Of settings that tie the mean counts. With no more seeds than ``tuned_on``, one fewer than
    there are choose; a single seed chooses and is judged, for there is nothing else.

    :param validation: settings × seeds, higher is better.
    :param test: the same, of what is reported.
    """
    seeds = validation.shape[1]
    if seeds == 1:
        share = _shares(validation)
        return Tuned(float((share @ test)[0, 0]), np.empty(0), share[0])
    size = min(tuned_on, seeds - 1)
    everywhere = test.sum(axis=1)
    if len(test) == 1:  # nothing to choose: every seed is outside as many sets as any other
        without = (everywhere - test[0]) / (seeds - 1) if seeds - 1 > size else np.empty(0)
        return Tuned(float(everywhere[0] / seeds), without, np.ones(1))
    # over all sets, and over those that have each seed: how many, what they reach, what they choose
    total, chosen = 0.0, np.zeros(len(test))
    having, total_having, chosen_having = (
        np.zeros(seeds),
        np.zeros(seeds),
        np.zeros((len(test), seeds)),
    )
    for sets in _sets(seeds, size):
        share = _shares(validation[:, sets].mean(axis=2))  # sets × settings
        outside = everywhere[:, None] - test[:, sets].sum(axis=2)  # settings × sets
        reached = np.einsum("ts,st->t", share, outside)
        total, chosen = total + reached.sum(), chosen + share.sum(axis=0)
        for members in sets.T:
            having += np.bincount(members, minlength=seeds)
            total_having += np.bincount(members, reached, seeds)
            chosen_having += [np.bincount(members, of_one, seeds) for of_one in share.T]
    number = math.comb(seeds, size)
    estimate = float(total / number / (seeds - size))
    if seeds - 1 <= size:
        return Tuned(estimate, np.empty(0), chosen / number)
    # Without a seed: neither its sets, nor its result.
    left = total - total_having - ((chosen[:, None] - chosen_having) * test).sum(axis=0)
    without = left / (number - having) / (seeds - 1 - size)
    return Tuned(estimate, without, chosen / number)


def _sets(seeds: int, size: int) -> Iterator[NDArray[np.int64]]:
    """All sets of so many seeds, some at a time, each a row: of 400 there are ten million."""
    members = itertools.chain.from_iterable(itertools.combinations(range(seeds), size))
    while len(some := np.fromiter(itertools.islice(members, SETS * size), dtype=np.int64)):
        yield some.reshape(-1, size)


def _shares(scores: Array) -> Array:
    """Settings × sets → sets × settings: 1 at the best setting of each set, shared if some tie."""
    best = scores.max(axis=0)
    tied = scores >= best - TIE * np.maximum(1.0, np.abs(best))
    return (tied / tied.sum(axis=0)).T


def standard_error(without: Array) -> float:
    r"""The jackknife's standard error of an estimate, from its values without each seed in turn.

    .. math:: \sqrt{\tfrac{n - 1}{n} \sum_{i=1}^n (\theta_{-i} - \bar\theta)^2}

    0 if they differ by rounding alone; NaN if there are fewer than two.

    **Source**: Tukey 1958; Efron & Tibshirani 1993, chapter 11.
    """
    n = len(without)
    if n > 1 and alike(without):
        return 0.0
    return math.sqrt((n - 1) * float(without.var())) if n > 1 else math.nan


def interval(estimate: float, error: float, seeds: int, confidence: float = CONFIDENCE) -> Interval:
    """Student's t interval with ``seeds`` − 1 degrees of freedom; no bounds if the error is zero
    or unknown.
    """
    if not error > 0:
        return Interval(estimate, math.nan, math.nan)
    half = float(special.stdtrit(seeds - 1, (1 + confidence) / 2)) * error
    return Interval(estimate, estimate - half, estimate + half)


def budget_curve(scores: Array, values: Array) -> Array:
    r"""The expected result of somebody who tries ``k`` of the settings, drawn without putting back,
    and takes the best of them: a row per k from 1 on, a column per seed.

    .. math:: E(k) = \sum_{r=1}^{N-k+1} \frac{\binom{N-r}{k-1}}{\binom{N}{k}} \bar v(r)

    where r ranks the settings by ``scores``, and v is what they are worth on other seeds. Settings
    of equal scores are worth their mean.

    :param scores: of each setting, higher is better, from the seeds that choose.
    :param values: settings × seeds, from seeds that judge.

    **Source**: Dodge, Gururangan, Card, Schwartz & Smith 2019, there with putting back.
    """
    settings = len(scores)
    near = TIE * np.maximum(1.0, np.abs(scores))
    members = np.abs(scores[:, None] - scores) <= near[:, None]
    worth = (members @ values) / members.sum(axis=1)[:, None]
    ranked = worth[np.argsort(-scores, kind="stable")]
    ranks, tries = np.arange(1, settings + 1), np.arange(1, settings + 1)[:, None]
    weights = special.comb(settings - ranks, tries - 1) / special.comb(settings, tries)
    return weights @ ranked
