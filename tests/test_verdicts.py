"""Verdicts: single comparisons by their intervals, families by Holm's and Shaffer's steps."""

import math

import numpy as np
import pytest
from scipy import stats

from clipbench import verdicts
from clipbench.schema import Verdict
from clipbench.verdicts import Comparison, decide

T = float(stats.t.ppf(0.975, 19))


def at(low, high, margin=1.0, seeds=20):
    """A comparison whose interval of 95 % goes from ``low`` to ``high``."""
    t = float(stats.t.ppf(0.975, seeds - 1))
    return Comparison((low + high) / 2, (high - low) / 2 / t, seeds, margin)


CASES = [
    ("beyond", at(1.1, 3.0), Verdict.BETTER),
    ("beyond, below", at(-3.0, -1.1), Verdict.WORSE),
    ("above zero", at(0.1, 3.0), Verdict.PERHAPS_BETTER),
    ("below zero", at(-3.0, -0.1), Verdict.PERHAPS_WORSE),
    ("inside", at(-0.9, 0.9), Verdict.SAME),
    ("inside, and above zero", at(0.2, 0.9), Verdict.SAME),
    ("across", at(-0.5, 1.5), Verdict.UNDECIDED),
    ("across, both ways", at(-1.5, 1.5), Verdict.UNDECIDED),
    ("no margin", at(0.1, 0.2, math.nan), Verdict.PERHAPS_BETTER),
    ("no margin, around zero", at(-0.1, 0.2, math.nan), Verdict.UNDECIDED),
    ("no error", Comparison(5.0, math.nan, 20, 1.0), Verdict.UNDECIDED),
    ("no spread", Comparison(0.0, 0.0, 20, 1.0), Verdict.UNDECIDED),
]


@pytest.mark.parametrize(
    ("one", "verdict"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_one_comparison_is_what_its_interval_says(one, verdict):
    assert decide([one]) == [verdict]


def test_the_sign_alone_turns_better_into_worse():
    pairs = {Verdict.BETTER: Verdict.WORSE, Verdict.PERHAPS_BETTER: Verdict.PERHAPS_WORSE}
    turned = pairs | {other: one for one, other in pairs.items()}
    draw = np.random.default_rng(1)
    family = [
        Comparison(float(d), float(e), 20, 1.0)
        for d, e in zip(draw.normal(0, 2, 60), draw.uniform(0.05, 1, 60), strict=True)
    ]
    said = decide(family)
    assert len(set(said)) >= 5
    mirrored = decide([one._replace(difference=-one.difference) for one in family])
    assert [turned.get(one, one) for one in said] == mirrored


def test_a_family_of_two_is_held_to_half_the_level_and_then_to_the_whole():
    """p .04 alone is seen; beside another of .04 neither is; beside one of .001 it is again."""
    weak = Comparison(float(stats.t.isf(0.02, 19)), 1.0, 20, math.nan)
    strong = Comparison(float(stats.t.isf(0.0005, 19)), 1.0, 20, math.nan)
    assert decide([weak]) == [Verdict.PERHAPS_BETTER]
    assert decide([weak, weak]) == [Verdict.UNDECIDED] * 2
    # without a margin the strong one keeps an open question, and is counted on
    assert decide([strong, weak]) == [Verdict.PERHAPS_BETTER, Verdict.UNDECIDED]
    closed = Comparison(strong.difference, 1.0, 20, 100.0)  # different, and inside: both answered
    assert decide([closed, weak]) == [Verdict.SAME, Verdict.PERHAPS_BETTER]


def test_a_comparison_without_an_error_still_counts_in_its_family():
    weak = Comparison(float(stats.t.isf(0.02, 19)), 1.0, 20, math.nan)
    lost = Comparison(0.0, math.nan, 20, math.nan)
    assert decide([weak, lost]) == [Verdict.UNDECIDED] * 2


@pytest.mark.parametrize("truth", [0.0, 1.0, -1.0, 0.999, 1.001])
def test_a_family_says_anything_wrong_no_more_often_than_its_level(truth):
    """Eight comparisons of one truth, 2,000 times: the chance of one wrong word or more."""
    times = 2000
    sample = np.random.default_rng(7).normal(truth, 1.2, size=(times, 8, 20))
    means, errors = sample.mean(-1), sample.std(-1, ddof=1) / math.sqrt(20)
    wrong = sum(
        any(
            not _right(word, truth)
            for word in decide([Comparison(*pair, 20, 1.0) for pair in zip(*family, strict=True)])
        )
        for family in zip(means.tolist(), errors.tolist(), strict=True)
    )
    assert wrong / times <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / times)


def _right(word, truth):
    return {
        Verdict.BETTER: truth > 1,
        Verdict.PERHAPS_BETTER: truth > 0,
        Verdict.SAME: abs(truth) < 1,
        Verdict.PERHAPS_WORSE: truth < 0,
        Verdict.WORSE: truth < -1,
        Verdict.UNDECIDED: True,
    }[word]


def test_the_smallest_margin_is_where_no_difference_begins_to_hold():
    one = at(-0.2, 0.7)
    least = verdicts.smallest_margin(one, 0.05)
    assert least == pytest.approx(0.7)
    assert decide([one._replace(margin=least * 1.001)]) == [Verdict.SAME]
    assert decide([one._replace(margin=least * 0.999)]) == [Verdict.UNDECIDED]
    assert math.isnan(verdicts.smallest_margin(one._replace(error=math.nan), 0.05))


def test_the_seeds_needed_decide_with_the_power_that_was_planned():
    """At no difference at all, 2,000 times: about eight in ten say so."""
    one = Comparison(0.3, 0.5, 20, 1.0)  # a deviation of .5 √20
    needed = int(verdicts.seeds_needed(one, 0.05))
    spread = 0.5 * math.sqrt(20)
    sample = np.random.default_rng(3).normal(0.0, spread, size=(2000, needed))
    said = [
        decide([Comparison(float(m), float(e), needed, 1.0)])[0]
        for m, e in zip(sample.mean(1), sample.std(1, ddof=1) / math.sqrt(needed), strict=True)
    ]
    assert 0.77 <= said.count(Verdict.SAME) / 2000 <= 0.84
    assert verdicts.seeds_needed(one._replace(error=1e4), 0.05) == math.inf
    assert math.isnan(verdicts.seeds_needed(one._replace(margin=math.nan), 0.05))
