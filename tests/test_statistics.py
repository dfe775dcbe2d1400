"""Our statistics against scipy, published values and seeded simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from clipbench import statistics

INF = float("inf")


def test_the_t_interval_is_scipys():
    sample = np.random.default_rng(1).normal(3, 2, 10)
    wanted = stats.t.interval(0.95, 9, loc=sample.mean(), scale=stats.sem(sample))
    estimate, low, high = statistics.mean_interval(sample)
    assert estimate == pytest.approx(sample.mean(), rel=1e-12)
    assert (low, high) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("n", [3, 5, 10])
def test_the_t_interval_covers_95_percent_even_of_three_seeds(n):
    draws = np.random.default_rng(n).normal(size=(2000, n))
    covered = sum(low <= 0 <= high for _, low, high in map(statistics.mean_interval, draws))
    assert 0.935 <= covered / 2000 <= 0.965


def test_a_mean_of_a_diverged_seed_is_refused_and_one_seed_has_no_interval():
    with pytest.raises(ValueError, match="use median_interval"):
        statistics.mean_interval([1.0, INF])
    with pytest.raises(ValueError, match="finite"):
        statistics.mean_interval([1.0, np.nan])
    one = statistics.mean_interval([4.0])
    assert one.estimate == 4.0
    assert not one.bounded
    assert not statistics.mean_interval([]).bounded


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilsons_interval_has_its_published_values(k, n, low, high):
    """Newcombe 1998, table I; and 0 of 10 still allows 28 %."""
    interval = statistics.share_interval(k, n)
    assert interval.low == pytest.approx(low, abs=1e-4)
    assert interval.high == pytest.approx(high, abs=1e-4)


def test_wilsons_interval_is_scipys_and_impossible_shares_are_refused():
    for k, n in [(3, 10), (7, 9), (1, 2)]:
        wanted = stats.binomtest(k, n).proportion_ci(method="wilson")
        assert statistics.share_interval(k, n)[1:] == pytest.approx(
            (wanted.low, wanted.high), rel=1e-9
        )
    assert not statistics.share_interval(0, 0).bounded
    with pytest.raises(ValueError, match="4 of 3"):
        statistics.share_interval(4, 3)


def test_newcombes_difference_has_its_published_value():
    """Newcombe 1998, table II, method 10, 9/10 against 3/10."""
    interval = statistics.share_difference(9, 3, 10)
    assert interval.estimate == pytest.approx(0.6)
    assert interval.low == pytest.approx(0.1705, abs=1e-4)
    assert interval.high == pytest.approx(0.8090, abs=1e-4)


def test_the_median_interval_is_made_of_order_statistics_and_takes_infinities():
    interval = statistics.median_interval([*range(1, 10), INF])
    assert interval == (5.5, 2.0, 9.0)
    assert statistics.median_interval([INF] * 10) == (INF, INF, INF)
    assert statistics.median_interval([*range(1, 9), INF, INF]) == (5.5, 2.0, INF)
    assert statistics.median_interval([-INF] * 6 + [1.0] * 4).estimate == -INF


def test_six_values_are_the_fewest_with_a_median_interval():
    assert not statistics.median_interval(range(5)).bounded
    assert statistics.median_interval(range(6)) == (2.5, 0.0, 5.0)


@pytest.mark.parametrize("n", [6, 10, 25])
def test_the_median_interval_covers_at_least_95_percent_of_a_skewed_sample(n):
    draws = np.random.default_rng(n).lognormal(size=(2000, n))
    covered = sum(low <= 1 <= high for _, low, high in map(statistics.median_interval, draws))
    assert covered / 2000 >= 0.94


def test_nan_is_never_filtered_away():
    """AlgoPerf's ``series != np.nan`` filters nothing: a NaN must stop us."""
    with pytest.raises(ValueError, match="NaN"):
        statistics.median_interval([1.0, np.nan])


def test_two_diverged_runs_are_a_tie_and_one_is_infinitely_worse():
    assert statistics.differences([-INF, 1.0, 2.0], [-INF, -INF, 1.0]).tolist() == [0.0, INF, 1.0]
    with pytest.raises(ValueError, match="equal lengths"):
        statistics.differences([1.0], [1.0, 2.0])


def test_a_paired_difference_is_a_mean_until_a_run_diverges():
    assert statistics.paired_difference([2.0, 3.0, 5.0], [1.0, 1.0, 1.0]).estimate == pytest.approx(
        7 / 3
    )
    lost = statistics.paired_difference([-INF] * 4 + [1.0] * 6, [0.0] * 10)
    assert (lost.estimate, lost.low, lost.high) == (1.0, -INF, 1.0)


def test_the_paired_test_is_scipys_t_test():
    random = np.random.default_rng(3)
    a, b = random.normal(0.4, 1, 10), random.normal(0, 1, 10)
    assert statistics.paired_p(a - b) == pytest.approx(stats.ttest_rel(a, b).pvalue, rel=1e-12)
    assert statistics.paired_p([0.0] * 5) == 1.0
    assert np.isnan(statistics.paired_p([1.0]))


def test_differences_that_are_all_alike_are_no_certainty():
    """Ten pairs each better by .01 (to rounding): zero width and p = 0 would claim what one pair
    shows.
    """
    gaps = np.array([0.1 * k + 0.01 for k in range(10)]) - np.array([0.1 * k for k in range(10)])
    for sample in (gaps, [0.01] * 10, [0.0] * 10):
        interval = statistics.mean_interval(sample)
        assert not interval.bounded
        assert interval.estimate == pytest.approx(np.mean(sample))
        assert interval.sign == 0
    assert np.isnan(statistics.paired_p(gaps))
    assert np.isnan(statistics.paired_p([0.01] * 10))
    assert not statistics.alike([0.01] * 9 + [0.0101])
    assert statistics.mean_interval([0.01] * 9 + [0.0101]).bounded


def test_signed_ranks_agree_with_scipy_and_with_every_sign_flip():
    gaps = np.array([0.5, -0.1, 0.9, 1.3, -0.7, 2.0, 0.3])
    with_infinity = np.append(gaps, INF)
    stand_in = np.append(gaps, 99.0)
    assert statistics.paired_p(with_infinity) == pytest.approx(
        stats.wilcoxon(stand_in, method="exact").pvalue, rel=1e-9
    )
    tied = np.array([INF, INF, -INF, 0.2, 0.2, 0.0])
    ranks = stats.rankdata(np.abs(tied[tied != 0]))
    observed = ranks[tied[tied != 0] > 0].sum()
    sums = np.array(
        [ranks[np.array(signs, dtype=bool)].sum() for signs in itertools.product([0, 1], repeat=5)]
    )
    wanted = min(1.0, 2 * min((sums <= observed).mean(), (sums >= observed).mean()))
    assert statistics.paired_p(tied) == pytest.approx(wanted)


def test_mcnemars_test_is_the_binomial_of_the_pairs_that_disagree():
    first, second = [True] * 8 + [False] * 2, [True] * 2 + [False] * 7 + [True]
    assert statistics.discordant_p(first, second) == pytest.approx(stats.binomtest(6, 7).pvalue)
    assert statistics.discordant_p([True] * 5, [True] * 5) == 1.0
    assert np.isnan(statistics.discordant_p([True], [False]))


def test_five_seeds_cannot_show_a_difference_of_three_divergences():
    """0/5 against 3/5: ten seeds for any claim about divergence."""
    assert statistics.discordant_p([True] * 5, [True, True, False, False, False]) > 0.17


@pytest.mark.parametrize("gaps", [[10.0] * 12, [0.05] * 11 + [0.9], [np.inf] * 12])
def test_signed_ranks_count_signs_however_alike_or_far_off_the_differences(gaps):
    assert statistics.signed_rank_p(gaps) == pytest.approx(2 / 2**12, rel=1e-12)
    assert statistics.signed_rank_p([*gaps, 0.0]) == pytest.approx(2 / 2**12, rel=1e-12)
    assert statistics.signed_rank_p([0.0] * 12) == 1.0


def test_holms_correction_has_its_textbook_values_and_leaves_the_untestable_out():
    p = [0.01, 0.04, 0.03, 0.005]
    assert statistics.holm(p).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    with_hole = statistics.holm([0.01, np.nan, 0.04, 0.03, 0.005])
    assert np.isnan(with_hole[1])
    assert with_hole[[0, 2, 3, 4]].tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.6, 0.7]).tolist() == [1.0, 1.0]
    assert statistics.holm([]).size == 0


def test_block_medians_keep_short_curves_and_count_infinities():
    position, value = statistics.block_medians([3.0, 2.0, np.nan], 5)
    assert position.tolist() == [0, 1, 2]
    assert value.tolist() == [3.0, 2.0, INF]
    position, value = statistics.block_medians([1.0] * 50 + [INF] * 50, 10)
    assert len(position) == 10
    assert value.tolist() == [1.0] * 5 + [INF] * 5
    assert position[0] == 4.5
