"""What the harness adds to a training step: a bare hand-written loop against the loop engine, on
wdbc.
"""

import time

import pytest
import torch
from torch import nn

from clipbench import engines, feed, registry
from clipbench.cell import Cell, Part
from clipbench.engines import Components, Job, Trainer
from clipbench.measures import COLUMNS

STEPS = 300
LR = 0.01
MAX_NORM = 1.0


def bare():
    """Seconds of the loop a user writes: batch indexing, momentum, norm clip, the loss read at
    every step.
    """
    workload = registry.build("workload", "wdbc", {})
    module = feed.model(workload, 0)
    inputs, targets = feed.splits(workload, 0)["train"]
    order = feed.order(len(inputs), 32, STEPS, torch.Generator().manual_seed(0), "wdbc")
    optimizer = torch.optim.SGD(module.parameters(), lr=LR, momentum=0.9)
    losses = []
    start = time.perf_counter()
    for index in order:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(module(inputs[index]), targets[index])
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), MAX_NORM)
        optimizer.step()
        losses.append(loss.item())
    return time.perf_counter() - start


def job(clip):
    settings = (
        {"max_norm": MAX_NORM} if clip == "norm" else {"max_value": 0.1} if clip == "value" else {}
    )
    part = Part(clip, 1, settings, next(iter(settings), None))
    return Job(
        Cell(Part("wdbc", 1), Part("momentum", 1), part, LR, 0, STEPS, 32, evaluations=1), settings
    )


def measured(clip="norm"):
    """Seconds of the same loop in the engine: loss, grad_norm, kept, cosine, changed and
    update_norm of every step recorded.
    """
    one = job(clip)
    components = Components.of(one)
    trainer = Trainer(components, one.cell)
    batches = feed.batches(components.workload, 0, 32, STEPS)
    start = time.perf_counter()
    for batch in batches:
        trainer.step(*batch)
    assert trainer.meter.rows().shape == (STEPS, len(COLUMNS))
    return time.perf_counter() - start


def test_harness_step_against_the_bare_loop(ratio):
    """The goal is 1.2."""
    assert ratio("wdbc step, all measures recorded / bare loop", measured, bare, at_most=1.4) > 0


@pytest.mark.parametrize("clip", ["none", "value", "norm"])
@pytest.mark.benchmark(group="300 steps of wdbc")
def test_loop_engine(benchmark, clip):
    record = benchmark(engines.run, job(clip))
    assert record.failure is None


@pytest.mark.benchmark(group="300 steps of wdbc")
def test_bare_loop(benchmark):
    benchmark(bare)
