"""The whole training step of a study's own cells, timed with nothing else running, each method
beside the unclipped step.

A *bench* is one cell for every clip of one workload and optimizer.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from clipbench import engines, feed
from clipbench.cell import Part
from clipbench.engines import Components, Job
from clipbench.task import Task
from clipbench.throughput.footprint import Footprint, footprint
from clipbench.throughput.implementations import DEFAULT, IMPLEMENTATIONS, Unfit, flattened, tensors
from clipbench.vocabulary import GRADIENT

LR = 1e-3  # small enough that no method leaves ordinary numbers while it is timed
BATCHES = 16


def benches(jobs: Iterable[Job]) -> list[list[Job]]:
    """A study's benches: per task and optimizer, no clip, and every clip at its middle
    threshold.
    """

    def bench(job: Job) -> tuple[Any, ...]:
        cell = job.cell
        return (*Task.of(cell), cell.optimizer.label)

    groups = []
    for _, group in groupby(sorted(jobs, key=bench), key=bench):
        clips: dict[str, dict[float, Job]] = {}
        for job in group:
            clips.setdefault(job.cell.clip.label, {})[job.threshold or 0.0] = job
        chosen = [points[sorted(points)[len(points) // 2]] for _, points in sorted(clips.items())]
        if "none" not in clips:  # every ratio is to the unclipped step, also if the study has none
            chosen.insert(0, Job(replace(chosen[0].cell, clip=Part("none", 1)), {}))
        groups.append([replace(job, cell=replace(job.cell, lr=LR, seed=0)) for job in chosen])
    return groups


class Step:
    """One method's training step as its user writes it, without any measuring, over a fixed cycle
    of batches.

    :raises Unfit: the implementation has no such optimizer or clip.
    """

    def __init__(self, job: Job, implementation: str = DEFAULT) -> None:
        cell, components = job.cell, Components.of(job)
        self.trainer, self.device = engines.Trainer(components, cell, metered=False), cell.device
        batches = feed.batches(
            components.workload, cell.seed, cell.batch, BATCHES, self.trainer.dtype, cell.device
        )
        self.batches = self._cycle(list(batches))
        self.params = [param for param in self.trainer.module.parameters() if param.requires_grad]
        self.built = None
        if implementation != DEFAULT:
            if cell.on != GRADIENT:
                raise Unfit(f"it clips the batch's gradient, and not the {cell.on}")
            kind = IMPLEMENTATIONS[implementation]
            self.built = kind(
                [flattened(self.params)] if kind.flat else self.params,
                components.optimizer,
                cell.lr,
            )
            self.update = self.built.update(components.clip)

    @staticmethod
    def _cycle(batches: list[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from batches

    def once(self) -> None:
        """Take one step."""
        if self.built is None:  # the step of the training runs
            self.trainer.step(*next(self.batches))
            return
        self.built.zero_grad()
        self.trainer.backward(*next(self.batches))
        self.update()

    def block(self, steps: int) -> float:
        """Seconds for ``steps`` steps; a CUDA device has finished before the clock starts and
        before it stops.
        """
        self._finish()
        start = time.perf_counter()
        for _ in range(steps):
            self.once()
        self._finish()
        return time.perf_counter() - start

    def _finish(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def footprint(self) -> Footprint:
        """Memory and, on CUDA, kernels and waits of one step."""
        if self.built is not None:
            return footprint(self.once, self.built.held(), self.device)
        self.trainer.optimizer.zero_grad(set_to_none=False)  # gradients belong to what is held
        params = list(self.trainer.module.parameters())
        held = tensors(
            [params, [param.grad for param in params], list(self.trainer.optimizer.state.values())]
        )
        return footprint(self.once, held, self.device)
