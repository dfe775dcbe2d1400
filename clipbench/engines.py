"""Engines train cells. ``loop`` trains one, as a user would write it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clipbench import events, feed, metrics, optimizers, registry, trees
from clipbench.cell import Cell, Part
from clipbench.events import Event, Verdict
from clipbench.step import Meter

PILOT_SEED = 2_000_000
PILOT_STEPS = 100
PILOT_LR = 1e-3

Evaluation = tuple[int, str, str, float]


@dataclass(frozen=True)
class Job:
    """A cell, and its clip's settings with a relative threshold resolved to a number."""

    cell: Cell
    clip_settings: Mapping[str, Any]

    @property
    def threshold(self) -> float | None:
        """The clip's first setting, its default where none is given; None for a clip without settings."""
        cls = registry.find("clip", self.cell.clip.name)
        name = registry.threshold_field(cls)
        return None if name is None else float(self.clip_settings[name] if name in self.clip_settings else getattr(cls, name))


@dataclass
class Record:
    """What became of a cell. ``rows`` is the curve, steps × 6 in the order of ``events.COLUMNS``.

    ``evaluations`` are ``(updates, split, metric, value)``; ``failure`` says why the cell could not be run, None where it was.
    """

    job: Job
    threshold: float | None = None
    rows: np.ndarray = field(default_factory=lambda: np.empty((0, len(events.COLUMNS))))
    evaluations: list[Evaluation] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    verdict: Verdict | None = None
    failure: str | None = None
    metric: str | None = None
    steps_to_target: int | None = None
    engine: str = "loop"
    threads: int = 1
    seconds: float = 0.0


@dataclass(frozen=True)
class Components:
    """The three components of a cell, built."""

    workload: Any
    optimizer: Any
    clip: Any

    @classmethod
    def of(cls, job: Job) -> Components:
        cell = job.cell
        return cls(
            registry.build("workload", cell.workload.name, cell.workload.settings),
            registry.build("optimizer", cell.optimizer.name, cell.optimizer.settings),
            registry.build("clip", cell.clip.name, job.clip_settings),
        )


def run(job: Job) -> Record:
    """Train one cell; whatever it raises becomes a record that says why it failed."""
    start = time.perf_counter()
    record = Record(job, threads=torch.get_num_threads())
    try:
        record.threshold = job.threshold
        components = Components.of(job)
        with trees.seeded(components.workload.name, job.cell.seed, "training", job.cell.device):  # for dropout and the like
            _loop(record, components)
    except torch.OutOfMemoryError:
        record.failure = f"out of memory on {job.cell.device}"
    except Exception as error:  # noqa: BLE001 - a stranger's component may raise anything; the matrix goes on
        record.failure = f"{type(error).__name__}: {error}".replace("\n", " ")[:500]
    record.seconds = time.perf_counter() - start
    return record


def _loop(record: Record, components: Components) -> None:
    cell, workload = record.job.cell, components.workload
    record.metric = metrics.name_of(workload.metric)
    trainer = Trainer(components, cell)
    batches = feed.batches(workload, cell.seed, cell.batch, cell.steps, trainer.dtype, cell.device)
    stops = np.unique(np.linspace(0, cell.steps, max(2, cell.evaluations)).round().astype(int))  # the first, the last, between
    record.evaluations += evaluate(workload, trainer.module, cell, 0, ("validation",))
    done, blocks = 0, []
    for stop in stops[1:]:
        raised = None
        try:
            for _ in range(done, stop):
                trainer.step(*next(batches))
        except Exception as error:  # noqa: BLE001 - steps after a non-finite one may raise anything; the run ended before them
            raised = error
        rows = trainer.meter.rows()
        ended = events.ends(rows)
        if raised is not None and not ended.any():
            raise raised
        blocks.append(rows[: int(np.argmax(ended)) + 1] if ended.any() else rows)
        if ended.any():
            break
        done = int(stop)
        final = ("validation", "test") if done == cell.steps else ("validation",)
        record.evaluations += evaluate(workload, trainer.module, cell, done, final)
    record.rows = np.concatenate(blocks)
    conclude(record, workload)


def conclude(record: Record, workload: Any) -> None:
    """Events, verdict and steps to target of a run whose curve and evaluations are recorded."""
    rules = events.rules_from(record.job.cell.events)
    reference, optimum = workload.reference_loss, getattr(workload, "optimum", None)
    unbounded = bool(getattr(workload, "unbounded", False))
    record.events = events.derive(record.rows, reference, optimum, unbounded, rules)
    validation = [(step, value) for step, split, metric, value in record.evaluations if (split, metric) == ("validation", "loss")]
    last = validation[-1][1] if validation else None
    record.verdict = events.judge(record.rows, record.events, reference, optimum, unbounded, last, rules)
    target = getattr(workload, "target", None)
    if target is not None:
        record.steps_to_target = next((step for step, value in validation if value <= target), None)


class Trainer:
    """One module in training: a real ``torch.optim`` object, ``loss.backward()``, the clip, ``optimizer.step()``."""

    def __init__(self, components: Components, cell: Cell) -> None:
        self.workload = components.workload
        self.dtype = feed.DTYPES[cell.dtype]
        self.module = feed.model(self.workload, cell.seed, self.dtype, cell.device)
        named = {name: param for name, param in self.module.named_parameters() if param.requires_grad}
        self.optimizer = optimizers.torch_optimizer(components.optimizer, list(named.values()), cell.lr, named)
        self.clip = clipper(components.clip, named)
        self.meter = Meter(list(named.values()))

    def step(self, inputs: Tensor, targets: Tensor) -> None:
        """One training step, measured."""
        self.optimizer.zero_grad()
        loss = feed.loss_of(self.workload, self.module(inputs), targets)
        loss.backward()
        self.meter.raw()
        clip_ran = self.clip()
        self.optimizer.step()
        self.meter.step(loss, clip_ran)


def clipper(clip: Any, named: Mapping[str, nn.Parameter]) -> Callable[[], bool]:
    """A function that clips the gradients of ``named`` in place, and says whether any clip touched them.

    torch's own in-place path where the clip has one, its pure rule elsewhere.
    """
    params = list(named.values())
    if hasattr(clip, "clip_"):

        def in_place() -> bool:
            clip.clip_(params)
            return True

        return in_place
    weights = {name: param.detach() for name, param in named.items()}
    state = clip.init(weights) if hasattr(clip, "init") else {}

    @torch.no_grad()
    def pure() -> bool:
        nonlocal state
        # A parameter without a gradient counts as one whose gradient is zero, and stays without one.
        grads = {name: torch.zeros_like(param) if param.grad is None else param.grad for name, param in named.items()}
        clipped, state = clip.update(grads, state, weights)
        if clipped is grads:
            return False
        for name, param in named.items():
            if param.grad is not None:
                param.grad = clipped[name]
        return True

    return pure


@torch.no_grad()
def evaluate(
    workload: Any, module: nn.Module, cell: Cell, updates: int, names: tuple[str, ...], chunk: int = 512
) -> list[Evaluation]:
    """Loss and metrics of ``module`` over whole splits."""
    splits = feed.splits(workload, cell.seed, feed.DTYPES[cell.dtype], cell.device)
    found: list[Evaluation] = []
    module.eval()
    for split in names:
        inputs, targets = splits[split]
        outputs = torch.cat([torch.atleast_1d(module(part)) for part in inputs.split(chunk)])
        loss = feed.loss_of(workload, outputs, targets)
        found.append((updates, split, "loss", float(loss.mean())))
        named = {metrics.name_of(metric): metric for metric in (workload.metric, *getattr(workload, "other_metrics", ()))}
        found += [(updates, split, name, float(metric(outputs, targets))) for name, metric in named.items()]
    module.train()
    return found


# ----------------------------------------------------------------------------------------------------------------- the pilot


class Gauge:
    """A clip that changes nothing and notes the raw gradient's size, as other clips measure it."""

    def __init__(self, clips: Mapping[str, Any]) -> None:
        self.clips = clips
        self.sizes: dict[str, list[Tensor]] = {label: [] for label in clips}

    def update(self, grads: dict[str, Tensor], state: Any, params: Any) -> tuple[dict[str, Tensor], Any]:
        for label, clip in self.clips.items():
            self.sizes[label].append(clip.size(grads))
        return grads, state


def pilot(cell: Cell, clips: Mapping[str, Any]) -> dict[str, float]:
    """The median size of the raw gradient over 100 Adam steps at lr 1e-3, to three digits, as each of ``clips`` measures size.

    :param cell: any cell of the workload, batch, device and dtype in question.
    :returns: label of the clip → median size.
    """
    gauge = Gauge(clips)
    adam = Cell(
        cell.workload, Part("adam", 1), Part("none", 1), PILOT_LR, PILOT_SEED, PILOT_STEPS, cell.batch, cell.device, cell.dtype
    )
    workload = registry.build("workload", cell.workload.name, cell.workload.settings)
    trainer = Trainer(Components(workload, registry.build("optimizer", "adam", {}), gauge), adam)
    with trees.seeded(workload.name, PILOT_SEED, "training", cell.device):
        for batch in feed.batches(workload, PILOT_SEED, cell.batch, PILOT_STEPS, trainer.dtype, cell.device):
            trainer.step(*batch)
    medians = {label: float(torch.stack(sizes).double().quantile(0.5)) for label, sizes in gauge.sizes.items()}
    unfit = [label for label, size in medians.items() if not (math.isfinite(size) and size > 0)]
    if unfit:
        raise registry.UsageError(
            f'the pilot of "{cell.problem}" met gradients of size {medians[unfit[0]]:g}; give {unfit[0]} a plain number.'
        )
    return {label: float(f"{size:.3g}") for label, size in medians.items()}
