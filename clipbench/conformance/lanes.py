"""The claims about lanes: what they leave is what the loop leaves, in float64, for every
registered optimizer and clip.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import nn

from clipbench import feed, measures, registry, trees
from clipbench.cell import Cell, Part
from clipbench.conformance.findings import Fault, distance
from clipbench.conformance.settings import examples
from clipbench.conformance.workloads import BATCH
from clipbench.engines import Components, Job, Trainer, rates, structure
from clipbench.engines.lanes import Lanes
from clipbench.engines.native import NotCompiled, Untranslated

# share of elements: where a gradient is nothing but rounding, it may be zero in one engine and not
# in the other
COUNTED = 1e-4
# a step's weights and measures, relative, both engines having begun it with the same weights
LOCKED = 1e-10
# times what rounding alone, `DISTURBANCE` of the first weights, makes of the loop's weights until
# then: Adam divides by the size of a gradient that may be hardly more than rounding
ROUNDED = 10
# after `STEPS` steps, wherever the loop, its weights disturbed by `DISTURBANCE`, stays within
# `CALM` of itself
FREE = 1e-8
CALM, DISTURBANCE = 1e-10, 1e-15
STEPS, LOCKED_STEPS = 100, 10
# elements from which a sixth of the arms run on: what many steps add to one is the workload's
SMALL = 7_000
LARGE = 200_000  # elements from which two arms and three steps must do
LR = 1e-3
THRESHOLD = 0.3  # times the first gradient's size: a clip that acts
IN_LOOP = "nothing to compare: it runs in the loop"
MEASURES = [measures.LOSS, measures.GRAD_NORM, measures.KEPT, measures.UPDATE_NORM]


def refused(cls: Any) -> str | None:
    """Why the workload cannot train in lanes: worth knowing, and no fault."""
    return _refusal(cls)


@lru_cache(maxsize=1)  # three claims on one workload ask
def _refusal(cls: Any) -> str | None:
    # in float32, as studies run: an operation may have lanes in one dtype only
    job = job_of(cls, "sgd", "none", {})
    reasons = rates.refusals([replace(job, cell=replace(job.cell, dtype="float32"))])
    return next(iter(reasons.values()), None)


def step_locked(cls: type[Any]) -> str | None:
    """Every step, begun with the loop's weights, ends with the loop's weights and measures."""
    return IN_LOOP if refused(cls) else _locked(_arms(cls), native=False)


def free_running(cls: type[Any]) -> str | None:
    """After many steps on their own the engines agree, wherever rounding alone does not part the
    loop from itself.
    """
    return IN_LOOP if refused(cls) else _free(_arms(cls), native=False)


def native_steps(cls: type[Any]) -> str | None:
    """The same two of a program of this machine."""
    if refused(cls):
        return IN_LOOP
    jobs = _arms(cls)
    try:
        return f"{_locked(jobs, native=True)}; {_free(jobs, native=True)}"
    except (Untranslated, NotCompiled) as error:
        return f"nothing to compare: it trains in torch's lanes ({error})"


def _locked(jobs: Sequence[Job], *, native: bool) -> str:
    together, trainers, batches = (
        Lanes(jobs, native),
        [_trainer(job) for job in jobs],
        _batches(jobs[0], LOCKED_STEPS),
    )
    steps = LOCKED_STEPS if together.model.elements < LARGE else 3
    for number, batch in enumerate(itertools.islice(batches, steps)):
        together.weights = torch.stack(
            [together.model.flat(trainer.module) for trainer in trainers]
        )
        together.advance(1)
        rows = together.rows()[0]
        for lane, trainer in enumerate(trainers):
            trainer.step(*batch)
            apart = _distance(
                together.weights[lane].numpy(), together.model.flat(trainer.module).numpy()
            )
            measured = trainer.meter.rows()[0]
            apart = max(apart, *(_distance(rows[lane, [one]], measured[[one]]) for one in MEASURES))
            if apart > LOCKED and apart > ROUNDED * _rounding(jobs[lane], number + 1):
                raise Fault(
                    f"with {jobs[lane].cell.arm}, step {number} is {apart:.2g} from the loop's"
                )
            if abs(rows[lane, measures.CHANGED] - measured[measures.CHANGED]) > COUNTED:
                raise Fault(
                    f"with {jobs[lane].cell.arm}, step {number} changes another share of elements "
                    f"than the loop's"
                )
    return f"{len(jobs)} arms, {steps} steps"


def _free(jobs: Sequence[Job], *, native: bool) -> str:
    together = Lanes(jobs, native)
    if together.model.elements >= LARGE:
        return "too large to run on; the steps alone are compared"
    if together.model.elements >= SMALL:
        jobs = jobs[::6]
        together = Lanes(jobs, native)
    together.advance(STEPS)
    rows, agreeing = together.rows(), 0
    for lane, job in enumerate(jobs):
        alone = _curve(job)
        apart = _distance(rows[:, lane, measures.LOSS], alone)
        # The loop runs a second time only if the engines disagree: whether rounding alone does as
        # much.
        if apart <= FREE:
            agreeing += 1
        elif _distance(_curve(job, DISTURBANCE), alone) <= CALM:
            raise Fault(f"with {job.cell.arm}, {STEPS} steps end {apart:.2g} from the loop's")
    parted = (
        f"; of the other {len(jobs) - agreeing} rounding alone parts the loop from itself"
        if agreeing < len(jobs)
        else ""
    )
    return f"{agreeing} of {len(jobs)} arms agree after {STEPS} steps{parted}"


def job_of(cls: type[Any], optimizer: str, clip: str, settings: dict[str, Any]) -> Job:
    """A training run of a workload at its first example settings, in float64."""
    workload_settings = examples(cls)[0]
    threshold = registry.threshold_field(registry.find("clip", clip))
    parts = (
        Part(cls.name, cls.version, workload_settings),
        Part(optimizer, 1),
        Part(clip, 1, settings, threshold),
    )
    return Job(Cell(*parts, LR, 0, STEPS, BATCH, dtype="float64", evaluations=1), settings)


def _arms(cls: type[Any]) -> list[Job]:
    """Every optimizer with a pure rule and every clip, each at least once; of a large model two
    pairs.
    """
    first = _trainer(job_of(cls, "sgd", "none", {}))
    first.step(*next(_batches(job_of(cls, "sgd", "none", {}), 1)))
    grads = {
        name: param.grad
        for name, param in first.module.named_parameters()
        if param.grad is not None
    }
    optimizers = [
        name
        for name in registry.names("optimizer")
        if hasattr(registry.find("optimizer", name), "update")
    ]
    rules = [registry.find("clip", name) for name in registry.names("clip")]
    clips = [
        (rule.name, _acting(rule, settings, grads))
        for rule in rules
        for settings in _settings(rule)
    ]
    elements = sum(param.numel() for param in first.module.parameters())
    turns = max(len(optimizers), len(clips))
    pairs = [
        (optimizers[turn % len(optimizers)], clips[turn % len(clips)]) for turn in range(turns)
    ]
    if elements >= LARGE:
        pairs = pairs[:: len(pairs) // 2][:2]
    jobs = [job_of(cls, optimizer, *clip) for optimizer, clip in pairs]
    return sorted(jobs, key=lambda job: repr(structure.Structure.of(job)))


def _settings(rule: Any) -> Iterator[dict[str, Any]]:
    """One example of every structure: settings that are no plain numbers."""
    floats, seen = registry.lane_fields(rule), []
    for settings in examples(rule):
        fixed = {name: value for name, value in settings.items() if name not in floats}
        if fixed not in seen:
            seen.append(fixed)
            yield dict(settings)


def _acting(rule: Any, settings: dict[str, Any], grads: trees.Tree) -> dict[str, Any]:
    """The settings with a threshold that cuts these gradients."""
    threshold = registry.threshold_field(rule)
    if threshold is None or not hasattr(rule, "size"):
        return settings
    return {
        **settings,
        threshold: THRESHOLD * float(rule(**{**settings, threshold: 1.0}).size(grads)),
    }


def _trainer(job: Job) -> Trainer:
    return Trainer(Components.of(job), job.cell)


def _batches(job: Job, steps: int) -> Iterator[feed.Batch]:
    cell = job.cell
    workload = registry.build("workload", cell.workload.name, cell.workload.own)
    return feed.batches(workload, cell.seed, cell.batch, steps, torch.float64)


def _ran(job: Job, steps: int, disturbance: float = 0.0) -> Trainer:
    """The loop after some steps, its first weights moved by a share of themselves, this way and
    that.
    """
    trainer = _trainer(job)
    draw = trees.generator("conformance", 0, "disturbance")
    with torch.no_grad():
        for param in trainer.module.parameters():
            signs = 2 * torch.randint(2, param.shape, generator=draw, dtype=param.dtype) - 1
            param.add_(disturbance * param * signs)
    for batch in _batches(job, steps):
        trainer.step(*batch)
    return trainer


def _rounding(job: Job, steps: int) -> float:
    """How far rounding alone parts the loop's weights from themselves in some steps."""
    ends = (_ran(job, steps, disturbance).module for disturbance in (DISTURBANCE, 0.0))
    return distance(*(nn.utils.parameters_to_vector(one.parameters()) for one in ends))


def _curve(job: Job, disturbance: float = 0.0) -> np.ndarray:
    """The losses of the loop."""
    return _ran(job, STEPS, disturbance).meter.rows()[:, measures.LOSS]


def _distance(left: np.ndarray, right: np.ndarray) -> float:
    """`distance` of what the engines give as arrays."""
    return distance(torch.from_numpy(left), torch.from_numpy(right))
