"""Rates: how fast each engine trains one task here, measured for a moment; and the choice that
follows from them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from statistics import median
from typing import Any

import numpy as np
import torch

from clipbench import feed, measures, trees
from clipbench.engines import lanes, stacked, structure
from clipbench.engines.evaluating import evaluate
from clipbench.engines.loop import Trainer
from clipbench.engines.loop import evaluate as evaluate_one
from clipbench.engines.native import NotCompiled, Untranslated
from clipbench.engines.program import (
    CHANGES_BUFFERS,
    FEWEST_LANES,
    NoLanes,
    flat,
    peak_bytes,
    trace,
)
from clipbench.engines.record import CHUNK, Components, Job, stops

LOOP, BATCHED = "loop", "batched"
MEMORY = 2 * 10**9  # bytes a worker may fill with lanes
LADDER = (2, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
FILLED = 0.8  # share of a device's free memory that lanes may take: pieces of it are lost
MOMENT = 0.25  # seconds a rate is measured for
STEPS = 200  # at most
# a rung that leaves more than this of the best rate ends the climb: more lanes are more memory and
# fewer shards
BETTER = 0.97
CLOSE = 1.5  # rates whose ratio is below this are measured again
# seconds: if the loop needs less, the search for a faster engine takes longer than it saves
MEASURING = 10.0
# seconds that a program of this machine takes to build for one structure, about; the measured time
# replaces it
BUILDING = 0.5
# share of a step's time that such a program saves; it is not tried if that is less than it costs
PAYS = 0.5
# of a shard, times those that stand abreast: more make it no faster, and fewer shards
NATIVE_LANES = 32
FEW_SEEDS = 3  # of such a shard: its lanes of one seed stand together
MOST_AT_ONCE = 40  # steps of a measurement
# a process grows by at most so many times the memory in use (4.4 seen with glibc; CUDA was not
# measured): freed pieces do not fit the next tensors
HEADROOM = 5
# that a lane has at its end: in stretches, as one, and as bytes that are handed over; one for what
# is held besides
CURVES = 4
AGREEMENT = 1e-9
# Steps of native lanes that are compared with those of torch before they are trusted, relative to
# the number: float32, summed in another order. An update is a small difference of large weights.
COMPARED, ALIKE = 3, 0.02
SEEN = [measures.LOSS, measures.GRAD_NORM, measures.KEPT]


@dataclass
class Choice:
    """How a task is run: the engine, its number of lanes, and the measured rates, in seconds a cell
    and step.

    A rate includes the step's share of the evaluations. ``refusals`` says why arms, or the whole
    workload (``""``), have no lanes; ``untranslated`` why they are no program of this machine.
    """

    engine: str
    lanes: int = 0
    native: bool = False
    rates: dict[str, float] = field(default_factory=dict)
    lane_bytes: int = 0
    refusals: dict[str, str] = field(default_factory=dict)
    untranslated: str = ""
    # that were looked at, with their components' versions
    arms: list[str] = field(default_factory=list)

    def page(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, page: Mapping[str, Any]) -> Choice:
        """The choice on a page, which an earlier version may have written."""
        names = {one.name for one in fields(cls)}
        return cls(**{name: value for name, value in page.items() if name in names})

    def rate(self, engine: str) -> float | None:
        """Seconds that an engine, as it would be used, takes for a step of one cell; None if
        that was not measured.
        """
        if engine == LOOP:
            return self.rates.get(LOOP)
        return self.rates.get(_rung(self.lanes, self.native))


def _rung(count: int, native: bool = False) -> str:
    return f"{count} lanes, native" if native else f"{count} lanes"


def measure(
    jobs: Sequence[Job],
    memory: int | None,
    cell_steps: float,
    wanted: str = "auto",
    sharers: int = 1,
    seeds: int = FEW_SEEDS,
) -> Choice:
    """The choice for some jobs of one `structure.shape`.

    :param jobs: one of every arm at least.
    :param memory: bytes that lanes may take; if None, `MEMORY` on the CPU, and on CUDA most of what
        is free there, a part for each of the ``sharers`` of the device.
    :param cell_steps: steps times cells that one worker has before it: measuring, and compiling,
        must pay within them.
    :param wanted: ``auto``, or ``batched``: lanes are measured even if that does not pay.
    :param seeds: of the task: lanes draw the batches, and hold the splits, of each.
    """
    choice = Choice(LOOP, rates={LOOP: _loop(jobs[0])})
    if wanted != BATCHED and cell_steps * choice.rates[LOOP] < MEASURING:
        return choice
    choice.refusals, choice.arms = refusals(jobs), sorted({versioned(job) for job in jobs})
    able = [job for job in jobs if job.cell.arm not in choice.refusals]
    if "" in choice.refusals or not able:
        return choice
    if able[0] is not jobs[0]:
        choice.rates[LOOP] = _loop(able[0])  # of the arm that is measured in lanes
    choice.lane_bytes = lane_bytes(able)
    device = able[0].cell.device
    fits = (memory or _bound(device, sharers)) // max(1, choice.lane_bytes)
    if device == "cpu" and _is_native(choice, able, cell_steps, fits, min(seeds, FEW_SEEDS)):
        choice.engine, choice.native = BATCHED, True
        return choice
    best = float("inf")
    for count in LADDER:
        if count > fits:
            break
        rate, taken = _lanes(_copies(able, count, seeds))
        if taken > fits:  # with the lanes that fill up
            continue
        choice.rates[_rung(count)] = rate
        if rate > BETTER * best:
            break
        best, choice.lanes = rate, count
    if choice.lanes and 1 / CLOSE < best / choice.rates[LOOP] < CLOSE:
        _settle(choice, able[0], _copies(able, choice.lanes, seeds))
        best = choice.rates[_rung(choice.lanes)]
    if (choice.rate(BATCHED) or float("inf")) < choice.rates[LOOP]:
        choice.engine = BATCHED
    return choice


def _bound(device: str, sharers: int) -> int:
    """Bytes that the lanes of one worker may take."""
    if device != "cuda":
        return MEMORY
    free, _ = torch.cuda.mem_get_info()
    return int(FILLED * free) // sharers


def _copies(jobs: Sequence[Job], count: int, seeds: int) -> list[Job]:
    """``count`` jobs of the first one's structure, of so many seeds in turn."""
    return [
        replace(jobs[0], cell=replace(jobs[0].cell, seed=number % seeds)) for number in range(count)
    ]


def _settle(choice: Choice, job: Job, filled: Sequence[Job]) -> None:
    """Measure both engines twice more, in turn, and take the medians: another program on the
    machine must not decide.
    """
    rung = _rung(choice.lanes)
    loops, rates = [choice.rates[LOOP]], [choice.rates[rung]]
    for _ in range(2):
        loops.append(_loop(job))
        rates.append(_lanes(filled)[0])
    choice.rates |= {LOOP: median(loops), rung: median(rates)}


def _is_native(
    choice: Choice, able: Sequence[Job], cell_steps: float, fits: int, seeds: int
) -> bool:
    """Whether a program of this machine pays, building it included; it is measured if it can.

    Then no more numbers of lanes are tried: as many lanes of torch are measured beside it, and
    more of them would gain less than it does.
    """
    arms = list({structure.Structure.of(job): job for job in able}.values())
    if fits < FEWEST_LANES or cell_steps * choice.rates[LOOP] * PAYS < BUILDING * len(arms):
        return False
    start = time.perf_counter()
    try:
        together = lanes.begin([_long(job) for job in arms], native=True)
        building = time.perf_counter() - start
        if reason := _parted(*together):
            choice.untranslated = reason
            return False
        count = min(fits, NATIVE_LANES * _abreast(together[0]))
        filled = _copies(able, count, seeds)
        rate, _ = _lanes(filled, native=True)
    except (Untranslated, NotCompiled) as error:
        choice.untranslated = str(error)
        return False
    eager, taken = _lanes(filled)
    choice.rates |= {_rung(count, native=True): rate, _rung(count): eager}
    best = min(choice.rates[LOOP], eager if taken <= fits else choice.rates[LOOP])
    if cell_steps * rate + building >= cell_steps * best:
        return False
    choice.lanes = count
    return True


def _abreast(together: lanes.Lanes) -> int:
    """How many lanes share a register, of the structure in which they are most; 1 if none do."""
    return max(together.stepper.abreast.values()) if together.stepper is not None else 1


def _parted(native: lanes.Lanes, cells: Sequence[int]) -> str | None:
    """How some steps of native lanes differ from those of torch's lanes, in words; None if they do
    not. Whatever was translated wrongly trains nothing.
    """
    other, others = lanes.begin([native.jobs[cells.index(cell)] for cell in sorted(set(cells))])
    for made in (native, other):
        made.advance(COMPARED)
    rows, expected = native.rows(), other.rows()
    for cell in sorted(set(cells)):
        one, two = rows[:, cells.index(cell), SEEN], expected[:, others.index(cell), SEEN]
        if not np.allclose(one, two, rtol=ALIKE, atol=0, equal_nan=True):
            return f"its numbers with {native.jobs[cells.index(cell)].cell.arm} are not torch's"
    return None


def _spread(
    step: Callable[[], None], evaluation: Callable[[], Any], job: Job, steps: int = 1
) -> float:
    """Seconds a step: the median, and the step's share of the evaluations. The clock waits for
    the device, whichever engine it is.

    :param steps: that one call takes.
    """
    wait = torch.cuda.synchronize if job.cell.device == "cuda" else _nothing
    for _ in range(3):
        step()
    wait()
    times: list[float] = []
    start = time.perf_counter()
    most = STEPS // steps
    while (time.perf_counter() - start < MOMENT and len(times) < most) or len(times) < 3:
        begin = time.perf_counter()
        step()
        wait()
        times.append(time.perf_counter() - begin)
    evaluation()
    begin = time.perf_counter()
    evaluation()
    evaluations = (time.perf_counter() - begin) * (job.cell.evaluations + 1)
    return median(times) / steps + evaluations / job.cell.steps


def _nothing() -> None:
    """A CPU has nothing to wait for."""


def _long(job: Job) -> Job:
    """The job with enough steps for a measurement, at a learning rate at which training does not
    diverge.
    """
    return replace(job, cell=replace(job.cell, lr=1e-4, steps=STEPS + 10 * MOST_AT_ONCE))


def _loop(job: Job) -> float:
    components, long = Components.of(job), _long(job).cell
    with trees.seeded(components.workload.name, 0, "training", long.device):
        trainer = Trainer(components, long)
        batches = feed.batches(
            components.workload, long.seed, long.batch, long.steps, trainer.dtype, long.device
        )
        return _spread(
            lambda: trainer.step(*next(batches)),
            lambda: evaluate_one(components.workload, trainer.module, long, 0),
            job,
        )


def _lanes(jobs: Sequence[Job], *, native: bool = False) -> tuple[float, int]:
    """Seconds that one lane among these takes for a step, and the number of lanes, those that
    fill up included.

    :raises Untranslated: there is no program of this machine.
    :raises NotCompiled: there is no compiler, or it fails.
    """
    together, _ = lanes.begin([_long(job) for job in jobs], native)
    # as many at a time as between two evaluations
    steps = min(MOST_AT_ONCE, stops(jobs[0].cell)[0]) if native else 1
    seconds = _spread(
        lambda: together.advance(steps),
        lambda: evaluate(together, range(len(jobs)), 0),
        jobs[0],
        steps,
    )
    return seconds / len(jobs), len(together.jobs)


def lane_bytes(jobs: Sequence[Job]) -> int:
    """Memory that one lane takes at its peak, in a step or in an evaluation, from its traced
    programs, and with its curve; of these arms the most.
    """
    return max(
        _lane_bytes(job) for job in {structure.Structure.of(job): job for job in jobs}.values()
    )


def _lane_bytes(job: Job) -> int:
    together = lanes.Lanes([_long(job)] * FEWEST_LANES)
    inputs, targets = together.draw()
    (segment,) = together.segments
    weights, programs = together.weights, together.programs
    batch = (weights, inputs, targets, together.fixed)
    grads = together.model.like_gradient(weights, inputs)
    update = programs.update(segment.structure, weights, grads, segment.lane)
    splits = feed.splits(together.workload, job.cell.seed, together.dtype, together.device)
    most = max((splits[name][0][:CHUNK] for name in feed.SPLITS), key=len)
    seen = torch.stack([most] * FEWEST_LANES)
    evaluation = (
        weights.nbytes
        + sum(tensor.nbytes for tensor in together.fixed)
        + seen.nbytes
        + peak_bytes(programs.output(weights, seen, together.fixed))
    )
    held = sum(tensor.nbytes for tensor in (*flat(batch), *segment.lane.remembered))
    step = max(peak_bytes(programs.gradient(*batch)), grads.nbytes + peak_bytes(update))
    curve = CURVES * job.cell.steps * len(measures.COLUMNS) * np.dtype(float).itemsize
    return HEADROOM * (held + max(step, evaluation)) // FEWEST_LANES + curve


def versioned(job: Job) -> str:
    """The label of an arm in a choice, with its components' versions: another version is
    measured anew.
    """
    return f"{job.cell.arm}, versions {job.cell.optimizer.version} and {job.cell.clip.version}"


def refusals(jobs: Sequence[Job]) -> dict[str, str]:
    """Why the workload (``""``), or single arms, have no lanes: arm → reason, empty if all have."""
    reasons: dict[str, str] = {}
    plain = _double(jobs[0])
    try:
        if reason := disagreement(plain):
            reasons[""] = reason
    except NoLanes as error:
        reasons[""] = str(error)
    if reasons:
        return reasons
    seen: dict[str, Job] = {}
    for job in jobs:
        seen.setdefault(job.cell.arm, job)
    for label, job in seen.items():
        try:
            pair = lanes.Lanes([_long(job)] * FEWEST_LANES)
            pair.step(*pair.draw())
            pair.step(*pair.draw())
        except NoLanes as error:
            reasons[label] = str(error)
    return reasons


def _double(job: Job) -> Job:
    return replace(job, cell=replace(job.cell, dtype="float64", lr=1e-4, steps=2))


def disagreement(job: Job) -> str | None:
    """How the gradient of two lanes differs from the loop's, in float64 at two batches, in
    words; None if it does not.
    """
    cell = job.cell
    workload = Components.of(job).workload
    model = stacked.Model(workload, torch.float64, cell.device)
    modules = [feed.model(workload, seed, torch.float64, cell.device) for seed in (0, 1)]
    streams = [
        feed.batches(workload, seed, cell.batch, 2, torch.float64, cell.device) for seed in (0, 1)
    ]
    fixed = tuple(
        torch.stack(tensors)
        for tensors in zip(*(model.kept(module) for module in modules), strict=True)
    )
    weights = torch.stack([model.flat(module) for module in modules])
    graph = None
    for batches in zip(*streams, strict=True):
        inputs, targets = (torch.stack(tensors) for tensors in zip(*batches, strict=True))
        if graph is None:
            lane = torch.func.grad_and_value(model.loss)
            graph = trace(
                torch.vmap(lane), (weights, inputs, targets, fixed), f'workload "{workload.name}"'
            )
        grads, _ = graph(weights, inputs, targets, *fixed)
        for lane_grad, module, (some_inputs, wanted) in zip(grads, modules, batches, strict=True):
            module.zero_grad()
            before = [buffer.clone() for buffer in module.buffers()]
            with trees.seeded(workload.name, 0, "training", cell.device):
                feed.loss_of(workload, module(some_inputs), wanted).backward()
            if any(
                not torch.equal(one, other)
                for one, other in zip(before, module.buffers(), strict=True)
            ):
                return f'workload "{workload.name}" {CHANGES_BUFFERS}'
            if any(param.requires_grad and param.grad is None for param in module.parameters()):
                return (
                    f'workload "{workload.name}" has a parameter without a gradient, which '
                    f"torch leaves alone and lanes do not: it runs in the loop"
                )
            alone = model.flat_grad(module)
            limit = AGREEMENT * float(alone.abs().nan_to_num(posinf=0.0).max())
            if not torch.allclose(lane_grad, alone, rtol=0, atol=limit, equal_nan=True):
                return f'workload "{workload.name}" has another gradient in lanes than in the loop'
    return None
