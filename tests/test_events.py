"""What a recorded curve is called: every kind of event at the very edge of its rule, and every
outcome.
"""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from clipbench import schema
from clipbench.events import (
    Evaluation,
    Event,
    Rules,
    Verdict,
    derive,
    ends,
    evaluated,
    judge,
    peak_ratio,
    rules_from,
    stationary_at,
)
from clipbench.measures import COLUMNS, GRAD_NORM, LOSS, UPDATE_NORM
from clipbench.schema import Outcome

NAN, INF = math.nan, math.inf


def curve(*losses):
    """A curve of healthy steps with these losses."""
    rows = np.tile([0.0, 1.0, 1.0, 1.0, 0.0, 0.1], (len(losses), 1))
    rows[:, LOSS] = losses
    return rows


def spoilt(column, step, value, steps=20):
    rows = curve(*[1.0] * steps)
    rows[step, column] = value
    return rows


def found(rows, reference=1.0, **others):
    """The events as (step, kind)."""
    return [(event.step, event.kind) for event in derive(rows, reference, **others)]


def verdict(rows, reference=1.0, outcome=Outcome.LEARNED, **others):
    return judge(derive(rows, reference, **others), outcome)


def above(value):
    return math.nextafter(value, INF)


def below(value):
    return math.nextafter(value, -INF)


# ------------------------------------------------------------------------------- what is not finite


@pytest.mark.parametrize(
    ("column", "value", "kind"),
    [
        (LOSS, NAN, "nonfinite_loss"),
        (LOSS, INF, "nonfinite_loss"),
        (LOSS, -INF, "nonfinite_loss"),
        (GRAD_NORM, NAN, "nonfinite_grad"),
        (UPDATE_NORM, NAN, "nonfinite_param"),
    ],
)
def test_a_value_that_is_not_finite_ends_the_run_and_is_named(column, value, kind):
    rows = spoilt(column, 7, value)
    assert found(rows) == [(7, kind)]
    assert ends(rows).tolist() == [step == 7 for step in range(20)]
    assert verdict(rows) == Verdict("diverged", "diverged", kind, 7)


def test_a_norm_that_overflows_is_no_gradient_that_is_not_finite():
    """Every element is finite: the run goes on, and the event says that a norm clip makes the
    gradient zero.
    """
    rows = spoilt(GRAD_NORM, 7, INF)
    assert found(rows) == [(7, "norm_overflow")]
    assert not ends(rows).any()


@pytest.mark.parametrize(("dtype", "size"), [("float32", 1e-22), ("float64", 1e-160)])
def test_a_norm_that_underflows_is_an_event_for_as_long_as_it_lasts(dtype, size):
    """Smaller than the root of the least number of its precision, and not zero; in float64
    float32's least is nothing yet.
    """
    norms = [1.0, size, size, 1.0, 0.0, 0.0, size, 1.0]
    rows = curve(*[0.5] * len(norms))
    rows[:, GRAD_NORM] = norms
    low = [event for event in derive(rows, 1.0, dtype=dtype) if event.kind == "norm_underflow"]
    assert [(event.step, event.value) for event in low] == [(1, size), (6, size)]
    assert judge(low, Outcome.LEARNED) == Verdict("completed", "learned")
    rows[:, GRAD_NORM] = 1e-100
    assert [event.step for event in derive(rows, 1.0, dtype="float64")] == []


def test_an_update_whose_norm_overflows_ends_nothing():
    rows = spoilt(UPDATE_NORM, 7, INF)
    assert found(rows) == []
    assert not ends(rows).any()


def test_an_overflow_counts_once_for_as_long_as_it_lasts():
    rows = curve(*[1.0] * 12)
    rows[[2, 3, 4, 8], GRAD_NORM] = INF
    assert found(rows) == [(2, "norm_overflow"), (8, "norm_overflow")]


def test_the_first_value_that_is_not_finite_is_the_reason():
    """Not the first in the list of kinds; of one step, the loss before the gradient before the
    parameters.
    """
    rows = spoilt(GRAD_NORM, 5, NAN)
    rows[9, LOSS] = NAN
    assert verdict(rows) == Verdict("diverged", "diverged", "nonfinite_grad", 5)
    rows[5, [LOSS, UPDATE_NORM]] = NAN
    assert verdict(rows) == Verdict("diverged", "diverged", "nonfinite_loss", 5)


# ------------------------------------------------------------------------------------------ blow-up


def hump(high, steps, *, at=20, length=200, low=0.5):
    """A curve that starts at 1 and is ``high`` for ``steps`` steps from ``at`` on."""
    losses = [1.0] + [low] * (length - 1)
    losses[at : at + steps] = [high] * steps
    return curve(*losses)


def blow_ups(rows, reference=1.0, **others):
    return [
        event for event in found(rows, reference, **others) if event[1] in ("blow_up", "recovered")
    ]


def test_ten_steps_above_the_line_are_a_blow_up_and_nine_are_none():
    assert blow_ups(hump(11.0, 9)) == []
    assert blow_ups(hump(11.0, 10)) == [(20, "blow_up"), (30, "recovered")]


def test_the_ten_steps_must_be_running():
    rows = hump(11.0, 19)
    rows[29, LOSS] = 1.0
    assert blow_ups(rows) == []


def test_a_blow_up_is_above_ten_times_not_at_it():
    assert blow_ups(hump(10.0, 10)) == []
    assert blow_ups(hump(above(10.0), 10)) != []


@pytest.mark.parametrize(("first", "reference"), [(1.0, 4.0), (4.0, 1.0)])
def test_the_line_is_ten_times_the_larger_of_first_and_reference_loss(first, reference):
    rows = hump(40.0, 10)
    rows[0, LOSS] = first
    assert blow_ups(rows, reference) == []
    rows[20:30, LOSS] = above(40.0)
    assert blow_ups(rows, reference) != []


@pytest.mark.parametrize(("high", "kinds"), [(4, ["blow_up", "recovered"]), (6, ["blow_up"])])
def test_a_run_has_recovered_when_the_median_of_its_last_twentieth_is_below_the_line(high, kinds):
    """Of 200 steps the last ten count: with four of them above the line it has, with six it has
    not.
    """
    rows = hump(11.0, 10)
    rows[200 - high :, LOSS] = 11.0
    assert [kind for _, kind in blow_ups(rows)] == kinds
    assert verdict(rows).status == ("completed" if "recovered" in kinds else "diverged")


def test_a_run_that_ends_in_its_blow_up_has_not_recovered():
    """Even where the blow-up is too short to move the median of the tail: there is nothing after
    it.
    """
    rows = hump(11.0, 10, at=990, length=1000)
    assert blow_ups(rows) == [(990, "blow_up")]
    assert verdict(rows) == Verdict("diverged", "diverged", "blow_up", 990)


def test_every_blow_up_is_told_and_the_recovery_once():
    rows = hump(11.0, 10)
    rows[60:75, LOSS] = 11.0
    assert blow_ups(rows) == [(20, "blow_up"), (60, "blow_up"), (75, "recovered")]


def test_an_unrecovered_blow_up_is_divergence_from_its_first_step_on():
    assert verdict(hump(11.0, 180)) == Verdict("diverged", "diverged", "blow_up", 20)


# -------------------------------------------------------------------------------------------- spike


def spikes(rows, reference=1.0, **others):
    return [step for step, kind in found(rows, reference, **others) if kind == "spike"]


def test_a_spike_is_above_five_times_the_median_not_at_it():
    assert spikes(curve(*[1.0] * 50, 5.0, 1.0)) == []
    assert spikes(curve(*[1.0] * 50, above(5.0), 1.0)) == [50]


def test_a_spike_rises_by_more_than_the_reference():
    """Without this half of the rule a loss near zero spikes all the time: five times almost
    nothing is almost nothing.
    """
    low = [0.015625] * 50
    assert spikes(curve(*low, 1.015625)) == []
    assert spikes(curve(*low, above(1.015625))) == [50]


def test_a_spike_has_fifty_steps_before_it():
    assert spikes(curve(*[1.0] * 49, 9.0, 1.0, 1.0)) == []
    assert spikes(curve(*[1.0] * 50, 9.0)) == [50]


@pytest.mark.parametrize(("low", "steps"), [(26, [150]), (24, [])])
def test_the_median_looks_back_on_fifty_steps_and_no_further(low, steps):
    """After a hundred steps at 100, a 6 is a spike once more than half of the last fifty are at
    1.
    """
    assert spikes(curve(*[100.0] * (150 - low), *[1.0] * low, 6.0)) == steps


def test_an_excursion_is_one_spike_however_long():
    assert spikes(curve(*[1.0] * 60, 9.0, 30.0, 9.0, *[1.0] * 9, 9.0, 1.0)) == [60, 72]


def test_a_spike_is_looked_for_above_the_optimum():
    """From a level of 1 above an optimum of 100, 106 is a spike; seen from zero it is a ripple."""
    rows = curve(*[101.0] * 50, 106.0)
    assert spikes(rows, 101.0, optimum=100.0) == [50]
    assert spikes(rows, 101.0) == []


def test_a_loss_below_zero_without_a_known_optimum_has_no_spikes():
    """Five times a negative median is no line to rise above."""
    assert spikes(curve(*[-0.5] * 50, *[-0.5, -0.4] * 10), reference=0.0) == []
    assert spikes(curve(*[-5.0] * 50, *[-5.0, -4.0] * 10), reference=None) == []


# ---------------------------------------------------------------------------------------- the ruler


def test_an_optimum_shifts_every_rule():
    """From 1 above an optimum of 10, the line lies at 20; seen from zero it would lie at 110."""
    rows = hump(20.5, 10)
    rows[:, LOSS] = [11.0] * 20 + [20.5] * 10 + [10.5] * 170
    assert blow_ups(rows, 11.0, optimum=10.0) == [(20, "blow_up"), (30, "recovered")]
    assert blow_ups(rows, 11.0) == []


def test_without_a_reference_the_first_loss_is_it():
    assert blow_ups(hump(10.5, 10), None) == blow_ups(hump(10.5, 10), 1.0) != []


def test_a_loss_unbounded_below_has_the_non_finite_rules_only():
    wild = [1.0] * 50 + [90.0] * 60 + [-1e9] * 20
    assert found(curve(*wild), unbounded=True) == []
    assert verdict(curve(*wild), unbounded=True) == Verdict("completed", "learned")
    assert found(curve(*wild)) != []
    assert found(curve(*wild, NAN), unbounded=True) == [(130, "nonfinite_loss")]
    assert verdict(curve(*wild, NAN), unbounded=True).diverged_at == 130


@pytest.mark.parametrize(
    ("changes", "rows", "kinds"),
    [
        ({"blow_up": 20.0}, hump(11.0, 10), []),
        ({"blow_up_steps": 3}, hump(11.0, 3), ["blow_up", "recovered"]),
        ({"spike": 2.0}, curve(*[1.0] * 50, 2.5), ["spike"]),
        ({"spike_window": 5}, curve(*[1.0] * 5, 9.0), ["spike"]),
        ({"tail": 0.5, "spike": 99.0}, hump(11.0, 105, at=20), ["blow_up", "recovered"]),
        ({"tail": 0.95, "spike": 99.0}, hump(11.0, 105, at=20), ["blow_up"]),
    ],
)
def test_a_study_may_move_every_line(changes, rows, kinds):
    assert [kind for _, kind in found(rows, rules=rules_from(changes))] == kinds


# ----------------------------------------------------------------------------------------- outcomes


@pytest.mark.parametrize("outcome", [Outcome.LEARNED, Outcome.STALLED, Outcome.COLLAPSED])
def test_a_run_that_did_not_diverge_has_the_outcome_of_its_evaluations(outcome):
    assert verdict(curve(*[1.0] * 100), outcome=outcome) == Verdict("completed", outcome)
    assert verdict(hump(11.0, 10), outcome=outcome) == Verdict("completed", outcome)
    assert verdict(spoilt(LOSS, 7, NAN), outcome=outcome).outcome == "diverged"


def test_an_evaluation_that_is_not_finite_is_an_event_once_for_every_split_and_metric():
    made = evaluated(
        [
            Evaluation(0, "validation", "loss", 0.5),
            Evaluation(10, "validation", "loss", math.inf),
            Evaluation(20, "validation", "loss", NAN),
            Evaluation(20, "validation", "roc_auc", 0.5),
            Evaluation(20, "test", "roc_auc", NAN),
            Evaluation(5, "test", "loss", 0.1),
        ]
    )
    assert [(event.step, event.kind, event.detail) for event in made] == [
        (10, "nonfinite_evaluation", "loss on the validation split is not finite"),
        (20, "nonfinite_evaluation", "roc_auc on the test split is not finite"),
    ]
    assert made[0].value == math.inf
    assert math.isnan(made[1].value)


# ----------------------------------------------------------------------------------- whatever comes


@pytest.mark.parametrize(
    "rows", [curve(), curve(1.0), curve(NAN), curve(INF)], ids=["zero", "one", "nan", "inf"]
)
@pytest.mark.parametrize("reference", [1.0, None])
@pytest.mark.parametrize("unbounded", [True, False])
def test_a_curve_of_one_step_or_none_has_a_verdict(rows, reference, unbounded):
    result = verdict(rows, reference, unbounded=unbounded)
    assert (result.status == "diverged") == bool(ends(rows).any())


any_float = st.floats(width=64)
near = st.sampled_from([0.0, 0.5, 1.0, 1.5, 9.0, 11.0, NAN, INF, -INF, 1e308, -1e308, 5e-324])
curves = st.integers(0, 90).flatmap(
    lambda steps: arrays.arrays(np.float64, (steps, len(COLUMNS)), elements=near | any_float)
)
finite = st.floats(-1e300, 1e300)


@given(curves, st.none() | finite, st.none() | finite, st.booleans())
@settings(max_examples=300)
def test_any_curve_has_sorted_events_and_a_verdict(rows, reference, optimum, unbounded):
    """Whatever numbers a run left, without a warning: events in the order of their steps, all of
    them steps of the curve.
    """
    events = derive(rows, reference, optimum, unbounded)
    steps = [event.step for event in events]
    assert steps == sorted(steps)
    assert all(0 <= step < len(rows) for step in steps)
    assert {event.kind for event in events} <= set(schema.Kind)
    result = judge(events, Outcome.STALLED)
    assert result.status in [*schema.Status]
    assert result.outcome in [*schema.Outcome]
    assert (
        (result.status == "diverged")
        == (result.reason is not None)
        == (result.diverged_at is not None)
    )
    if result.reason is not None:
        assert (result.diverged_at, result.reason) in {(event.step, event.kind) for event in events}
    if ends(rows).any():
        assert result.diverged_at == int(np.argmax(ends(rows)))


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=150), st.floats(0.1, 100))
def test_scaling_a_loss_and_its_reference_changes_no_event(losses, reference):
    """The rules know ratios only (powers of two, so that no rounding is in the way)."""
    plain, scaled = curve(*losses), curve(*(1024 * loss for loss in losses))
    assert found(plain, reference) == found(scaled, 1024 * reference)
    assert verdict(plain, reference) == verdict(scaled, 1024 * reference)


def test_an_event_carries_the_value_the_rule_looked_at():
    [blow_up, recovered] = [event for event in derive(hump(11.0, 10), 1.0) if event.kind != "spike"]
    assert blow_up == Event(
        20,
        "blow_up",
        11.0,
        "above 10, 10 times the larger of first and reference loss, for 10 steps running",
    )
    assert (recovered.step, recovered.value) == (30, 0.5)


def test_a_changed_rule_that_there_is_no_more_is_passed_over():
    """A stored cell may have changed it."""
    assert rules_from({"left_below": 0.5, "spike": 3.0}) == Rules(spike=3.0)


def test_the_rules_are_the_agreed_ones():
    """Cells without changes of their own carry no thresholds in their identity: these numbers
    can never move.
    """
    assert vars(Rules()) == {
        "blow_up": 10.0,
        "blow_up_steps": 10,
        "spike": 5.0,
        "spike_window": 50,
        "tail": 0.05,
    }


# ---------------------------------------------------------------------------- peaks and flat ground


def test_peaks_are_those_of_the_last_half_above_the_optimum():
    rows = np.ones((10, 6))
    rows[:, LOSS] = [9.0, 80.0, 7.0, 6.0, 5.0, 3.0, 3.0, 11.0, 3.0, 3.0]
    assert peak_ratio(rows, None) == pytest.approx(11 / 3)
    assert peak_ratio(rows, 1.0) == pytest.approx(10 / 2)
    assert peak_ratio(rows[:1], None) == 1.0


@pytest.mark.parametrize("losses", [[], [1.0, math.inf], [1.0, math.nan], [1.0, 0.0]], ids=str)
def test_where_there_is_no_ratio_there_is_none(losses):
    assert (
        peak_ratio(np.array([[loss, 1, 1, 1, 0, 1] for loss in losses]).reshape(-1, 6), None)
        is None
    )


def test_a_run_is_stationary_from_its_first_short_gradient_on():
    rows = np.ones((4, 6))
    assert stationary_at(rows) is None
    rows[2:, GRAD_NORM] = [1e-3, math.nan]
    assert stationary_at(rows) == 2
