"""What tuning on three seeds reaches: by brute force, by hand, and by simulation."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from clipbench import tuning

NAN = math.nan


def by_hand(validation, test, size=3, leave=None):
    """The definition, loop by loop; of settings that tie the mean counts."""
    seeds = [seed for seed in range(validation.shape[1]) if seed != leave]
    reached = []
    for chosen_on in itertools.combinations(seeds, size):
        means = [np.mean([row[seed] for seed in chosen_on]) for row in validation]
        tied = [at for at, mean in enumerate(means) if mean >= max(means) - 1e-12]
        reached += [
            np.mean([test[at][seed] for at in tied]) for seed in seeds if seed not in chosen_on
        ]
    return float(np.mean(reached))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), seeds=st.integers(5, 8), whole=st.booleans())
def test_it_is_the_mean_over_all_sets_and_all_seeds_outside_them(seed, seeds, whole):
    """Also if values tie, as accuracies do."""
    draw = np.random.default_rng(seed)
    validation, test = draw.normal(size=(2, 4, seeds))
    if whole:
        validation, test = np.round(validation), np.round(test)
    tuned = tuning.expected(validation, test)
    assert tuned.estimate == pytest.approx(by_hand(validation, test))
    np.testing.assert_allclose(
        tuned.without, [by_hand(validation, test, leave=seed) for seed in range(seeds)]
    )
    assert tuned.chosen.sum() == pytest.approx(1.0)


def test_a_setting_that_is_best_on_every_seed_is_always_chosen_and_judged_by_its_mean():
    validation = np.array([[1.0] * 6, [2.0] * 6, [0.0] * 6])
    test = np.array([[9.0] * 6, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [9.0] * 6])
    tuned = tuning.expected(validation, test)
    assert tuned.estimate == pytest.approx(3.5)
    assert tuned.chosen.tolist() == [0.0, 1.0, 0.0]
    np.testing.assert_allclose(tuned.without, (21 - test[1]) / 5)
    # of a plain mean the jackknife is the standard error
    assert tuning.standard_error(tuned.without) == pytest.approx(stats.sem(test[1]))


def test_the_sets_may_be_looked_at_some_at_a_time(monkeypatch):
    """As of 400 seeds they have to be: there are ten million sets of three."""
    validation, test = np.random.default_rng(3).normal(size=(2, 4, 9))
    whole = tuning.expected(validation, test)
    monkeypatch.setattr(tuning, "SETS", 5)
    some = tuning.expected(validation, test)
    for one, other in zip(whole, some, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)


def test_of_one_setting_the_result_is_its_mean_however_many_seeds_there_are():
    test = np.random.default_rng(4).normal(size=(1, 400))
    tuned = tuning.expected(test, test)
    assert tuned.estimate == pytest.approx(test.mean())
    assert tuning.standard_error(tuned.without) == pytest.approx(stats.sem(test[0]))


def test_a_seed_that_chooses_is_not_judged():
    """One setting wins on a seed only if that seed is among those that choose."""
    validation = np.array([[100.0, 0, 0, 0, 0], [1.0, 1, 1, 1, 1]])
    test = np.array([[1.0, 0, 0, 0, 0], [0.0] * 5])
    assert tuning.expected(validation, test).estimate == 0.0


def test_few_seeds_choose_on_one_fewer_and_a_single_one_chooses_and_is_judged():
    validation, test = np.array([[1.0, 5.0], [2.0, 3.0]]), np.array([[10.0, 20.0], [30.0, 40.0]])
    two = tuning.expected(validation, test)
    assert two.estimate == pytest.approx((40.0 + 10.0) / 2)
    assert two.without.size == 0
    one = tuning.expected(validation[:, :1], test[:, :1])
    assert (one.estimate, one.without.size, one.chosen.tolist()) == (30.0, 0, [0.0, 1.0])


def test_an_error_of_few_values_is_unknown_and_gives_no_bounds():
    assert math.isnan(tuning.standard_error(np.empty(0)))
    assert not tuning.interval(1.0, NAN, 5).bounded
    assert not tuning.interval(1.0, 0.0, 5).bounded
    bounds = tuning.interval(1.0, 0.5, 20)
    assert bounds.high - 1.0 == pytest.approx(0.5 * stats.t.ppf(0.975, 19))
    assert tuning.interval(1.0, 0.5, 20, 0.99).high > bounds.high


def test_order_of_seeds_and_settings_does_not_matter():
    draw = np.random.default_rng(0)
    validation, test = draw.normal(size=(2, 5, 9))
    seeds, rows = draw.permutation(9), draw.permutation(5)
    first = tuning.expected(validation, test)
    second = tuning.expected(validation[rows][:, seeds], test[rows][:, seeds])
    assert second.estimate == pytest.approx(first.estimate)
    np.testing.assert_allclose(second.without, first.without[seeds])
    np.testing.assert_allclose(second.chosen, first.chosen[rows])


# ------------------------------------------------------------------------------------------ budgets


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), number=st.integers(1, 5), whole=st.booleans())
def test_a_budget_curve_is_the_mean_over_all_sets_of_so_many_settings(seed, number, whole):
    """Of settings that tie on validation each wins as often: in all orders the first is taken."""
    draw = np.random.default_rng(seed)
    scores, values = draw.normal(size=number), draw.normal(size=(number, 3))
    if whole:
        scores = np.round(scores)
    curve = tuning.budget_curve(scores, values)
    orders = list(itertools.permutations(range(number)))
    for tries in range(1, number + 1):
        met = [values[max(order[:tries], key=lambda at: scores[at])] for order in orders]
        np.testing.assert_allclose(curve[tries - 1], np.mean(met, axis=0), atol=1e-12)


def test_one_try_is_the_mean_of_all_and_all_tries_are_the_best_on_validation():
    scores, values = np.array([0.2, 0.9, 0.5]), np.array([[1.0], [2.0], [6.0]])
    assert tuning.budget_curve(scores, values).ravel() == pytest.approx([3.0, (2 * 2 + 6) / 3, 2.0])
