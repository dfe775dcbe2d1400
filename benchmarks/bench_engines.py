"""A cell's training step in lanes, beside the loop and beside a hand-written step of as many
stacked copies, on wdbc.
"""

import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from bench_step import LR, MAX_NORM, bare, job
from torch import nn

from clipbench import engines, feed, registry
from clipbench.engines import Job, lanes
from clipbench.measures import LOSS

LANES, STEPS = 32, 500


@pytest.fixture(autouse=True)
def _few_steps_if_nothing_is_measured(request, monkeypatch):
    if request.config.getoption("benchmark_disable"):
        monkeypatch.setattr(sys.modules[__name__], "STEPS", 20)


def jobs():
    """One arm on so many seeds."""
    one = job("norm")
    return [
        Job(replace(one.cell, seed=seed, steps=STEPS), one.clip_settings) for seed in range(LANES)
    ]


def together():
    """Lanes of one program, built anew, every measure recorded: seconds a cell and step, and
    each cell's loss at the last step.
    """
    asked = jobs()
    start = time.perf_counter()
    records = lanes.run(asked)
    took = time.perf_counter() - start
    assert all(record.failure is None for record in records)
    return took / LANES / STEPS, [record.rows[-1, LOSS] for record in records]


def by_hand():
    """The same in batched products, the gradients worked out on paper, nothing recorded."""
    workload = registry.build("workload", "wdbc", {})
    modules = [feed.model(workload, seed) for seed in range(LANES)]
    weights = [
        torch.stack(same).detach()
        for same in zip(*(list(module.parameters()) for module in modules), strict=True)
    ]
    moments = [torch.zeros_like(weight) for weight in weights]
    streams = [list(feed.batches(workload, seed, 32, STEPS)) for seed in range(LANES)]
    batches = [
        tuple(torch.stack(same) for same in zip(*at, strict=True))
        for at in zip(*streams, strict=True)
    ]
    start = time.perf_counter()
    for inputs, targets in batches:
        held = [inputs]
        for weight, bias in zip(weights[::2], weights[1::2], strict=True):
            held.append(torch.baddbmm(bias.unsqueeze(1), held[-1], weight.transpose(1, 2)))
            if weight is not weights[-2]:
                held[-1] = held[-1].relu()
        slope = (held[-1].softmax(-1) - nn.functional.one_hot(targets, 2)) / inputs.shape[1]
        grads = []
        for layer in reversed(range(0, len(weights), 2)):
            below = held[layer // 2]
            grads = [slope.transpose(1, 2) @ below, slope.sum(1), *grads]
            if layer:
                slope = (slope @ weights[layer]) * (below > 0)
        norm = torch.stack([grad.flatten(1).norm(dim=1) for grad in grads]).norm(dim=0)
        shortened = (MAX_NORM / (norm + 1e-6)).clamp(max=1.0)
        for weight, moment, grad in zip(weights, moments, grads, strict=True):
            moment.mul_(0.9).add_(grad * shortened.view(-1, *(1,) * (grad.ndim - 1)))
            weight.sub_(moment, alpha=LR)
    took = time.perf_counter() - start
    losses = (
        nn.functional.cross_entropy(held[-1].flatten(0, 1), targets.flatten(), reduction="none")
        .view(LANES, -1)
        .mean(1)
    )
    return took / LANES / STEPS, losses.tolist()


@pytest.mark.benchmark(group=f"{STEPS} steps of wdbc")
def test_lanes(benchmark):
    asked = jobs()
    assert all(record.failure is None for record in benchmark(lanes.run, asked))


@pytest.mark.benchmark(group=f"{STEPS} steps of wdbc")
def test_loop_of_one_cell(benchmark):
    assert benchmark(engines.run, jobs()[0]).failure is None


def test_lanes_against_batched_products_by_hand(ratio):
    np.testing.assert_allclose(by_hand()[1], together()[1], rtol=1e-3)  # the same training
    name = "wdbc, 32 lanes, all measures recorded / batched products by hand"
    assert ratio(name, lambda: together()[0], lambda: by_hand()[0], pairs=5) > 0


def test_a_users_loop_against_lanes(ratio):
    """A user's loop reads the loss at every step and records nothing else."""
    assert (
        ratio(
            "wdbc, a user's loop / 32 lanes, all measures recorded",
            lambda: bare() / 300,
            lambda: together()[0],
            pairs=5,
        )
        > 0
    )
