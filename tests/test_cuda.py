"""The CUDA path: the same cells, on a device."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from clipbench import engines, registry, schedule, throughput
from clipbench.cell import Cell, Part
from clipbench.engines import Job, lanes
from clipbench.events import LOSS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")


def job(device, dtype="float64", clip="norm", workload="wdbc"):
    settings = {"norm": {"max_norm": 0.1}, "value": {"max_value": 0.01}, "none": {}}[clip]
    part = Part(clip, 1, settings, next(iter(settings), None))
    return Job(Cell(Part(workload, 1), Part("momentum", 1), part, 0.01, 0, 40, 16, device, dtype), settings)


@pytest.mark.parametrize("workload", ["wdbc", "digits", "temporal-order", "cosh"])
@pytest.mark.parametrize("clip", ["none", "value", "norm"])
def test_the_device_agrees_with_the_cpu_in_float64(workload, clip):
    registry.load_packaged()
    here, there = (engines.run(job(device, clip=clip, workload=workload)) for device in ("cpu", "cuda"))
    assert here.failure is None
    assert there.failure is None
    np.testing.assert_allclose(there.rows, here.rows, rtol=1e-8, atol=1e-12)


def test_a_run_that_leaves_finite_numbers_ends_on_the_device_too():
    registry.load_packaged()
    cell = Cell(Part("cosh", 1), Part("sgd", 1), Part("none", 1), 3.0, 0, 40, 1, "cuda")
    record = engines.run(Job(cell, {}))
    assert record.verdict.status == "diverged"
    assert len(record.rows) < 40
    assert not np.isfinite(record.rows[-1]).all()


@pytest.mark.parametrize("workload", ["wdbc", "digits", "temporal-order", "cosh"])
def test_lanes_on_the_device_agree_with_the_loop_on_the_cpu_in_float64(workload):
    """Forty steps: the first three as they are, the rest as one graph."""
    registry.load_packaged()
    there = lanes.run([job("cuda", clip=clip, workload=workload) for clip in ("none", "value", "norm")])
    for clip, record in zip(("none", "value", "norm"), there, strict=True):
        np.testing.assert_allclose(record.rows, engines.run(job("cpu", clip=clip, workload=workload)).rows, rtol=1e-8, atol=1e-12)


def test_a_lane_that_ends_on_the_device_leaves_its_neighbours_as_they_were():
    registry.load_packaged()
    calm = job("cuda")
    hot = Job(replace(calm.cell, lr=1e30), calm.clip_settings)
    alone, beside = lanes.run([calm, calm])[0], lanes.run([calm, hot])[0]
    assert beside.rows.tobytes() == alone.rows.tobytes()


def test_workers_start_afresh_and_train_on_the_device():
    record = schedule.call(engines.run, (job("cuda", "float32"),), [], "cuda")
    assert record.failure is None
    assert np.isfinite(record.rows[:, LOSS]).all()


def test_timing_waits_for_the_device_and_reads_its_memory():
    rows = schedule.call(throughput.measure, ([[job("cuda", "float32", clip) for clip in ("none", "norm")]],), [], "cuda")
    assert {row["clip"] for row in rows} == {"none", "norm"}
    assert all(row["seconds"] > 0 and row["peak_bytes"] > 0 for row in rows)
