"""What it takes to compare a worker's process with what it was, beside a cell of about 50 ms."""

import time
from dataclasses import replace

import pytest
from bench_step import job

from clipbench import engines
from clipbench.engines import Job
from clipbench.execute.world import World

STEPS = 100  # about 50 ms


@pytest.fixture(scope="module")
def world():
    engines.run(job("norm"))  # whatever wakes up late
    return World()


def cell():
    """Seconds of a short cell with its evaluations, as a worker runs it."""
    one = job("norm")
    asked = Job(replace(one.cell, steps=STEPS, evaluations=5), one.clip_settings)
    start = time.perf_counter()
    assert engines.run(asked).failure is None
    return time.perf_counter() - start


def compared(world, names):
    """Seconds of a comparison after a cell: the processor's caches are then full of something
    else.
    """
    cell()
    start = time.perf_counter()
    assert not world.compare(names).numbers
    return time.perf_counter() - start


def test_compare(benchmark, world):
    assert not benchmark(world.compare).numbers


@pytest.mark.parametrize("names", [False, True], ids=["packaged", "of a stranger"])
def test_a_comparison_against_the_cell_it_follows(ratio, world, names):
    name = (
        f"a comparison of worlds {'with' if names else 'without'} names / a cell of {STEPS} "
        f"steps on wdbc"
    )
    assert ratio(name, lambda: compared(world, names), cell, at_most=0.01) > 0
