"""Outcomes by what a model can do: cases whose answer is known, and what holds for any run."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipbench.schema import Outcome
from clipbench.skill import Scale, outcome

ACCURACY = Scale(chance=0.1, target=0.96)
LOSS = Scale(chance=2.303, target=0.133, higher_is_better=False)
GAP = Scale(chance=None, target=-1.76, higher_is_better=False)
ERROR = 0.015


def judged(scale, values, error=ERROR):
    return outcome(scale, values, [error] * len(values))


def noise(level, width, count=20, seed=0):
    return (level + width * np.random.default_rng(seed).standard_normal(count)).tolist()


CASES = {
    "the way up, and there": (ACCURACY, [0.1, *np.linspace(0.2, 0.95, 19)], Outcome.LEARNED),
    "a constant loss, a thousandth below the constant prediction's": (LOSS, [2.31, *[0.999 * 2.303] * 19], Outcome.STALLED),
    "there for half the run, then at chance": (ACCURACY, [0.1, *[0.8] * 10, *[0.1] * 9], Outcome.COLLAPSED),
    "there once, and then not": (ACCURACY, [0.1, 0.4, *[0.1] * 18], Outcome.STALLED),
    "noise around chance": (ACCURACY, noise(0.1, 0.015), Outcome.STALLED),
    "there in two of the last three": (ACCURACY, [0.1, *[0.8] * 17, 0.1, 0.8], Outcome.LEARNED),
    "there, and NaN in one of the last three": (ACCURACY, [0.1, *[0.8] * 17, math.nan, 0.8], Outcome.LEARNED),
    "there, and NaN at the end": (ACCURACY, [0.1, *[0.8] * 17, math.nan, math.nan], Outcome.COLLAPSED),
    "an untrained model that is good by luck, and not trained": (Scale(0.5, 0.995), [0.97] * 20, Outcome.STALLED),
    "one that is good by luck, and trained": (Scale(0.5, 0.995), [0.7, *np.linspace(0.8, 0.99, 19)], Outcome.LEARNED),
    "a loss that overflowed in all evaluations": (LOSS, [2.31, *[math.inf] * 19], Outcome.STALLED),
    "two evaluations, the second there": (ACCURACY, [0.1, 0.8], Outcome.LEARNED),
    "two evaluations, the second at chance": (ACCURACY, [0.1, 0.11], Outcome.STALLED),
}
FUNCTIONS = {
    "from 1,000 to 999": ([3.0, *[math.log10(999)] * 19], Outcome.STALLED),
    "all the way down": ([3.0, *np.linspace(2, -2, 19)], Outcome.LEARNED),
    "down, and back at the start": ([3.0, *[0.0] * 10, *[3.0] * 9], Outcome.COLLAPSED),
    "a start at the optimum, with noise": ([-16.0, *noise(-3.0, 0.3, 19)], Outcome.LEARNED),
    "a start at the optimum, and away": ([-16.0, *noise(0.0, 0.3, 19)], Outcome.COLLAPSED),
}


@pytest.mark.parametrize("case", CASES)
def test_what_became_of_a_model(case):
    scale, values, expected = CASES[case]
    assert judged(scale, list(values)) == expected


@pytest.mark.parametrize("case", FUNCTIONS)
def test_what_became_of_a_function(case):
    values, expected = FUNCTIONS[case]
    assert judged(GAP, list(values), error=0.0) == expected


def test_noise_around_chance_is_hardly_ever_called_anything_else():
    """Of 2,000 runs of 20 evaluations: three standard errors, twice running or at the end by a median of three."""
    outcomes = [judged(Scale(0.5, 0.6), [0.5, *noise(0.5, 0.03, 19, seed)], error=0.03) for seed in range(2000)]
    assert outcomes.count(Outcome.STALLED) >= 1990


VALUES = st.lists(st.floats(0, 1) | st.just(math.nan), min_size=2, max_size=30).filter(lambda some: math.isfinite(some[0]))


@given(VALUES, st.floats(0.05, 0.5), st.floats(0.55, 1.0))
def test_direction_does_not_matter(values, chance, target):
    up, down = Scale(chance, target), Scale(-chance, -target, higher_is_better=False)
    assert judged(up, values) == judged(down, [-value for value in values])


@given(VALUES, st.floats(0.55, 1.0))
def test_a_run_that_ends_where_it_began_has_not_learned(values, target):
    began = min(values[0], 0.5)
    assert judged(Scale(0.5, target), [began, *values[1:], *[began] * 3]) != Outcome.LEARNED


@given(VALUES)
def test_skill_is_nought_at_the_better_of_chance_and_start_and_one_at_the_target(values):
    scale = Scale(0.3, 1.5)
    zero = max(0.3, values[0])
    assert scale.skill([values[0], zero, 1.5])[1:] == pytest.approx([0.0, 1.0])
    assert all((scale.skill(values) == -np.inf) == np.isnan(values))
