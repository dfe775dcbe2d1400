"""The code for CUDA, without a GPU: on a device that is pretended, whose rules are real.

What is run on it gives the numbers of the CPU, in float64 to what another order of lanes rounds
otherwise; no tensor of another device meets one of its own, and no step waits for it. Planted
faults show that it sees.
"""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import test_cuda
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

import clipbench
from clipbench import engines, feed, registry, step
from clipbench.cell import Cell, Part
from clipbench.clips import fixed
from clipbench.conformance.pretended import Misplaced, pretended
from clipbench.engines import Job, lanes, program, rates
from clipbench.engines.evaluating import evaluate
from clipbench.engines.lanes import Lanes
from clipbench.execute import machine
from clipbench.store import Store

registry.load_packaged()
THRESHOLDS = {"norm": {"max_norm": 0.1}, "value": {"max_value": 0.01}, "layer": {"max_norm": 0.1}}
PACKAGED = [
    name
    for name in registry.names("clip")
    if registry.find("clip", name).__module__.startswith("clipbench.")
]
CLIPS = sorted(PACKAGED, key=lambda name: (name != "none", name not in THRESHOLDS, name))
OPTIMIZERS = ["sgd", "momentum", "nesterov", "rmsprop", "adam", "adamw", "torch.optim.Adagrad"]
WORKLOADS = [
    *("digits", "temporal-order", "cosh", "heavy-tails", "cliff", "label-noise", "text"),
]


def job(device="cuda", clip="norm", workload="wdbc", optimizer="momentum", **about):
    settings = {**THRESHOLDS.get(clip, {}), **about.pop("clip_settings", {})}
    on = {"on": about.pop("on")} if "on" in about else {}
    part = Part(clip, 1, {**settings, **on}, next(iter(THRESHOLDS.get(clip, {})), None))
    about = {"lr": 0.01, "seed": 0, "steps": 8, "batch": 16, "dtype": "float64", **about}
    problem = workload if isinstance(workload, Part) else Part(workload, 1)
    rule = optimizer if isinstance(optimizer, Part) else Part(optimizer, 1)
    return Job(Cell(problem, rule, part, device=device, **about), settings)


def on_cpu(one):
    return replace(one, cell=replace(one.cell, device="cpu"))


ROUNDING = {"rtol": 1e-9, "atol": 1e-12}  # a CPU fills lanes up, so that each has the same bits


def same(here, there):
    """Records are equal: every row, and every evaluation."""
    for left, right in zip(here, there, strict=True):
        assert right.failure is None
        np.testing.assert_allclose(right.rows, left.rows, **ROUNDING)
        assert [one.value for one in right.evaluations] == pytest.approx(
            [one.value for one in left.evaluations], rel=1e-9, nan_ok=True
        )


# --------------------------------------------------------------------------------------- its rules


def test_tensors_of_two_devices_do_not_meet_but_for_scalars_of_the_cpu():
    with pretended(2):
        there = torch.ones(3, device="cuda")
        assert there.device == torch.device("cuda", 0)
        assert there.is_cuda
        assert (there * torch.tensor(2.0)).device.type == "cuda"
        for other in (torch.ones(3), torch.ones(3, device="cuda:1")):
            with pytest.raises(Misplaced, match="tensors on c"):
                there + other
        assert torch.ones(2, dtype=torch.float64).to(there).dtype == torch.float32
        assert torch.ones(2).to(there).is_cuda
        assert (there.to("cuda:1") + torch.ones(3, device="cuda:1")).device.index == 1
        with pytest.raises(Misplaced, match="tensors on cpu and cuda:0"):
            torch.stack([there.sum(), torch.tensor(1.0)])
        with pytest.raises(Misplaced, match="invalid device ordinal 2"):
            torch.ones(3, device="cuda:2")
        torch.cuda.set_device(1)
        assert torch.ones(3, device="cuda").device.index == 1


WAITING = {
    "item": lambda there: there[0].item(),
    "cpu": lambda there: there.cpu(),
    "tolist": lambda there: there.tolist(),
    "nonzero": lambda there: there.nonzero(),
    "picked by truth values": lambda there: there[there > 0],
    "picked by an index of the CPU": lambda there: there[torch.tensor([0])],
    "a copy from the CPU": lambda there: there.new_zeros(3).copy_(torch.ones(3)),
    "moved from the CPU": lambda there: torch.ones(3).to(there.device),
    "asked whether": lambda there: bool((there > 0).all()),
}


def test_a_copy_from_pinned_memory_waits_only_if_it_is_asked_to():
    with pretended() as device:
        held = torch.ones(3).pin_memory()
        there = torch.zeros(3, device="cuda")
        device.strict = True
        assert held.is_pinned()
        assert held.to("cuda", non_blocking=True).is_cuda
        there.copy_(held, non_blocking=True)
        device.strict = False
        assert there.tolist() == [1.0] * 3
        for waits in (
            lambda: held.to("cuda"),
            lambda: torch.ones(3).to("cuda", non_blocking=True),
            lambda: there.copy_(torch.ones(3), non_blocking=True),
            lambda: there.to("cpu", non_blocking=True),
        ):
            device.strict = True
            with pytest.raises(Misplaced, match="waits"):
                waits()
            device.strict = False


@pytest.mark.parametrize("name", WAITING)
def test_what_waits_for_the_device_is_counted_and_refused_where_nothing_may(name):
    waits = WAITING[name]
    with pretended() as device:
        there = torch.ones(3, device="cuda")
        waits(there)
        assert device.waits
        device.strict = True
        with pytest.raises(Misplaced, match="the host waits for the device"):
            waits(there)
        with pytest.raises(TypeError, match="can't convert cuda:0"):
            there.numpy()


def test_a_graph_is_recorded_without_a_step_and_replayed_into_the_same_memory():
    with pretended():
        weights, gain = torch.ones(3, device="cuda"), torch.full((3,), 2.0, device="cuda")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            doubled = weights * gain
            weights.add_(doubled)
        taken = [weights.cpu().tolist()]
        for _ in range(2):
            graph.replay()
            taken.append(weights.cpu().tolist())
        gain.fill_(0.0)
        graph.replay()
        taken.append(doubled.cpu().tolist())
    assert taken == [[1.0] * 3, [3.0] * 3, [9.0] * 3, [0.0] * 3]


# ---------------------------------------------------------------------------------------- the loop


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("clip", CLIPS)
def test_a_step_of_the_loop_waits_for_nothing(clip, optimizer):
    with pretended() as device:
        one = job(clip=clip, optimizer=optimizer, dtype="float32")
        trainer = engines.Trainer(engines.Components.of(one), one.cell)
        batches = feed.batches(trainer.workload, 0, 16, 3, trainer.dtype, "cuda")
        trainer.step(*next(batches))
        batch = next(batches)
        device.strict = True
        trainer.step(*batch)
        device.strict = False
        assert trainer.meter.rows().shape[0] == 2


SAMPLED = ["temporal-order", "cosh", "heavy-tails", "cliff", "text", "phantom"]


@pytest.mark.parametrize("workload", ["wdbc", *SAMPLED])
def test_no_batch_is_waited_for_once_training_has_begun(workload):
    """What is sampled is drawn ahead and copied from pinned memory, with the same numbers."""
    one = registry.build("workload", workload, {})
    wanted = [
        [tensor.tolist() for tensor in batch]
        for batch in feed.batches(one, 3, 4, 40, torch.float64, "cpu")
    ]
    with pretended() as device:
        batches = feed.batches(one, 3, 4, 40, torch.float64, "cuda")
        drawn = [next(batches)]
        device.strict = True
        drawn += list(batches)
        device.strict = False
        assert all(tensor.is_cuda for batch in drawn for tensor in batch)
        assert [[tensor.tolist() for tensor in batch] for batch in drawn] == wanted


CASES = {
    **{clip: {"clip": clip} for clip in CLIPS},
    **{name: {"optimizer": name} for name in OPTIMIZERS if name != "momentum"},
    **{name: {"workload": name} for name in WORKLOADS},
    "accumulate": {"workload": Part("wdbc", 1, {"accumulate": 4})},
    "schedule": {"optimizer": Part("momentum", 1, {"schedule": "cosine"})},
    "clip on update": {"on": "update"},
    "clip on example": {"on": "example"},
}


@pytest.mark.parametrize("name", CASES)
def test_the_loop_on_the_device_gives_the_numbers_of_the_cpu(name):
    one = job(**CASES[name])
    here = engines.run(on_cpu(one))
    with pretended():
        there = engines.run(one)
    same([here], [there])


def test_nesterov_records_what_the_clip_left_and_not_what_the_step_made_of_it():
    """torch's foreach SGD, its default on CUDA, adds momentum to the gradient in place."""
    one = job(optimizer="nesterov", clip_settings={"max_norm": 1e9})
    with pretended():
        record = engines.run(one)
    kept = record.rows[:, 2]
    assert (kept == 1).all()


# ------------------------------------------------------------------------------------------- lanes


def lanes_of(name):
    """The jobs of a case, one of each lane."""
    calm = job()
    hot = [replace(calm, cell=replace(calm.cell, lr=1e30, seed=seed)) for seed in range(5)]
    two = [calm, replace(calm, cell=replace(calm.cell, seed=1))]
    # a replayed sequence is thousands of operations: two replays are enough
    short = {"steps": 5, "batch": 4}
    pairs = {
        one: [job(workload=one, clip=clip, **short) for clip in ("none", "norm")]
        for one in WORKLOADS
    }
    jobs = {
        **pairs,
        "fixed clips": [job(clip=clip) for clip in ("none", "value", "norm")],
        "other clips": [job(clip=clip) for clip in CLIPS[4:]],
        "optimizers": [job(optimizer=name) for name in OPTIMIZERS[:6]],
        "two seeds": two,
        "five of six end": [calm, *hot],
        "schedule": [job(**CASES["schedule"])] * 2,
        "accumulate": [job(**CASES["accumulate"])] * 2,
        "clip on update": [job(**CASES["clip on update"])] * 2,
        "clip on example": [job(**CASES["clip on example"])] * 2,
        **{
            name: [job(workload=name, clip=clip) for clip in ("none", "norm")] for name in WORKLOADS
        },
    }[name]
    if name == "five of six end":
        jobs = [replace(one, cell=replace(one.cell, steps=40)) for one in jobs]
    return jobs


@pytest.mark.parametrize(
    "name",
    [
        *("fixed clips", "other clips", "optimizers", "two seeds", "five of six end", "schedule"),
        *("accumulate", "clip on update", "clip on example", *WORKLOADS),
    ],
)
def test_lanes_on_the_device_give_the_numbers_of_the_cpu(name, request):
    """Three steps as they are, and the rest as replays of a graph."""
    if name in ("temporal-order", "text"):
        request.getfixturevalue("costly")
    jobs = lanes_of(name)
    here = lanes.run([on_cpu(one) for one in jobs])
    with pretended():
        there = lanes.run(jobs)
    same(here, there)


@pytest.mark.parametrize("name", ["fixed clips", "other clips", "optimizers", "accumulate"])
def test_a_step_of_lanes_waits_for_nothing(name):
    with pretended() as device:
        held, _ = lanes.begin(lanes_of(name))
        batches = [held.draw() for _ in range(6)]
        device.strict = True
        for batch in batches:
            held.step(*batch)
        assert held.graph is not None


def test_what_a_step_leaves_is_written_once_and_what_is_handed_on_first_kept():
    """A second copy of weights and moments would be as much traffic as the step itself."""
    with pretended():
        held, _ = lanes.begin([job(optimizer="adam"), job(optimizer="adam", clip="none")])
        for _ in range(5):
            held.step(*held.draw())
        taken = Counter(func for func, *_ in held.graph.record)
        first, second = (torch.full((2,), one, device="cuda") for one in (1.0, 2.0))
        program.write([first, second], [second, first])
        assert (first.tolist(), second.tolist()) == ([2.0] * 2, [1.0] * 2)
    remembered = sum(len(one.lane.remembered) for one in held.segments)
    assert taken[torch.ops.aten.copy_.default] == 1 + remembered
    assert taken[torch.ops.aten.clone.default] == 0


def test_an_evaluation_waits_once_for_a_split_however_many_lanes_there_are():
    jobs = [replace(job(), cell=replace(job().cell, seed=seed)) for seed in (0, 0, 0, 1, 1, 1)]
    waits = {}
    with pretended() as device:
        for count in (3, 6):
            held, _ = lanes.begin(jobs[:count] if count == 6 else jobs[:3])
            held.step(*held.draw())
            evaluate(held, range(count), 0)
            before = len(device.waits)
            evaluate(held, range(count), 1)
            waits[count] = len(device.waits) - before
    # seeds, indices and outputs, of validation and of test
    assert waits[3] == waits[6] <= 5


def test_the_clock_of_either_engine_waits_for_the_device():
    """Else the loop's step is timed as long as it takes to launch it."""
    one = job(steps=300, dtype="float32")
    for timed in (rates._loop, lambda one: rates._lanes([one, one])):
        with pretended():
            with mock.patch.object(torch.cuda, "synchronize") as waited:
                timed(one)
            assert waited.call_count > 3


def test_lanes_take_what_the_device_has_free_and_share_it():
    one = job(workload="cosh", steps=30, batch=2)
    with pretended():
        each = rates.lane_bytes([one])
        with (
            mock.patch.object(torch.cuda, "mem_get_info", return_value=(26 * each, 2**34)),
            # More lanes are always faster here: memory alone ends the climb.
            mock.patch.object(rates, "_lanes", lambda jobs, **_: (1 / len(jobs), len(jobs))),
            mock.patch.object(rates, "_loop", return_value=1e3),
        ):
            alone, shared = (
                rates.measure([one], None, 1e9, "batched", sharers=count) for count in (1, 2)
            )
    # 0.8 of 26 lanes' memory
    assert (alone.lanes, shared.lanes) == (16, 8)


def test_no_lane_is_added_for_the_registers_of_a_cpu():
    with pretended():
        held, _ = lanes.begin(lanes_of("fixed clips"))
    assert len(held.jobs) == 3


def test_the_machine_page_tells_of_the_card():
    with pretended(2):
        page = machine.environment("cuda")
    assert page["cuda"] | {"driver": 0, "version": "", "cudnn": 0} == {
        "device": "pretended",
        "version": "",
        "driver": 0,
        "cudnn": 0,
        "capability": "9.0",
        "memory_bytes": 2**34,
        "processors": 1,
        "devices": 2,
        "tf32": torch.backends.cudnn.allow_tf32,
    }


def test_bfloat16_runs_on_the_device():
    one = job(dtype="bfloat16-mixed")
    with pretended():
        loop, (lane, _) = engines.run(one), lanes.run([one, one])
    assert loop.failure is None
    assert lane.failure is None
    np.testing.assert_allclose(lane.rows[:, 0], loop.rows[:, 0], rtol=2e-2)


def test_the_tests_for_cuda_hold_on_it():
    """Those of numbers; the others need kernels, processes or a profiler."""
    with pretended():
        test_cuda.test_the_device_agrees_with_the_cpu_in_float64("wdbc", "norm")
        test_cuda.test_lanes_on_the_device_agree_with_the_loop_on_the_cpu_in_float64("cosh")
        test_cuda.test_a_run_that_leaves_finite_numbers_ends_on_the_device_too()
        test_cuda.test_a_lane_that_ends_on_the_device_leaves_its_neighbours_as_they_were()


# ----------------------------------------------------------------------------------------- a watch


def none(_): ...


def by_hand(net):
    for one in net.parameters():
        one.grad = one.grad.clamp(-0.01, 0.01)


@pytest.mark.parametrize(
    "clip",
    [
        none,
        lambda net: clip_grad_norm_(net.parameters(), 0.3),
        lambda net: clip_grad_value_(net.parameters(), 0.01),
        by_hand,
    ],
    ids=["none", "norm", "value", "by hand"],
)
def test_a_watch_waits_for_the_device_in_the_steps_it_compares_alone(clip, tmp_path):
    """Beside what it writes: a step in twenty, and after torch's norm clip was seen in none."""
    inputs = torch.randn(45, 16, 12, generator=torch.Generator().manual_seed(0))
    curves, waited = {}, []
    for name in ("cpu", "cuda"):
        with ExitStack() as held:
            device = held.enter_context(pretended()) if name == "cuda" else None
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(1)
                net = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 2))
            net, batches = net.to(name), inputs.to(name)
            targets = (inputs[:, :, 0] > 0).long().to(name)
            optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
            with clipbench.watch(net, optimizer, tmp_path / name):
                for number in range(len(batches)):
                    before = len(device.waits) if device else 0
                    optimizer.zero_grad()
                    nn.functional.cross_entropy(net(batches[number]), targets[number]).backward()
                    clip(net)
                    optimizer.step()
                    if device and len(device.waits) > before:
                        waited.append(number)
        curves[name] = Store(tmp_path / name).read("curves").drop(columns=["cell"])
    # what is compared is asked once more when the next step begins
    assert set(waited) <= {0, 1, 20, 21, 40, 41}
    for column in ("loss", "grad_norm", "kept", "cosine", "changed", "update_norm", "threshold"):
        here, there = (curves[name][column].to_numpy(float, na_value=-1.0) for name in curves)
        np.testing.assert_allclose(there, here, rtol=2e-6, atol=1e-9)


# ----------------------------------------------------------------------------------- planted faults


def stale(self, weights, states):
    """Weights that are a new tensor every step: a graph would not see it."""
    self.weights = weights
    for part, state in zip(self.segments, states, strict=True):
        part.lane = state


def reading(self, grads, state, params):
    """A clip whose norm the host reads."""
    del params
    size = self.size(grads)
    if size > self.max_norm:
        return {name: grad * float(self.max_norm / size) for name, grad in grads.items()}, state
    return grads, state


def at_home(self, params):
    """A clip's state that is born on the CPU."""
    del self, params
    return {"n": torch.zeros(1)}


def adding(self, grads, state, params):
    del self, params
    return {name: grad * (state["n"] + 1) for name, grad in grads.items()}, state


METER = step.Meter.__init__


def forgetful(self, params, dtype=None):
    """A buffer that is born on the CPU."""
    METER(self, params, dtype)
    self._differs = torch.empty(self._before.shape, dtype=self._before.dtype)


TAKEN = Lanes._take_step


def asking(self, inputs, targets):
    """Products that are read at once."""
    return [one + 0 * one.sum().item() for one in TAKEN(self, inputs, targets)]


PLANTED = {
    "a graph replays on stale weights": (Lanes, {"_move": stale}, "lanes"),
    "the host reads the norm": (fixed.Norm, {"update": reading, "clip_": None}, "strict"),
    "a state on the CPU": (fixed.Norm, {"init": at_home, "update": adding, "clip_": None}, "loop"),
    "a buffer on the CPU": (step.Meter, {"__init__": forgetful}, "loop"),
    "numbers on the CPU": (
        Lanes,
        {"_numbers": lambda _, values: torch.tensor(values, dtype=torch.float64)},
        "lanes",
    ),
    "products read at once": (Lanes, {"_take_step": asking}, "lanes"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_found(name):
    owner, changes, where = PLANTED[name]
    jobs = [job(), job(clip="none")]
    here = lanes.run([on_cpu(one) for one in jobs])
    with ExitStack() as held:
        for what, change in changes.items():
            if change is None:
                held.enter_context(mock.patch.object(owner, what, create=True))
                delattr(owner, what)
            else:
                held.enter_context(mock.patch.object(owner, what, change, create=True))
        device = held.enter_context(pretended())
        assert found(here, jobs, where, device)


def found(here, jobs, where, device):
    """Whether anything is wrong: an error, a failure, or other numbers than the CPU's."""
    try:
        if where == "strict":
            trainer = engines.Trainer(engines.Components.of(jobs[0]), jobs[0].cell)
            batches = feed.batches(trainer.workload, 0, 16, 3, trainer.dtype, "cuda")
            trainer.step(*next(batches))
            batch, device.strict = next(batches), True
            trainer.step(*batch)
            return False
        there = lanes.run(jobs) if where == "lanes" else [engines.run(jobs[0])]
    except (Misplaced, program.NoLanes):
        return True
    return any(
        other.failure
        or one.rows.shape != other.rows.shape
        or not np.allclose(one.rows, other.rows, **ROUNDING, equal_nan=True)
        for one, other in zip(here, there, strict=False)
    )


@pytest.mark.parametrize("where", ["loop", "lanes", "strict"])
def test_nothing_is_found_in_the_tree_as_it_is(where):
    jobs = [job(), job(clip="none")]
    here = lanes.run([on_cpu(one) for one in jobs])
    with pretended() as device:
        if where == "loop":
            here = [engines.run(on_cpu(jobs[0]))]
        assert not found(here, jobs, where, device)
    assert Counter(device.waits)
