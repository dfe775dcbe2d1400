"""A batch is taken in parts where they add up to the whole, by the workload's own weights or
without; elsewhere it is refused.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from clipbench import feed, metrics, registry, workload
from clipbench.cell import Cell, Part
from clipbench.conformance import workloads
from clipbench.conformance.findings import Fault
from clipbench.engines import Job, lanes, run, shares
from clipbench.engines.program import NoLanes
from clipbench.errors import UsageError

CLASSES = torch.tensor([1.0, 9.0], dtype=torch.float64)


class Rows:
    """Two classes, the second of them rare."""

    metric = metrics.accuracy
    reference_loss = 0.693

    def data(self):
        draw = torch.Generator().manual_seed(0)
        inputs = torch.randn(96, 4, generator=draw)
        targets = (inputs[:, 0] > 1.0).long()
        return dict.fromkeys(("train", "validation", "test"), (inputs, targets))

    def model(self):
        return nn.Linear(4, 2)

    def loss(self, output, target):
        return nn.functional.cross_entropy(output, target)


class Weighted(Rows):
    def loss(self, output, target):
        return nn.functional.cross_entropy(output, target, CLASSES.to(output.dtype))


class LeftOut(Rows):
    def loss(self, output, target):
        return nn.functional.cross_entropy(output, target, ignore_index=1)


class Mixed(Rows):
    def model(self):
        return nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2))


class Contrastive(Rows):
    def loss(self, output, target):
        return -(torch.cdist(output, output) * (target[:, None] != target)).mean()


class Dice(Rows):
    def loss(self, output, target):
        score = output.softmax(1)[:, 1]
        return 1 - 2 * (score * target).sum() / (score + target).sum()


class Sum(Rows):
    def loss(self, output, target):
        return nn.functional.cross_entropy(output, target, reduction="sum")


class Dropped(Rows):
    """Random, in all the ways torch has, and a mean all the same."""

    def model(self):
        class Noisy(nn.Module):
            def forward(self, x):
                keep = (torch.rand(len(x), 1, dtype=x.dtype) < 0.9).to(x.dtype)
                return x * keep + torch.randn_like(x) * torch.empty_like(x).bernoulli_(0.5)

        return nn.Sequential(
            Noisy(), nn.Linear(4, 8), nn.Dropout(0.5), nn.AlphaDropout(0.1), nn.Linear(8, 2)
        )


class Narrow(Rows):
    """It knows float32 only."""

    def loss(self, output, target):
        return nn.functional.cross_entropy(output, target, torch.ones(2))


class WeightedByClass(Weighted):
    def weight(self, targets):
        return CLASSES[targets].sum()


class LeftOutByCount(LeftOut):
    def weight(self, targets):
        return (targets != 1).sum()


class WeightedWrongly(Weighted):
    def weight(self, targets):
        return len(targets)


class WeightedByList(Weighted):
    def weight(self, targets):
        return CLASSES[targets]


MEANS = [Rows, Dropped, Narrow, WeightedByClass, LeftOutByCount]
NO_MEANS = [Weighted, LeftOut, Mixed, Contrastive, Dice, Sum]
REASONS = (
    ("its loss is no mean over examples", "weight(targets)"),
    ("its model has BatchNorm", "GroupNorm"),
)


@pytest.fixture(autouse=True, scope="module")
def named():
    """Every class above under its own name."""
    registry.load_packaged()
    given = [*MEANS, *NO_MEANS, WeightedWrongly, WeightedByList, MixedAndSummed]
    for cls in given:
        workload(cls.__name__.lower())(cls)
    yield
    for cls in given:
        registry._tables["workload"].pop(cls.__name__.lower())


def job(cls, accumulate=1, on=None, batch=16, clip=("none", {}), steps=6):
    settings = {"accumulate": accumulate} if accumulate > 1 else {}
    name, own = clip
    asked = Part(name, 1, {**own, **({"on": on} if on else {})}, next(iter(own), None))
    problem = Part(cls.__name__.lower(), "here", settings)
    return Job(
        Cell(problem, Part("sgd", 1), asked, 0.5, 0, steps, batch, dtype="float64", evaluations=1),
        own,
    )


@pytest.mark.parametrize("cls", MEANS)
@pytest.mark.parametrize("number", [4, 16])
def test_a_mean_over_examples_may_be_taken_in_parts(cls, number):
    """Random layers, a second precision, and weights of the workload's own are no difference."""
    assert shares.apart(registry.build("workload", cls.__name__.lower(), {}), 16, number) is None


@pytest.mark.parametrize("cls", NO_MEANS)
@pytest.mark.parametrize(
    "asked", [{"accumulate": 4}, {"on": "example", "clip": ("norm", {"max_norm": 1e6})}], ids=str
)
def test_what_is_no_mean_is_refused_by_name_in_both_engines(cls, asked):
    one = job(cls, **asked)
    failure = run(one).failure
    assert f'workload "{cls.__name__.lower()}"' in failure
    difference, remedy = REASONS[cls is Mixed]
    assert difference in failure
    assert remedy in failure
    with pytest.raises((UsageError, NoLanes), match=cls.__name__.lower()):
        lanes.run([one])


@pytest.mark.parametrize("cls", NO_MEANS)
def test_whole_batches_of_it_are_trained(cls):
    assert run(job(cls)).failure is None


@pytest.mark.parametrize("cls", [WeightedByClass, LeftOutByCount])
@pytest.mark.parametrize("accumulate", [4, 16])
def test_a_workload_may_say_how_its_parts_add_up(cls, accumulate):
    """Every step is that of the whole batch, in both engines, though some parts have no label
    that counts.
    """
    whole = run(job(cls)).rows
    (together,) = lanes.run([job(cls, accumulate)])
    for made in (run(job(cls, accumulate)), together):
        assert made.failure is None
        np.testing.assert_allclose(made.rows, whole, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("cls", [WeightedByClass, LeftOutByCount])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_examples_are_weighed_one_by_one(cls, accumulate):
    """A clip on examples that never meets its threshold leaves the gradient of the batch's own
    loss.
    """
    whole = run(job(cls)).rows
    one = job(cls, accumulate, on="example", clip=("layer", {"max_norm": math.inf}))
    np.testing.assert_allclose(run(one).rows, whole, rtol=1e-9, atol=1e-12)
    with pytest.raises(NoLanes, match="weighs its examples"):
        lanes.run([one])


def test_a_weight_that_does_not_add_up_is_refused():
    assert "by its `weight`" in run(job(WeightedWrongly, 4)).failure
    assert "`weight` returned 4 numbers" in run(job(WeightedByList, 4)).failure


def test_looking_moves_neither_the_random_state_nor_a_run():
    """The first cell of a process, which looks, has the bits of the second, which does not; data
    are drawn as ever.
    """
    shares.apart.cache_clear()
    feed._once.cache_clear()
    before = torch.get_rng_state()
    first = run(job(Dropped, 4)).rows
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(run(job(Dropped, 4)).rows, first)


def test_batch_dice_among_the_packaged_workloads_is_refused_in_parts():
    phantom = registry.find("workload", "phantom")
    cell = Cell(
        Part("phantom", phantom.version, {"accumulate": 2}),
        Part("sgd", 1),
        Part("none", 1),
        0.1,
        0,
        2,
        4,
    )
    assert '`accumulate` = 2 is not for workload "phantom"' in run(Job(cell, {})).failure
    assert (
        run(Job(replace(cell, workload=Part("phantom", phantom.version), steps=1), {})).failure
        is None
    )


class MixedAndSummed(Mixed, Sum):
    """BatchNorm is not its only reason."""


def test_conform_says_batch_norm_only_if_the_loss_is_a_mean_without_it():
    """And then does not ask for a `weight`, which would not help."""
    told = workloads.parts_add_up(Mixed)
    assert told.startswith("its model has BatchNorm")
    assert "weight" not in told
    assert "its loss is no mean over examples" in workloads.parts_add_up(MixedAndSummed)


def test_conform_tells_whether_a_loss_is_a_mean():
    assert workloads.parts_add_up(Rows) == "its loss is a mean over examples"
    assert "no mean over examples" in workloads.parts_add_up(Weighted)
    assert workloads.parts_add_up(WeightedByClass) == "it does, by its `weight`"
    with pytest.raises(Fault, match="by its `weight`"):
        workloads.parts_add_up(WeightedWrongly)
