"""The columns that evaluations give: which checkpoint is the best one, and what the last one is
worth.
"""

import math

import numpy as np
import pytest

from clipbench import measures, summary
from clipbench.events import Evaluation

ABOUT = {
    "metric": "accuracy",
    "higher_is_better": True,
    "chance": 0.1,
    "target_metric": 0.9,
    "target": 0.5,
    "reference_loss": 2.3,
    "optimum": None,
    "unbounded": False,
}
BY_LOSS = {**ABOUT, "chance": None, "target_metric": None}
FUNCTION = {**BY_LOSS, "metric": "log10_gap", "reference_loss": None, "optimum": 1.0}

VALIDATION = [(0, 0.1, 2.3), (10, 0.8, 0.9), (20, 0.8, 0.7), (30, 0.8, 0.7), (40, 0.7, 0.6)]


def evaluations(validation=VALIDATION, metric="accuracy"):
    """(updates, metric, loss) on validation; test has a metric of its own: the updates in
    percent.
    """
    made = []
    for step, value, loss in validation:
        made += [
            Evaluation(step, "validation", "loss", loss),
            Evaluation(step, "validation", metric, value),
            Evaluation(step, "test", metric, step / 100),
        ]
    return made


def of(validation=VALIDATION, about=ABOUT, steps=40, diverged_at=None):
    made = evaluations(validation, about["metric"])
    return summary.of_evaluations(made, about["metric"], about, steps, diverged_at)


@pytest.mark.parametrize(
    ("about", "step", "value"), [(ABOUT, 30, 0.8), (BY_LOSS, 40, 0.6)], ids=["metric", "loss"]
)
def test_the_best_checkpoint_is_that_of_the_graded_value_then_of_the_loss_then_the_later(
    about, step, value
):
    columns = of(about=about)
    assert columns["best_step"] == step
    assert columns["best_validation"] == value
    assert columns["best_metric"] == step / 100
    assert columns["validation_value"] == 0.6  # the best loss, whatever grades


def test_the_last_checkpoint_is_that_of_the_last_step():
    columns = of()
    assert (columns["metric_value"], columns["validation_metric"]) == (0.4, 0.7)
    assert columns["steps_to_target"] is None
    assert of(about=BY_LOSS)["validation_metric"] == 0.6


@pytest.mark.parametrize(("diverged_at", "step"), [(29, 20), (30, 30), (5, 0), (0, 0)])
def test_the_best_checkpoint_of_a_run_that_diverged_lies_before_the_event(diverged_at, step):
    """An event at step t is of the update after t others: t updates are before it."""
    assert of(diverged_at=diverged_at)["best_step"] == step


def test_a_run_that_ended_early_has_no_last_checkpoint():
    columns = of(steps=50, diverged_at=45)
    assert columns["metric_value"] is columns["validation_metric"] is None
    assert columns["best_step"] == 30


def test_what_is_not_finite_is_no_checkpoint():
    spoiled = [(0, 0.1, 2.3), (10, math.nan, 0.1), (40, 0.3, math.inf)]
    columns = of(spoiled)
    assert (columns["best_step"], columns["best_metric"]) == (40, 0.4)
    assert columns["validation_value"] == 0.1
    assert of([(0, math.nan, 2.3)])["best_step"] is None


def test_a_function_has_no_checkpoint_to_choose():
    columns = of(about=FUNCTION)
    assert columns["best_step"] is columns["best_metric"] is columns["best_validation"] is None
    assert columns["validation_metric"] == 0.6


def test_what_a_clip_left_is_a_median_over_the_steps_that_are_known():
    rows = np.full((5, len(measures.COLUMNS)), 2.0)
    rows[:, measures.KEPT] = [0.1, math.nan, 0.3, 0.2, 1.0]
    rows[:, measures.COSINE] = math.nan
    columns = summary.of_curve(rows)
    assert columns["kept_median"] == pytest.approx(0.25)
    assert columns["cosine_median"] is None
    assert summary.of_curve(rows[:0])["kept_median"] is None
