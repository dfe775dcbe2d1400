"""What it takes to compare a worker's process with what it was, beside a cell of about 50 ms."""

import time

import pytest
from bench_step import job

from clipbench import engines
from clipbench.schedule.world import World


@pytest.fixture(scope="module")
def world():
    engines.run(job("norm"))  # whatever wakes up late
    return World()


def cell():
    """Seconds of 300 steps on wdbc with its evaluations, as a worker runs them."""
    start = time.perf_counter()
    assert engines.run(job("norm")).failure is None
    return time.perf_counter() - start


def compared(world):
    """Seconds of a comparison after a cell: the processor's caches are then full of something else."""
    cell()
    start = time.perf_counter()
    assert not world.compare().numbers
    return time.perf_counter() - start


def test_compare(benchmark, world):
    assert not benchmark(world.compare).numbers


def test_a_comparison_against_the_cell_it_follows(ratio, world):
    assert ratio("a comparison of worlds / a cell of 300 steps on wdbc", lambda: compared(world), cell, at_most=0.01) > 0
