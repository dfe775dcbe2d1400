"""The CUDA path: the same cells, on a device."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from running import called

from clipbench import engines, registry, throughput
from clipbench.cell import Cell, Part
from clipbench.engines import Job, lanes
from clipbench.measures import LOSS
from clipbench.throughput.updates import Given, Update, Weights

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="this machine has no CUDA device"
)


def job(device, dtype="float64", clip="norm", workload="wdbc"):
    settings = {"norm": {"max_norm": 0.1}, "value": {"max_value": 0.01}, "none": {}}[clip]
    part = Part(clip, 1, settings, next(iter(settings), None))
    return Job(
        Cell(Part(workload, 1), Part("momentum", 1), part, 0.01, 0, 40, 16, device, dtype), settings
    )


@pytest.mark.parametrize("workload", ["wdbc", "digits", "temporal-order", "cosh"])
@pytest.mark.parametrize("clip", ["none", "value", "norm"])
def test_the_device_agrees_with_the_cpu_in_float64(workload, clip):
    registry.load_packaged()
    here, there = (
        engines.run(job(device, clip=clip, workload=workload)) for device in ("cpu", "cuda")
    )
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
    there = lanes.run(
        [job("cuda", clip=clip, workload=workload) for clip in ("none", "value", "norm")]
    )
    for clip, record in zip(("none", "value", "norm"), there, strict=True):
        np.testing.assert_allclose(
            record.rows,
            engines.run(job("cpu", clip=clip, workload=workload)).rows,
            rtol=1e-8,
            atol=1e-12,
        )


def test_a_lane_that_ends_on_the_device_leaves_its_neighbours_as_they_were():
    registry.load_packaged()
    calm = job("cuda")
    hot = Job(replace(calm.cell, lr=1e30), calm.clip_settings)
    alone, beside = lanes.run([calm, calm])[0], lanes.run([calm, hot])[0]
    assert beside.rows.tobytes() == alone.rows.tobytes()


def test_workers_start_afresh_and_train_on_the_device():
    record = called(engines.run, job("cuda", "float32"), device="cuda")
    assert record.failure is None
    assert np.isfinite(record.rows[:, LOSS]).all()


def test_timing_waits_for_the_device_and_reads_its_memory():
    rows = called(
        throughput.measure,
        [[job("cuda", "float32", clip) for clip in ("none", "norm")]],
        device="cuda",
    )
    assert {row["clip"] for row in rows} == {"none", "norm"}
    assert all(row["seconds"] > 0 and row["peak_bytes"] > 0 for row in rows)


@pytest.mark.parametrize("implementation", throughput.IMPLEMENTATIONS)
@pytest.mark.parametrize("clip", ["none", "value", "norm"])
def test_every_implementation_leaves_the_same_weights_on_the_device(implementation, clip):
    """As torch's defaults leave on the CPU, over five steps of momentum."""
    registry.load_packaged()

    def weights(name, device):
        given = Given([(64, 30), (64,), (2, 64), (2,)], torch.float64, "cpu")
        given.weights, given.grads = given.weights.to(device), given.grads.to(device)
        held = Weights(name, registry.build("optimizer", "momentum", {}), 0.01, given)
        settings = {"norm": {"max_norm": 0.1}, "value": {"max_value": 0.01}, "none": {}}[clip]
        Update(held, registry.build("clip", clip, settings)).block(5)
        return torch.cat([param.detach().flatten() for param in held.built.params]).cpu()

    try:
        torch.testing.assert_close(
            weights(implementation, "cuda"), weights("torch", "cpu"), rtol=1e-6, atol=1e-9
        )
    except throughput.Unfit as unfit:
        pytest.skip(str(unfit))


def test_kernels_do_not_grow_with_the_tensors_where_they_are_taken_at_once_and_waits_are_counted():
    registry.load_packaged()
    rule, clip = (
        registry.build("optimizer", "momentum", {}),
        registry.build("clip", "norm", {"max_norm": 0.1}),
    )

    def taken(name, tensors):
        update = Update(
            Weights(name, rule, 0.01, Given([(8, 8)] * tensors, torch.float32, "cuda")), clip
        )
        update.block(2)
        return update.footprint()

    assert taken("flat", 10).kernels == taken("flat", 150).kernels
    assert taken("loop", 150).kernels > taken("loop", 10).kernels > 10
    assert taken("flat", 10).synchronisations == 0
    assert taken("origin", 10).synchronisations >= 10


def test_the_long_form_sets_updates_on_the_device_against_a_copy():
    registry.load_packaged()
    parts = throughput.surveys(
        [job("cuda", "float32", clip) for clip in ("none", "norm")],
        throughput.sizes_named("2M"),
        ["torch"],
        2,
    )
    assert [part.threads for part in parts] == [1, 1]
    rows, _ = called(throughput.carry_out, parts[0], device="cuda")
    large = [row for row in rows if row["parameters"] > 1e6]
    assert large
    assert all(row["kernels"] > 0 and row["peak_bytes"] > 0 for row in large)
    assert all(
        0 < row["floor_seconds"] < row["seconds"] / row["steps"]
        for row in large
        if row["valid"] and row["floor_seconds"]
    )
