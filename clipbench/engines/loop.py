"""The loop: one cell at a time, as a user would write it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clipbench import events, feed, metrics, optimizers, trees
from clipbench.cell import Cell
from clipbench.engines.record import CHUNK, Components, Evaluation, Job, Record, conclude, graded, stops
from clipbench.step import Meter


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
    record.evaluations += evaluate(workload, trainer.module, cell, 0, ("validation",))
    done, blocks = 0, []
    for stop in stops(cell):
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
        done = stop
        final = ("validation", "test") if done == cell.steps else ("validation",)
        record.evaluations += evaluate(workload, trainer.module, cell, done, final)
    record.rows = np.concatenate(blocks)
    conclude(record, workload)


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

    def weights() -> trees.Tree:
        """As they are now: the clip may keep them."""
        return {name: param.detach().clone() for name, param in named.items()}

    state = clip.init(weights()) if hasattr(clip, "init") else {}

    @torch.no_grad()
    def pure() -> bool:
        nonlocal state
        # A parameter without a gradient counts as one whose gradient is zero, and stays without one.
        grads = {name: torch.zeros_like(param) if param.grad is None else param.grad for name, param in named.items()}
        clipped, state = clip.update(grads, state, weights())
        if clipped is grads:
            return False
        for name, param in named.items():
            if param.grad is not None:
                param.grad = clipped[name]
        return True

    return pure


@torch.no_grad()
def evaluate(workload: Any, module: nn.Module, cell: Cell, updates: int, names: tuple[str, ...]) -> list[Evaluation]:
    """Loss and metrics of ``module`` over whole splits."""
    splits = feed.splits(workload, cell.seed, feed.DTYPES[cell.dtype], cell.device)
    found: list[Evaluation] = []
    module.eval()
    for split in names:
        inputs, targets = splits[split]
        outputs = torch.cat([torch.atleast_1d(module(part)) for part in inputs.split(CHUNK)])
        found += graded(workload, outputs, targets, updates, split)
    module.train()
    return found
