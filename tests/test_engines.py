"""The loop is the loop a user would write, to the bit; what it records is what happened; and
every method meets the same luck.
"""

import hashlib
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import test_feed
import torch
from packaged import CLIPS
from strangers import EMA, SIGNUM
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from clipbench import (
    clip,
    clips,
    engines,
    feed,
    measures,
    metrics,
    optimizer,
    optimizers,
    registry,
    summary,
    trees,
    workload,
    workloads,
)
from clipbench.cell import Cell, Part
from clipbench.engines import Components, Job, Trainer, lanes, pilot, run, shares
from clipbench.engines.program import NoLanes
from clipbench.errors import UsageError
from clipbench.measures import CHANGED, COSINE, GRAD_NORM, KEPT, LOSS, UPDATE_NORM

__all__ = ["clips", "optimizers", "workloads"]  # imported because that registers them

# What a user writes for each packaged optimizer and clip.
BY_HAND = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.05),
    "momentum": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9),
    "nesterov": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9, nesterov=True),
    "rmsprop": lambda params: torch.optim.RMSprop(params, lr=0.05),
    "adam": lambda params: torch.optim.Adam(params, lr=0.05),
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.05),
}
CLIPPED = {
    "none": ({}, list),
    "value": ({"max_value": 0.01}, lambda params: clip_grad_value_(params, 0.01)),
    "norm": ({"max_norm": 0.1}, lambda params: clip_grad_norm_(params, 0.1)),
    "layer": (
        {"max_norm": 0.05},
        lambda params: [clip_grad_norm_([param], 0.05) for param in params],
    ),
}
# origin is digits, enlarged: too slow to be worth its turn everywhere
NAMES = ["wdbc", "digits", "temporal-order", "cosh"]
ALL = [*NAMES, "origin"]


def part(kind, name, **settings):
    cls = registry.find(kind, name)
    return Part(
        name, cls.version, settings, registry.threshold_field(cls) if kind == "clip" else None
    )


def cell(
    problem="wdbc", rule="sgd", method="none", *, lr=0.05, seed=0, steps=30, batch=20, **others
):
    """A cell of packaged or registered components; a component with settings is given as (name,
    settings).
    """
    parts = [
        part(
            kind,
            *([one] if isinstance(one, str) else one[:1]),
            **({} if isinstance(one, str) else one[1]),
        )
        for kind, one in zip(registry.KINDS, (problem, rule, method), strict=True)
    ]
    return Cell(*parts, lr, seed, steps, batch, **others)


def record(*args, **others):
    """The record of a cell that must not fail."""
    one = cell(*args, **others)
    made = run(Job(one, one.clip_settings()))
    assert made.failure is None
    return made


def losses(*args, **others):
    return record(*args, **others).rows[:, LOSS].tolist()


@pytest.fixture
def quadratic():
    """A stranger's analytic function, ‖x‖²/2 from x = 1 in one dimension: every number of a
    descent is known by hand.
    """

    @workload("quadratic")
    class Quadratic:
        """Half a square."""

        start: float = 1.0

        metric = metrics.log10_gap
        reference_loss = None
        optimum = 0.0
        target = 0.125

        def data(self):
            still = torch.zeros(1, 1), torch.zeros(1)
            return {"validation": still, "test": still}

        def sample(self, generator):
            return torch.zeros(1, 1), torch.zeros(1)

        def model(self):
            return HalfSquare(self.start)

    return Quadratic


class HalfSquare(nn.Module):
    def __init__(self, start):
        super().__init__()
        self.x = nn.Parameter(torch.tensor([start]))

    def forward(self, inputs):
        return (self.x * self.x).sum() / 2


# ---------------------------------------------------------------------------------- the loop itself


@pytest.mark.parametrize("rule", BY_HAND)
@pytest.mark.parametrize("method", CLIPPED)
def test_the_loop_is_what_a_user_would_write(rule, method):
    """torch's own class, torch's own clip, ``loss.item()``: thirty losses on wdbc, bit for bit."""
    settings, clip_by_hand = CLIPPED[method]
    work = registry.build("workload", "wdbc", {})
    model = feed.model(work, 3)
    steps = BY_HAND[rule](model.parameters())
    expected = []
    for inputs, targets in feed.batches(work, 3, 20, 30):
        steps.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        clip_by_hand([*model.parameters()])
        steps.step()
        expected.append(loss.item())
    assert losses("wdbc", rule, (method, settings), seed=3) == expected


def test_a_schedule_is_torchs_scheduler_beside_the_optimizer():
    model = feed.model(registry.build("workload", "wdbc", {}), 3, torch.float64)
    steps = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(steps, T_max=30)
    expected = []
    for inputs, targets in feed.batches(
        registry.build("workload", "wdbc", {}), 3, 20, 30, torch.float64
    ):
        steps.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        steps.step()
        schedule.step()
        expected.append(loss.item())
    made = losses("wdbc", ("momentum", {"schedule": "cosine"}), seed=3, dtype="float64")
    assert made == pytest.approx(expected, rel=1e-10)
    assert made != pytest.approx(losses("wdbc", "momentum", seed=3, dtype="float64"), rel=1e-4)


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_data_that_spoil_an_evaluation_do_not_spoil_the_verdict(split, value, monkeypatch):
    """The run learns as it does without them, in both engines, and an event says which
    evaluation was not finite, and when.
    """
    sound = record("wdbc", "momentum", steps=60)
    assert sound.verdict.outcome == "learned"
    whole = feed.splits

    def spoiled(*given):
        found = dict(whole(*given))
        inputs, targets = found[split]
        found[split] = (inputs.index_fill(0, torch.tensor([3]), value), targets)
        return found

    monkeypatch.setattr(feed, "splits", spoiled)
    one = cell("wdbc", "momentum", steps=60)
    for made in (run(Job(one, {})), *lanes.run([Job(one, {})])):
        assert made.verdict == sound.verdict
        event = next(event for event in made.events if event.kind == "nonfinite_evaluation")
        name = {"validation": "loss", "test": "roc_auc"}[split]
        assert (event.step, event.detail) == (0, f"{name} on the {split} split is not finite")


def test_a_batch_taken_in_parts_has_the_gradient_of_the_whole(monkeypatch):
    """In float64 to rounding, loss included; and the model never sees more than a part."""
    whole = record("digits", "momentum", ("norm", {"max_norm": 0.1}), dtype="float64")
    # which looks at whole batches, once
    shares.apart(registry.build("workload", "digits", {}), 20, 4)
    seen = []
    forward = nn.Conv2d.forward
    monkeypatch.setattr(
        nn.Conv2d,
        "forward",
        lambda self, inputs: (seen.append(len(inputs)), forward(self, inputs))[1],
    )
    parts = record(
        ("digits", {"accumulate": 4}), "momentum", ("norm", {"max_norm": 0.1}), dtype="float64"
    )
    np.testing.assert_allclose(parts.rows, whole.rows, rtol=1e-9, atol=1e-12)
    assert seen.count(5) == 2 * 4 * 30


def test_a_clip_on_the_update_of_plain_descent_is_one_on_its_gradient():
    """There the two are one vector; the loop steps its own class in one case and the pure rule
    in the other.
    """
    for name, settings in (("value", {"max_value": 0.01}), ("norm", {"max_norm": 0.1})):
        made = [
            record("wdbc", "sgd", (name, {**settings, **on}), dtype="float64").rows
            for on in ({}, {"on": "update"})
        ]
        np.testing.assert_allclose(*made, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("rule", ["momentum", "adam", "rmsprop"])
def test_a_clip_on_the_update_bounds_every_step(rule):
    """Whatever the rule makes of its gradients: with a value clip at c no weight moves more than
    lr·c.
    """
    one = cell(
        "wdbc", rule, ("value", {"max_value": 0.5, "on": "update"}), lr=0.01, dtype="float64"
    )
    trainer = Trainer(Components.of(Job(one, one.clip_settings())), one)
    largest = 0.0
    for batch in feed.batches(trainer.workload, 0, 20, 10, torch.float64):
        before = [param.detach().clone() for param in trainer.module.parameters()]
        trainer.step(*batch)
        moved = [
            (now - then).abs().max().item()
            for now, then in zip(trainer.module.parameters(), before, strict=True)
        ]
        largest = max(largest, *moved)
    assert largest <= 0.005 * (1 + 1e-9)
    rows = trainer.meter.rows()
    assert (rows[:, CHANGED] > 0).any() == (largest == pytest.approx(0.005))


def test_the_gradients_norm_is_the_gradients_whatever_is_clipped():
    """``kept`` compares the update with the clipped one: its length is c where that is a norm
    clip.
    """
    rows = record(
        "wdbc", "adam", ("norm", {"max_norm": 1.0, "on": "update"}), lr=0.01, dtype="float64"
    ).rows
    plain = record("wdbc", "adam", lr=0.01, dtype="float64").rows
    assert rows[0, GRAD_NORM] == plain[0, GRAD_NORM]
    # Adam's first update has the length of a sign vector, the root of the number of weights (a few
    # are zero).
    assert rows[0, KEPT] == pytest.approx(0.01 / plain[0, UPDATE_NORM], rel=1e-5)
    assert rows[0, UPDATE_NORM] == pytest.approx(0.01, rel=1e-5)


def test_a_clip_on_examples_is_a_loop_over_them():
    """Backward, clip, add up: one example after the other, as one writes it without per-sample
    gradients.
    """
    work = registry.build("workload", "digits", {})
    model = feed.model(work, 3, torch.float64)
    steps = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    expected = []
    for inputs, targets in feed.batches(work, 3, 20, 10, torch.float64):
        total, value = [torch.zeros_like(param) for param in model.parameters()], 0.0
        for number in range(len(inputs)):
            model.zero_grad()
            loss = nn.functional.cross_entropy(
                model(inputs[number : number + 1]), targets[number : number + 1]
            )
            loss.backward()
            clip_grad_norm_(model.parameters(), 0.2)
            total = [
                mean + param.grad / len(inputs)
                for mean, param in zip(total, model.parameters(), strict=True)
            ]
            value += loss.item() / len(inputs)
        for mean, param in zip(total, model.parameters(), strict=True):
            param.grad = mean
        steps.step()
        expected.append(value)
    made = record(
        "digits",
        "momentum",
        ("norm", {"max_norm": 0.2, "on": "example"}),
        seed=3,
        steps=10,
        dtype="float64",
    )
    assert made.rows[:, LOSS].tolist() == pytest.approx(expected, rel=1e-9)
    assert (made.rows[:, KEPT] < 0.9).all()


def test_one_example_alone_is_clipped_as_its_batch():
    made = [
        record(
            "digits", "sgd", ("norm", {"max_norm": 0.2, **on}), batch=1, steps=10, dtype="float64"
        ).rows
        for on in ({}, {"on": "example"})
    ]
    np.testing.assert_allclose(*made, rtol=1e-9, atol=1e-12)


def test_parts_of_a_batch_change_nothing_for_single_examples():
    """But what it takes to hold them: parts of other sizes add up to the same mean."""
    made = [
        record(
            ("digits", parts),
            "sgd",
            ("norm", {"max_norm": 0.2, "on": "example"}),
            batch=20,
            steps=10,
            dtype="float64",
        ).rows
        for parts in ({}, {"accumulate": 4})
    ]
    np.testing.assert_allclose(*made, rtol=1e-9, atol=1e-12)


def test_a_model_that_mixes_examples_has_no_clip_on_one():
    """BatchNorm: the record says so, and the matrix goes on."""

    @workload("normalised")
    class Normalised(type(registry.build("workload", "wdbc", {}))):
        def model(self):
            return nn.Sequential(nn.BatchNorm1d(30), nn.Linear(30, 2))

    try:
        one = cell("normalised", "sgd", ("norm", {"max_norm": 0.2, "on": "example"}))
        assert "its model has BatchNorm" in run(Job(one, one.clip_settings())).failure
    finally:
        registry._tables["workload"].pop("normalised")


def test_under_autocast_weights_losses_and_updates_stay_in_float32():
    one = cell("wdbc", "momentum", dtype="bfloat16-mixed")
    trainer = Trainer(Components.of(Job(one, {})), one)
    seen = []
    trainer.module[0].register_forward_hook(lambda *call: seen.append(call[-1].dtype))
    for batch in feed.batches(trainer.workload, 0, 20, 3):
        trainer.step(*batch)
    assert seen == [torch.bfloat16] * 3
    assert {param.dtype for param in trainer.module.parameters()} == {torch.float32}
    made, plain = record("wdbc", "momentum", dtype="bfloat16-mixed"), record("wdbc", "momentum")
    assert made.rows[0, LOSS] != torch.tensor(made.rows[0, LOSS]).bfloat16().item()
    np.testing.assert_allclose(made.rows[:10, LOSS], plain.rows[:10, LOSS], rtol=3e-2)
    assert made.rows[0, LOSS] != plain.rows[0, LOSS]


def test_every_packaged_optimizer_and_clip_has_its_loop_by_hand():
    """So that a new one is not forgotten above; of clips those that torch has."""
    for kind, known in (("optimizer", BY_HAND), ("clip", CLIPPED)):
        ours = {name: registry.find(kind, name) for name in registry.names(kind)}
        packaged = {
            name: found for name, found in ours.items() if found.__module__.startswith("clipbench.")
        }
        assert set(known) == {
            name
            for name, found in packaged.items()
            if kind == "optimizer" or hasattr(found, "clip_")
        } | {name for name in packaged if name == "none"}


def test_any_optimizer_of_torch_runs_as_it_is():
    work = registry.build("workload", "wdbc", {})
    model = feed.model(work, 0)
    steps = torch.optim.NAdam(model.parameters(), lr=0.05, momentum_decay=0.01)
    expected = []
    for inputs, targets in feed.batches(work, 0, 20, 10):
        steps.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        steps.step()
        expected.append(loss.item())
    named = replace(
        cell(steps=10), optimizer=Part("torch.optim.NAdam", 1, {"momentum_decay": 0.01})
    )
    made = run(Job(named, {}))
    assert made.failure is None
    assert made.rows[:, LOSS].tolist() == expected


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_step_of_every_workload_is_recorded(name, dtype):
    made = record(name, "momentum", ("norm", {"max_norm": 0.1}), lr=1e-3, steps=12, dtype=dtype)
    assert made.rows.shape == (12, len(measures.COLUMNS))
    assert np.isfinite(made.rows).all()
    assert made.verdict.status == "completed"
    assert {one.split for one in made.evaluations} == {"validation", "test"}
    assert (made.threshold, made.metric) == (
        0.1,
        metrics.name_of(registry.build("workload", name, {}).metric),
    )


# ------------------------------------------------------------------------------------ the same luck


@pytest.mark.parametrize("name", NAMES)
def test_no_method_has_other_weights_or_data(name):
    """At a learning rate too small to move a weight, four losses in a row are the same bits,
    whatever the optimizer and clip.
    """
    points = product(BY_HAND, [(method, settings) for method, (settings, _) in CLIPPED.items()])
    found = {tuple(losses(name, rule, method, lr=1e-30, steps=4)) for rule, method in points}
    assert len(found) == 1
    assert name == "cosh" or len({*found.pop()}) > 1  # cosh's noise is on its gradient alone


def test_another_seed_is_other_luck():
    assert losses(steps=1) != losses(seed=1, steps=1)


def digest(name):
    """A cell's curve and evaluations, down to the bit."""
    steps, batch = (3, 8) if name == "origin" else (10, 20)
    made = record(
        name, "adam", ("norm", {"max_norm": 0.1}), lr=0.01, steps=steps, batch=batch, evaluations=2
    )
    values = np.array([one.value for one in made.evaluations])
    return hashlib.sha256(made.rows.tobytes() + values.tobytes()).hexdigest()


@pytest.fixture(scope="module")
def elsewhere():
    """Workload → digest, of draws and of records, by another process: the other way round, with
    another salt for its hashes.
    """
    program = """
import json, test_engines, test_feed
records = {name: test_engines.digest(name) for name in reversed(test_engines.ALL)}
draws = {name: test_feed.digest(name) for name in reversed(test_feed.NAMES)}
print(json.dumps([draws, records]))
"""
    places = os.pathsep.join(place for place in [str(Path(__file__).parent), *sys.path] if place)
    environment = {
        **os.environ,
        "PYTHONPATH": places,
        "PYTHONHASHSEED": "7",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_a_second_process_draws_the_same_bits(elsewhere):
    """Nothing hangs on the process: not the salt of its hashes, not the order of its draws."""
    assert elsewhere[0] == {name: test_feed.digest(name) for name in test_feed.NAMES}


def test_a_second_process_records_the_same_bits(elsewhere):
    """One cell of every workload."""
    here = {name: digest(name) for name in ALL}
    assert elsewhere[1] == here
    assert len(set(here.values())) == len(ALL)


# --------------------------------------------------------------------------- divergence and failure


def test_a_clip_that_remembers_the_weights_remembers_them_as_they_were():
    """It is handed the weights themselves, not a copy at every step: what it keeps of them, or
    of a part, must stay.
    """

    class Wandered:
        """Scale by how far the weights have moved since the start."""

        def init(self, params):
            return {"start": params["w"], "row": {"first": params["w"][0]}}

        def update(self, grads, state, params):
            moved = (params["w"] - state["start"]).norm() + (
                params["w"][0] - state["row"]["first"]
            ).norm()
            return {"w": grads["w"] * moved}, {
                "start": params["w"].T,
                "row": {"first": state["row"]["first"]},
            }

    weight = nn.Parameter(torch.zeros(2, 2))
    clip_gradient = engines.clipper(Wandered(), {"w": weight})
    for gone in (0.0, 3.0, 3.0):
        weight.data.add_(gone)
        weight.grad = torch.ones(2, 2)
        clip_gradient()
        row = weight.detach()[0].norm().item()
        assert weight.grad[0, 0].item() == pytest.approx(2 * gone + row)


def test_descent_with_lr_3_on_a_quadratic_diverges_and_keeps_its_curve(quadratic):
    """x doubles at every step: 4ⁿ/2 passes the largest float32 at step 64, which is the last
    row; its norm overflows there too.
    """
    made = record("quadratic", lr=3.0, steps=200)
    assert made.rows[:64, LOSS].tolist() == [4.0**step / 2 for step in range(64)]
    assert len(made.rows) == 65
    assert made.rows[64, LOSS] == math.inf
    assert (made.verdict.status, made.verdict.outcome) == ("diverged", "diverged")
    assert (made.verdict.reason, made.verdict.diverged_at) == ("nonfinite_loss", 64)
    assert [(event.step, event.kind) for event in made.events] == [
        (2, "blow_up"),
        (50, "spike"),
        (64, "nonfinite_loss"),
        (64, "norm_overflow"),
    ]


def test_a_run_that_blows_up_and_stays_finite_runs_to_its_end(quadratic):
    """Only a value that is not finite ends a cell early."""
    made = record("quadratic", lr=3.0, steps=40)
    assert len(made.rows) == 40
    assert (made.verdict.status, made.verdict.reason, made.verdict.diverged_at) == (
        "diverged",
        "blow_up",
        2,
    )
    assert made.evaluations[-1][:2] == (40, "test")


def test_a_diverged_run_has_no_evaluation_after_it(quadratic):
    made = record("quadratic", lr=3.0, steps=190)
    assert {step for step, *_ in made.evaluations} == {0, 10, 20, 30, 40, 50, 60}
    columns = summary.of_evaluations(made.evaluations, made.metric, made.about, 190, 64)
    assert columns["metric_value"] is columns["validation_metric"] is None


@pytest.mark.parametrize("evaluations", [1, 3, 20])
def test_the_curve_ends_with_its_first_non_finite_step_however_rarely_one_looks(
    quadratic, evaluations
):
    assert len(record("quadratic", lr=3.0, steps=100, evaluations=evaluations).rows) == 65


def test_changed_rules_reach_the_run(quadratic):
    made = record("quadratic", lr=3.0, steps=40, events={"blow_up": 100.0, "blow_up_steps": 5})
    assert made.verdict.diverged_at == 4


@pytest.mark.parametrize(
    "method", [("none", {}), ("value", {"max_value": 1.0})], ids=["none", "value"]
)
def test_the_last_step_of_a_diverged_run_is_not_clipped_by_its_nan(method):
    """Without a clip nothing is changed, and what a clip makes of a NaN is not told."""
    made = record("wdbc", "sgd", method, lr=1e20)
    assert made.verdict.status == "diverged"
    assert math.isnan(made.rows[-1, GRAD_NORM])
    np.testing.assert_equal(made.rows[-1, CHANGED], 0.0 if method[0] == "none" else math.nan)
    assert not made.rows[-1, CHANGED] > 0


def broken(hook, *, at=0):
    """Registers components of which one raises in one of its hooks, at one of its calls."""
    calls = []

    def raises(name):
        if name == hook:
            calls.append(name)
            if len(calls) > at:
                raise ValueError(f"no {name}\ntoday")

    @workload("breaking")
    class Breaking:
        metric = metrics.log10_gap
        reference_loss = 1.0

        def data(self):
            raises("data")
            return dict.fromkeys(("train", "validation", "test"), (torch.ones(8, 1), torch.ones(8)))

        def model(self):
            raises("model")
            return nn.Linear(1, 1)

        def loss(self, output, target):
            raises("loss")
            return (output.flatten() - target).square().mean()

    @optimizer("breaking")
    class BreakingRule:
        def init(self, params):
            raises("init")
            return {}

        def update(self, grads, state, params):
            raises("update")
            return grads, state

    @clip("breaking")
    class BreakingClip:
        def update(self, grads, state, params):
            raises("clip")
            return grads, state

    return cell("breaking", "breaking", "breaking", steps=10, batch=4)


@pytest.mark.parametrize("hook", ["data", "model", "loss", "init", "update", "clip"])
@pytest.mark.parametrize("at", [0, 5])
def test_a_component_that_raises_makes_a_record_that_says_so(hook, at):
    """On one line, with the exception's name; the matrix goes on."""
    one = broken(hook, at=at)
    made = run(Job(one, {}))
    if at and hook in ("data", "model", "init"):  # called once
        assert made.failure is None
    else:
        assert made.failure == f"ValueError: no {hook} today"
        assert made.verdict is None


def test_a_component_that_is_not_there_makes_a_record_that_says_so():
    made = run(Job(replace(cell(), workload=Part("gone", 1)), {}))
    assert made.failure.startswith('there is no workload "gone"')


def test_a_batch_larger_than_the_data_makes_a_record_that_says_so():
    assert "a batch of 9999 is larger than its" in run(Job(cell(batch=9999), {})).failure


def test_what_a_model_raises_after_it_diverged_is_no_failure():
    """The steps that follow a non-finite one, until somebody looks, may raise anything: the run
    had ended before them.
    """

    @workload("touchy")
    class Touchy:
        metric = metrics.log10_gap
        reference_loss = None

        def data(self):
            return {
                "validation": (torch.zeros(1, 1), torch.zeros(1)),
                "test": (torch.zeros(1, 1), torch.zeros(1)),
            }

        def sample(self, generator):
            return torch.zeros(1, 1), torch.zeros(1)

        def model(self):
            return TouchySquare(1.0)

    made = record("touchy", lr=3.0, steps=200, evaluations=2)
    assert (len(made.rows), made.verdict.reason, made.verdict.diverged_at) == (
        65,
        "nonfinite_loss",
        64,
    )


class TouchySquare(HalfSquare):
    def forward(self, inputs):
        if self.x.abs().item() > 2.0**64:
            raise ValueError("the weights are too large")
        return super().forward(inputs)


# -------------------------------------------------------------------------------------- evaluations


@pytest.mark.parametrize(
    ("steps", "evaluations", "at"),
    [
        (95, 20, [*range(0, 96, 5)]),
        (7, 20, [*range(8)]),
        (1, 20, [0, 1]),
        (30, 1, [0, 30]),
        (10, 4, [0, 3, 7, 10]),
        (
            300,
            20,
            [
                0,
                16,
                32,
                47,
                63,
                79,
                95,
                111,
                126,
                142,
                158,
                174,
                189,
                205,
                221,
                237,
                253,
                268,
                284,
                300,
            ],
        ),
    ],
)
def test_evaluations_are_first_last_and_as_many_as_were_asked_for(
    quadratic, steps, evaluations, at
):
    """The untrained model, then at most so many, evenly spread; on test the metric alone before
    the last step.
    """
    made = record("quadratic", lr=0.5, steps=steps, evaluations=evaluations)
    seen = {
        split: {
            name: [one.step for one in made.evaluations if one[1:3] == (split, name)]
            for name in ("loss", made.metric)
        }
        for split in ("validation", "test")
    }
    assert seen["validation"] == {"loss": at, made.metric: at}
    assert seen["test"] == {"loss": [steps], made.metric: at}


def test_how_often_one_evaluates_changes_no_step():
    assert losses("digits", "adam", evaluations=1) == losses("digits", "adam", evaluations=20)


def test_an_evaluation_is_of_the_whole_split_and_of_every_metric():
    """wdbc: the loss, ROC AUC and accuracy of the trained model, taken again from its weights."""
    one = cell(steps=25, evaluations=5)
    made = record(steps=25, evaluations=5)
    trainer = Trainer(Components.of(Job(one, {})), one)
    for inputs, targets in feed.batches(trainer.workload, 0, 20, 25):
        trainer.step(inputs, targets)
    for split in ("validation", "test"):
        inputs, targets = feed.splits(trainer.workload, 0)[split]
        with torch.no_grad():
            output = trainer.module(inputs)
        expected = {
            "loss": nn.functional.cross_entropy(output, targets).item(),
            "roc_auc": metrics.roc_auc(output, targets),
            "accuracy": metrics.accuracy(output, targets),
        }
        found = {
            one.metric: one.value
            for one in made.evaluations
            if (one.step, one.split) == (25, split)
        }
        assert found == pytest.approx(expected, rel=1e-6)


def test_a_model_is_evaluated_as_one_evaluates_and_trained_as_one_trains():
    """Dropout and batch statistics are switched off and on again."""
    modes = []

    class Watched(nn.Linear):
        def forward(self, inputs):
            modes.append((self.training, len(inputs)))
            return super().forward(inputs)

    @workload("watched")
    class Watching:
        metric = metrics.log10_gap
        reference_loss = 1.0

        def data(self):
            return {
                "train": (torch.ones(8, 1), torch.ones(8)),
                **dict.fromkeys(("validation", "test"), (torch.ones(3, 1), torch.ones(3))),
            }

        def model(self):
            return Watched(1, 1)

        def loss(self, output, target):
            return (output.flatten() - target).square().mean()

    record("watched", steps=4, batch=2, evaluations=3)
    evaluated, trained = [(False, 3)] * 2, [(True, 2)] * 2  # validation and test
    assert modes == [*evaluated, *trained, *evaluated, *trained, *evaluated]


def test_chance_inside_a_model_belongs_to_the_seed_and_not_to_the_worker():
    """Dropout: the same cell has the same bits whatever ran before it in the process, and every
    method meets the same luck.
    """

    @workload("dropping")
    class Dropping:
        metric = metrics.accuracy
        reference_loss = math.log(2)

        def data(self):
            inputs = torch.linspace(-1, 1, 64).reshape(32, 2)
            return dict.fromkeys(
                ("train", "validation", "test"), (inputs, (inputs.sum(1) > 0).long())
            )

        def model(self):
            return nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 2))

        def loss(self, output, target):
            return nn.functional.cross_entropy(output, target)

    first = losses("dropping", "sgd", lr=0.1, batch=8)
    losses("dropping", "adam", lr=0.1, batch=8, seed=1)
    assert losses("dropping", "sgd", lr=0.1, batch=8) == first
    assert losses("dropping", "adam", lr=0.1, batch=8)[0] == first[0]
    assert losses("dropping", "sgd", lr=0.1, batch=8, seed=1) != first


def reached(made):
    """The steps to the target of a run of eight."""
    return summary.of_evaluations(made.evaluations, made.metric, made.about, 8)["steps_to_target"]


@pytest.mark.parametrize(
    ("evaluations", "steps_to_target"), [(9, 2), (5, 2), (3, 4), (2, 8), (1, 8)]
)
def test_steps_to_target_are_the_updates_before_the_first_evaluation_that_met_it(
    quadratic, evaluations, steps_to_target
):
    """With lr 1/2 the loss is 2/4ⁿ, and meets .125 exactly after two updates; a coarser look
    finds it later.
    """
    made = record(("quadratic", {"start": 2.0}), lr=0.5, steps=8, evaluations=evaluations)
    assert reached(made) == steps_to_target


def test_a_target_never_met_is_none_and_one_met_at_the_start_takes_no_step(quadratic):
    assert reached(record(("quadratic", {"start": 2.0}), lr=1e-6, steps=8)) is None
    assert reached(record(("quadratic", {"start": 0.5}), lr=1e-6, steps=8)) == 0


# --------------------------------------------------------------------------------------- thresholds


def gradient_sizes(name, batch, seed, percentile=50):
    """The sizes that clips measure, over a hundred Adam steps at lr 1e-3, by hand and in
    float64.
    """
    work = registry.build("workload", name, {})
    model = feed.model(work, seed)
    adam = torch.optim.Adam(model.parameters(), lr=1e-3)
    sizes = {"norm": [], "value": [], "layer": []}
    for inputs, targets in feed.batches(work, seed, batch, 100):
        adam.zero_grad()
        feed.loss_of(work, model(inputs), targets).backward()
        leaves = [param.grad.double().numpy().ravel() for param in model.parameters()]
        whole = np.concatenate(leaves)
        sizes["norm"].append(np.linalg.norm(whole))
        sizes["value"].append(np.abs(whole).max())
        sizes["layer"].append(max(np.linalg.norm(leaf) for leaf in leaves))
        adam.step()
    return {label: float(f"{np.percentile(some, percentile):.3g}") for label, some in sizes.items()}


@pytest.mark.parametrize("name", ["wdbc", "temporal-order"])
def test_a_pilot_takes_the_median_size_over_a_hundred_adam_steps(name):
    """To three digits, as each clip measures size: 2-norm, largest element, largest tensor. All
    clips from one run.
    """
    built = {"norm": clips.Norm(1.0), "value": clips.Value(1.0), "layer": clips.Layer(1.0)}
    assert pilot(cell(name), built) == gradient_sizes(name, 20, engines.PILOT_SEED)
    sizes = [gradient_sizes(name, 20, engines.PILOT_SEED, wanted) for wanted in (90, 0)]
    wanted = {"norm": 90.0, "value": 0.0}
    assert pilot(cell(name), built, wanted) == {
        **gradient_sizes(name, 20, engines.PILOT_SEED),
        "norm": sizes[0]["norm"],
        "value": sizes[1]["value"],
    }


def test_a_pilot_has_a_seed_of_its_own():
    """Neither the cell's nor one that a study could ever use, and nothing else of the cell
    matters but what it is trained on.
    """
    one = {"norm": clips.Norm(1.0)}
    expected = pilot(cell(), one)
    assert (
        pilot(cell("wdbc", "adam", ("value", {"max_value": 1e-9}), lr=9.0, seed=5, steps=3), one)
        == expected
    )
    assert pilot(cell(batch=5), one) != expected
    assert gradient_sizes("wdbc", 20, 0)["norm"] != expected["norm"]
    assert engines.PILOT_SEED > 1_000_000


@pytest.mark.parametrize(
    ("unit", "dtype"),
    [(1e-25, "float32"), (1e25, "float32"), (1e-200, "float64"), (1e200, "float64")],
)
def test_a_pilot_is_free_of_the_gradients_unit(unit, dtype, monkeypatch):
    """A loss in another unit has thresholds in that unit, though squares leave the range, and
    Adam adds 1e-8 to its size.
    """
    wdbc = registry.find("workload", "wdbc")
    plain, loss = cell(dtype=dtype), wdbc.loss
    built = {
        "norm": clips.Norm(1.0),
        "value": clips.Value(1.0),
        "layer": clips.Layer(1.0),
        "rms": clips.BlockRMS(1.0),
    }
    expected = pilot(plain, built)
    monkeypatch.setattr(wdbc, "loss", lambda *given: loss(*given) * unit)
    assert {label: size / unit for label, size in pilot(plain, built).items()} == pytest.approx(
        expected, rel=5e-3
    )


class Given(nn.Module):
    def __init__(self, shapes):
        super().__init__()
        self.parts = nn.ParameterList([nn.Parameter(torch.ones(shape)) for shape in shapes])

    def forward(self, inputs):
        return (inputs * torch.cat([part.reshape(-1) for part in self.parts])).sum(-1)


@pytest.fixture
def given():
    """A workload whose gradient is given: ``size`` in its first element, ``small`` in the five
    others.
    """

    @workload("given")
    class GivenGradient:
        """A linear function of six weights, with two parameters of no elements beside them."""

        size: float = 1.0
        small: float = 1.0
        empty: bool = True
        unbounded = True
        reference_loss = None

        metric = metrics.log10_gap

        def data(self):
            inputs = torch.full((16, 6), self.small, dtype=torch.float64)
            inputs[:, 0] = self.size
            return dict.fromkeys(("train", "validation", "test"), (inputs, torch.zeros(16)))

        def model(self):
            return Given([(2, 2), (2,), *([(0, 3), (0,)] if self.empty else [])])

        def loss(self, output, target):
            return output.mean()

    yield "given"
    registry._tables["workload"].pop("given")


def in_every_engine(one):
    """The records of one cell: loop, lanes, and native lanes."""
    settings = one.clip_settings()
    return [
        run(Job(one, settings)),
        *lanes.run([Job(one, settings)]),
        *lanes.run([Job(one, settings)], native=True),
    ]


RANGES = [(2e19, 1.0, 1.0), (1e30, 1e20, 1e10), (1e-25, 1e-26, 5e-26), (1e-20, 1e-22, 1e-21)]


@pytest.mark.parametrize(("size", "small", "limit"), RANGES)
def test_every_engine_measures_gradients_whose_squares_leave_float32(given, size, small, limit):
    raw = np.array([size, *[small] * 5])
    clipped = np.clip(raw, -limit, limit)
    length, norm = np.linalg.norm(clipped), np.linalg.norm(raw)
    one = cell(
        (given, {"size": size, "small": small}),
        "sgd",
        ("value", {"max_value": limit}),
        lr=1e-9,
        steps=2,
        batch=8,
    )
    for made in in_every_engine(one):
        assert made.failure is None
        row = made.rows[0]
        assert row[KEPT] == pytest.approx(length / norm, rel=1e-6)
        assert row[COSINE] == pytest.approx(raw @ clipped / norm / length, rel=1e-6)
        assert row[GRAD_NORM] == (math.inf if size > 1 else pytest.approx(norm, rel=1e-6))
        assert ("norm_overflow" if size > 1 else "norm_underflow") in {
            event.kind for event in made.events
        }


EMPTY = [
    *(("norm", {"max_norm": 0.5, "norm_type": order}) for order in (2, "inf")),
    *(("layer", {"max_norm": 0.5, "norm_type": order}) for order in (2, "inf")),
    ("norm", {"max_norm": 0.5, "norm_type": "inf", "on": "example"}),
    ("layer", {"max_norm": 0.5, "norm_type": "inf", "on": "update"}),
    ("value", {"max_value": 0.5}),
    *(one for one in CLIPS.items() if one[0] not in ("none", "norm", "layer", "value")),
]


@pytest.mark.parametrize(
    ("rule", "clip"),
    [*(("sgd", one) for one in EMPTY), ("adam", EMPTY[0]), ("adam", EMPTY[6])],
    ids=str,
)
def test_a_parameter_of_no_elements_adds_nothing(given, rule, clip):
    """In both engines the run is that without it. An optimizer sees a clip's result and no more:
    one with a state is run with two of the clips.
    """
    made = []
    for empty in (True, False):
        one = cell((given, {"empty": empty}), rule, clip, steps=3, batch=8)
        made += [run(Job(one, one.clip_settings())), *lanes.run([Job(one, one.clip_settings())])]
    assert [record.failure for record in made] == [None] * 4
    for record_ in made[1:]:
        np.testing.assert_allclose(record_.rows, made[0].rows, rtol=1e-6)


def test_a_pilot_knows_parameters_of_no_elements(given):
    built = {
        **{f"norm {order}": clips.Norm(1.0, order) for order in (2, "inf")},
        **{f"layer {order}": clips.Layer(1.0, order) for order in (2, "inf")},
        "value": clips.Value(1.0),
        "block-rms": clips.BlockRMS(1.0),
    }
    sizes = [pilot(cell((given, {"empty": empty}), batch=8), built) for empty in (True, False)]
    assert sizes[0] == sizes[1]


def test_a_pilot_without_a_usable_size_is_refused(quadratic):
    """A zero gradient has no multiples."""
    with pytest.raises(
        UsageError,
        match=r'the pilot of "quadratic\(start=0\)" met gradients of size 0; give norm a plain',
    ):
        pilot(cell(("quadratic", {"start": 0.0})), {"norm": clips.Norm(1.0)})


@pytest.mark.parametrize("name", NAMES)
def test_without_a_clip_nothing_is_changed(name):
    rows = record(name, lr=1e-3).rows
    assert (rows[:, [KEPT, COSINE]] == 1).all()
    assert (rows[:, CHANGED] == 0).all()


@pytest.mark.parametrize(
    "method",
    [("value", "max_value"), ("norm", "max_norm"), ("layer", "max_norm")],
    ids=lambda pair: pair[0],
)
@pytest.mark.parametrize("name", NAMES)
def test_an_infinite_threshold_is_no_clip_to_the_bit(name, method):
    unclipped = record(name, "momentum", lr=1e-3)
    clipped = record(name, "momentum", (method[0], {method[1]: math.inf}), lr=1e-3)
    np.testing.assert_array_equal(clipped.rows, unclipped.rows)


def test_a_relative_threshold_is_trained_with_and_recorded_as_the_number_it_resolved_to():
    one = cell("wdbc", "sgd", ("norm", {"relative": 0.3}))
    made = run(Job(one, one.clip_settings(0.5)))
    assert (made.failure, made.threshold) == (None, 0.15)
    assert made.rows[:, LOSS].tolist() == losses("wdbc", "sgd", ("norm", {"max_norm": 0.15}))


def test_with_the_origins_setting_no_weight_moves_more_than_a_thousandth_a_step():
    """lr·c/(1−μ) with lr .01, c .01, μ .9; without the clip some weight does move further."""

    def furthest(method):
        one = cell("wdbc", "momentum", method, lr=0.01, steps=300, dtype="float64")
        trainer = Trainer(Components.of(Job(one, one.clip_settings())), one)
        moved, before = 0.0, nn.utils.parameters_to_vector(trainer.module.parameters()).detach()
        for inputs, targets in feed.batches(trainer.workload, 0, 20, 300, torch.float64):
            trainer.step(inputs, targets)
            after = nn.utils.parameters_to_vector(trainer.module.parameters()).detach()
            moved, before = max(moved, (after - before).abs().max().item()), after
        return moved

    assert furthest(("value", {"max_value": 0.01})) <= 1e-3 * (1 + 1e-9)
    assert furthest("none") > 1e-3


# -------------------------------------------------------------------------- a stranger's components


def test_a_strangers_clip_with_a_memory_runs_in_the_loop(tmp_path):
    """Its mean of past norms is carried from step to step: what is kept is what the recorded
    norms say.
    """
    (tmp_path / "ema.py").write_text(EMA)
    registry.load_file(tmp_path / "ema.py")
    rows = record("digits", "momentum", ("ema", {"ratio": 0.9}), lr=0.03, dtype="float64").rows
    mean, expected = 0.0, []
    for step, norm in enumerate(rows[:, GRAD_NORM], 1):
        mean = 0.95 * mean + 0.05 * norm
        expected.append(min(1.0, 0.9 * mean / (1 - 0.95**step) / norm))
    np.testing.assert_allclose(rows[:, KEPT], expected, rtol=1e-12)
    np.testing.assert_allclose(rows[:, COSINE], 1.0, rtol=1e-12)
    assert 0 < (rows[:, CHANGED] > 0).mean() < 1


def test_a_strangers_pure_rule_runs_in_the_loop(tmp_path):
    """Its mean of past gradients is carried from step to step: the losses are those of the rule
    written out.
    """
    (tmp_path / "signum.py").write_text(SIGNUM)
    registry.load_file(tmp_path / "signum.py")
    made = record("temporal-order", "signum", lr=0.01, dtype="float64")
    work = registry.build("workload", "temporal-order", {})
    model = feed.model(work, 0, torch.float64)
    means, expected = [torch.zeros_like(param) for param in model.parameters()], []
    for inputs, targets in feed.batches(work, 0, 20, 30, torch.float64):
        model.zero_grad()
        loss = work.loss(model(inputs), targets)
        loss.backward()
        with torch.no_grad():
            for param, mean in zip(model.parameters(), means, strict=True):
                mean.mul_(0.9).add_(param.grad, alpha=0.1)
                param.sub_(mean.sign(), alpha=0.01)
        expected.append(loss.item())
    np.testing.assert_allclose(made.rows[:, LOSS], expected, rtol=1e-9)
    weights = sum(param.numel() for param in model.parameters())
    np.testing.assert_allclose(made.rows[:, UPDATE_NORM], 0.01 * math.sqrt(weights), rtol=1e-6)


def test_a_strangers_rule_and_clip_run_together(tmp_path):
    for name, text in (("ema", EMA), ("signum", SIGNUM)):
        (tmp_path / f"{name}.py").write_text(text)
        registry.load_file(tmp_path / f"{name}.py")
    together = record("wdbc", "signum", "ema").rows
    assert (together[:, KEPT] < 1).any()
    assert len(together) == 30


def test_weights_that_are_not_trained_are_left_alone():
    """A frozen layer is neither stepped nor measured."""

    @workload("frozen")
    class Frozen:
        metric = metrics.log10_gap
        reference_loss = 1.0

        def data(self):
            return dict.fromkeys(("train", "validation", "test"), (torch.ones(8, 2), torch.ones(8)))

        def model(self):
            model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
            model[0].requires_grad_(requires_grad=False)
            return model

        def loss(self, output, target):
            return (output.flatten() - target).square().mean()

    one = cell("frozen", "adam", ("value", {"max_value": 1e-9}), steps=5, batch=4)
    made = run(Job(one, one.clip_settings()))
    assert made.failure is None
    assert set(made.rows[:, CHANGED]) == {1.0}


def test_state_of_one_run_does_not_reach_the_next():
    """The same cell twice in one process, with another between them."""
    first = record("digits", "adam", ("norm", {"max_norm": 0.1}))
    record("digits", "rmsprop", seed=1)
    again = record("digits", "adam", ("norm", {"max_norm": 0.1}))
    np.testing.assert_array_equal(first.rows, again.rows)
    assert first.evaluations == again.evaluations


def test_trees_of_one_stream_are_forked_for_every_run():
    """Nothing is drawn from the global generator, not even by a model that draws its weights
    there.
    """
    before = torch.random.get_rng_state()
    record("digits", steps=2)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert trees.seed_of("digits", 0, "weights") != trees.seed_of("digits", 0, "batches")


# --------------------------------------------------------------------------------- sparse gradients


@pytest.fixture
def words():
    """A workload whose embedding has sparse gradients, as it may by ``layer``."""

    @workload("words")
    class Words:
        """Which bags have a large sum."""

        layer: str = "bag"
        metric = metrics.accuracy
        reference_loss = 0.693

        def data(self):
            inputs = torch.randint(0, 20, (64, 5), generator=torch.Generator().manual_seed(0))
            return dict.fromkeys(
                ("train", "validation", "test"), (inputs, (inputs.sum(1) > 50).long())
            )

        def model(self):
            if self.layer == "bag":
                return nn.Sequential(nn.EmbeddingBag(20, 4, sparse=True), nn.Linear(4, 2))
            sparse = self.layer == "sparse"
            return nn.Sequential(nn.Embedding(20, 4, sparse=sparse), nn.Flatten(), nn.Linear(20, 2))

        def loss(self, output, target):
            return nn.functional.cross_entropy(output, target)

    yield "words"
    registry._tables["workload"].pop("words")


def test_sparse_gradients_are_trained_without_a_clip_and_measured_as_dense_ones_are(words):
    made = [
        record((words, {"layer": layer}), "sgd", dtype="float64", batch=8)
        for layer in ("sparse", "dense")
    ]
    np.testing.assert_allclose(made[0].rows, made[1].rows, rtol=1e-12)


MIXES = [
    ("norm", {"max_norm": 0.2}),
    ("norm", {"max_norm": 0.2, "on": "example"}),
    ("value", {"max_value": 0.2}),
    ("layer", {"max_norm": 0.2}),
    ("adaptive", {}),
]


@pytest.mark.parametrize("clip", MIXES, ids=str)
@pytest.mark.parametrize("layer", ["bag", "sparse"])
def test_a_clip_on_sparse_gradients_is_refused_in_one_sentence_by_both_engines(words, layer, clip):
    """It names the parameter, and what to do; nothing of torch's own."""
    one = cell((words, {"layer": layer}), "sgd", clip, batch=8)
    sentence = (
        'workload "words": `0.weight` has a sparse gradient, which only the loop without a '
        "clip can train"
    )
    failure = run(Job(one, one.clip_settings())).failure
    with pytest.raises(NoLanes) as refusal:
        lanes.run([Job(one, one.clip_settings())])
    for said in (failure, str(refusal.value)):
        assert said.startswith(sentence)
        assert said.endswith("give its layer `sparse=False`")
