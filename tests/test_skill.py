"""Outcomes by what a model can do: cases whose answer is known, and what holds for any run."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipbench.events import Evaluation
from clipbench.schema import Outcome
from clipbench.skill import Scale, judge, outcome

ACCURACY = Scale("accuracy", chance=0.1, target=0.96)
LOSS = Scale("loss", chance=2.303, target=0.133, higher_is_better=False)
COSH = Scale("loss", chance=None, target=10.0174, higher_is_better=False, optimum=10.0)
ERROR = 0.015


def judged(scale, values, error=ERROR):
    return outcome(scale, values, [error] * len(values))


def noise(level, width, count=20, seed=0):
    return (level + width * np.random.default_rng(seed).standard_normal(count)).tolist()


CASES = {
    "the way up, and there": (ACCURACY, [0.1, *np.linspace(0.2, 0.95, 19)], Outcome.LEARNED),
    "a constant loss, a thousandth below the constant prediction's": (
        LOSS,
        [2.31, *[0.999 * 2.303] * 19],
        Outcome.STALLED,
    ),
    "there for half the run, then at chance": (
        ACCURACY,
        [0.1, *[0.8] * 10, *[0.1] * 9],
        Outcome.COLLAPSED,
    ),
    "there once, and then not": (ACCURACY, [0.1, 0.4, *[0.1] * 18], Outcome.STALLED),
    "noise around chance": (ACCURACY, noise(0.1, 0.015), Outcome.STALLED),
    "there in two of the last three": (ACCURACY, [0.1, *[0.8] * 17, 0.1, 0.8], Outcome.LEARNED),
    "there, and NaN in one of the last three": (
        ACCURACY,
        [0.1, *[0.8] * 17, math.nan, 0.8],
        Outcome.LEARNED,
    ),
    "there, and NaN at the end": (
        ACCURACY,
        [0.1, *[0.8] * 17, math.nan, math.nan],
        Outcome.COLLAPSED,
    ),
    "an untrained model that is good by luck, and not trained": (
        Scale("roc_auc", 0.5, 0.995),
        [0.97] * 20,
        Outcome.STALLED,
    ),
    "one that is good by luck, and trained": (
        Scale("roc_auc", 0.5, 0.995),
        [0.7, *np.linspace(0.8, 0.99, 19)],
        Outcome.LEARNED,
    ),
    "a loss that overflowed in all evaluations": (LOSS, [2.31, *[math.inf] * 19], Outcome.STALLED),
    "two evaluations, the second there": (ACCURACY, [0.1, 0.8], Outcome.LEARNED),
    "two evaluations, the second at chance": (ACCURACY, [0.1, 0.11], Outcome.STALLED),
}
FUNCTIONS = {
    "from 1,000 to 999": ([1000.0, *[999.0] * 19], Outcome.STALLED),
    "all the way down": ([1000.0, *(10 + np.logspace(2, -2, 19))], Outcome.LEARNED),
    "down, and back at the start": ([1000.0, *[11.0] * 10, *[1000.0] * 9], Outcome.COLLAPSED),
    "a start at the optimum, with noise": (
        [10.0, *(10 + np.logspace(-4, -2.5, 19))],
        Outcome.LEARNED,
    ),
    "a start at the optimum, and away": ([10.0, *[10.5] * 19], Outcome.COLLAPSED),
}


@pytest.mark.parametrize("case", CASES)
def test_what_became_of_a_model(case):
    scale, values, expected = CASES[case]
    assert judged(scale, list(values)) == expected


@pytest.mark.parametrize("case", FUNCTIONS)
def test_what_became_of_a_function(case):
    values, expected = FUNCTIONS[case]
    assert judged(COSH, list(values), error=0.0) == expected


def test_a_function_whose_target_nobody_knows_must_come_a_tenth_of_a_decade_down():
    scale = Scale("loss", None, None, higher_is_better=False, optimum=0.0)
    assert judged(scale, [1000.0, *[10**2.91] * 19], error=0.0) == Outcome.STALLED
    assert judged(scale, [1000.0, *[10**2.89] * 19], error=0.0) == Outcome.LEARNED
    unknown = Scale("loss", None, None, higher_is_better=False)
    assert judged(unknown, [-5.0, *[-5.4] * 19], error=0.0) == Outcome.STALLED
    assert judged(unknown, [-5.0, *[-5.6] * 19], error=0.0) == Outcome.LEARNED


ABOUT = {
    "metric": "accuracy",
    "higher_is_better": True,
    "chance": 0.1,
    "target_metric": 0.96,
    "reference_loss": 2.303,
    "target": 0.1,
}


def run(accuracies, losses):
    """The evaluations of a run."""
    return [
        one
        for step, (accuracy, loss) in enumerate(zip(accuracies, losses, strict=True))
        for one in (
            Evaluation(step, "validation", "loss", loss),
            Evaluation(step, "validation", "accuracy", accuracy, ERROR),
        )
    ]


def test_an_accurate_model_that_is_too_sure_of_itself_has_learned_and_an_event_says_since_when():
    """A validation loss of 2.5 at an accuracy of .95: by its loss it would be dead."""
    found = judge(ABOUT, run([0.1, 0.5, *[0.95] * 18], [2.31, 1.5, 1.0, *[2.5] * 17]))
    assert found.outcome == Outcome.LEARNED
    assert [(event.step, event.kind, event.value) for event in found.events] == [
        (3, "overconfident", 2.5)
    ]
    assert judge(ABOUT, run([0.1, *[0.12] * 19], [2.31, *[2.5] * 19])).events == []


def test_a_workload_is_judged_by_its_metric_only_if_it_says_what_is_needed_for_it():
    worse = run([0.1, *[0.95] * 19], [2.31, *[2.5] * 19])
    by_loss = [one._replace(error=0.05 if one.metric == "loss" else None) for one in worse]
    for lacks in ("chance", "target_metric"):
        assert Scale.of(ABOUT | {lacks: None}) == Scale("loss", 2.303, 0.1, higher_is_better=False)
        assert judge(ABOUT | {lacks: None}, by_loss).outcome == Outcome.STALLED
    assert Scale.of(ABOUT | {"chance": None, "target": None}).target == 0.0
    assert judge(ABOUT | {"unbounded": True}, by_loss).outcome == Outcome.LEARNED


def test_noise_around_chance_is_hardly_ever_called_anything_else():
    """Of 2,000 runs of 20 evaluations: three standard errors, twice running or at the end by a
    median of three.
    """
    outcomes = [
        judged(Scale("accuracy", 0.5, 0.6), [0.5, *noise(0.5, 0.03, 19, seed)], error=0.03)
        for seed in range(2000)
    ]
    assert outcomes.count(Outcome.STALLED) >= 1990


VALUES = st.lists(st.floats(0, 1) | st.just(math.nan), min_size=2, max_size=30).filter(
    lambda some: math.isfinite(some[0])
)


@given(VALUES, st.floats(0.05, 0.5), st.floats(0.55, 1.0))
def test_direction_does_not_matter(values, chance, target):
    up, down = Scale("m", chance, target), Scale("m", -chance, -target, higher_is_better=False)
    assert judged(up, values) == judged(down, [-value for value in values])


@given(VALUES, st.floats(0.55, 1.0))
def test_a_run_that_ends_where_it_began_has_not_learned(values, target):
    began = min(values[0], 0.5)
    assert judged(Scale("m", 0.5, target), [began, *values[1:], *[began] * 3]) != Outcome.LEARNED


@given(VALUES)
def test_skill_is_nought_at_the_better_of_chance_and_start_and_one_at_the_target(values):
    scale = Scale("m", 0.3, 1.5)
    zero = max(0.3, values[0])
    assert scale.skill([values[0], zero, 1.5])[1:] == pytest.approx([0.0, 1.0])
    assert all((scale.skill(values) == -np.inf) == np.isnan(values))


def test_where_evaluations_have_no_value_from_the_start_on_the_training_loss_decides():
    """A NaN among the validation data says nothing of the training."""
    blind = run([math.nan] * 20, [math.nan] * 20)
    noisy = np.random.default_rng(0).normal(0, 0.05, 200)
    assert (
        judge(ABOUT, blind, 2.3 * np.exp(-np.arange(200) / 50) + noisy).outcome == Outcome.LEARNED
    )
    assert judge(ABOUT, blind, 2.3 + noisy).outcome == Outcome.STALLED
    assert judge(ABOUT, blind, np.r_[2.3, 0.5 + noisy, 2.3 + noisy]).outcome == Outcome.COLLAPSED
    assert judge(ABOUT, blind).outcome == Outcome.STALLED
    assert judge(ABOUT, blind, [2.3, 50.0, math.inf]).outcome == Outcome.STALLED
    assert (
        judge(ABOUT, run([0.1, *[math.nan] * 19], [2.31] * 20), 0.1 + noisy).outcome
        == Outcome.STALLED
    )
