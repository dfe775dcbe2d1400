"""Schedules, beside torch's own."""

import pytest
import torch
from torch.optim import lr_scheduler

from clipbench import lr_schedules
from clipbench.errors import UsageError

STEPS = 40


def by_torch(build, steps=STEPS):
    """The learning rate, from 1, that a torch scheduler gives at each step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, found = build(optimizer), []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(
    ("schedule", "build"),
    [
        ("constant", lambda opt: lr_scheduler.ConstantLR(opt, factor=1.0)),
        ("cosine", lambda opt: lr_scheduler.CosineAnnealingLR(opt, T_max=STEPS)),
        (
            "cosine(floor=0.1)",
            lambda opt: lr_scheduler.CosineAnnealingLR(opt, T_max=STEPS, eta_min=0.1),
        ),
        ("polynomial", lambda opt: lr_scheduler.PolynomialLR(opt, total_iters=STEPS, power=0.9)),
        (
            "polynomial(power=2.0)",
            lambda opt: lr_scheduler.PolynomialLR(opt, total_iters=STEPS, power=2.0),
        ),
        (
            "step",
            lambda opt: lr_scheduler.MultiStepLR(
                opt, milestones=[STEPS // 2, 3 * STEPS // 4], gamma=0.1
            ),
        ),
        (
            "step(first=0.25, second=1.0, factor=0.5)",
            lambda opt: lr_scheduler.MultiStepLR(opt, milestones=[STEPS // 4], gamma=0.5),
        ),
        ("warm-up", lambda opt: lr_scheduler.LinearLR(opt, start_factor=1 / 4, total_iters=3)),
    ],
)
def test_a_schedule_is_what_torch_calls_by_its_name(schedule, build):
    assert lr_schedules.factors(schedule, STEPS) == pytest.approx(by_torch(build), rel=1e-12)


def test_a_warm_up_goes_before_any_schedule_and_leaves_it_the_other_steps():
    found = lr_schedules.factors("cosine(warm_up=0.25)", STEPS)
    assert found[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert found[10:] == lr_schedules.factors("cosine", 30)


@pytest.mark.parametrize("schedule", lr_schedules.KNOWN)
@pytest.mark.parametrize("steps", [1, 2, 7, 300])
def test_every_step_has_a_share_above_zero_and_none_is_above_one(schedule, steps):
    found = lr_schedules.factors(schedule, steps)
    assert len(found) == steps
    assert all(0 < share <= 1 for share in found)


def test_one_schedule_has_one_spelling():
    assert lr_schedules.canonical(" step( factor=0.10,first = .25 ) ", "here") == "step(first=0.25)"
    assert lr_schedules.canonical("polynomial(power=2)", "here") == "polynomial(power=2.0)"
    assert lr_schedules.canonical("cosine()", "here") == "cosine"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "cosin",
            (
                'here: there is no schedule "cosin". Did you mean cosine? There are: constant, '
                "warm-up, "
            ),
        ),
        (
            "cosine(flor=0.1)",
            (
                'here: the schedule "cosine" has no setting `flor`. It has: warm_up (number '
                "from 0 to "
                "1), floor"
            ),
        ),
        (
            "cosine(floor=2)",
            'here: the schedule "cosine" setting `floor` is 2.0, and must be a number from 0 to 1.',
        ),
        (
            "cosine(floor=low)",
            (
                "here: the schedule \"cosine\" setting `floor` is 'low', and must be a number "
                "from 0 to 1."
            ),
        ),
        (
            "cosine(floor)",
            (
                "here: the schedule \"cosine\" setting `floor` is '', and must be a number "
                "from 0 to 1."
            ),
        ),
        ("cosine(0.1", 'here: there is no schedule "cosine(0.1".'),
        ("polynomial(power=nan)", 'here: the schedule "polynomial" setting `power` is nan'),
    ],
)
def test_what_is_no_schedule_is_told_in_one_sentence(text, words):
    with pytest.raises(UsageError) as error:
        lr_schedules.canonical(text, "here")
    assert str(error.value).startswith(words)
