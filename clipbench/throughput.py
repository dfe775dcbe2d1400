"""What a clip costs: the real torch step, timed alone, each method side by side with the unclipped step of the same optimizer.

A *bench* is one cell for every clip of one workload and optimizer. Its methods take turns in blocks of a few milliseconds, in an
order shuffled anew every round, so that a machine's drift meets all of them alike; the ratio to no clip is taken within a round.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from clipbench import engines, feed, trees
from clipbench.cell import Part
from clipbench.engines import Components, Job

ROUNDS = 30
WARM_UP = 5
BLOCK_SECONDS = 0.004
LR = 1e-3  # small enough that no method leaves ordinary numbers while it is timed
BATCHES = 16


def benches(jobs: Iterable[Job]) -> list[list[Job]]:
    """A study's benches: per workload, batch, device, dtype and optimizer, no clip, and every clip at its middle threshold."""

    def bench(job: Job) -> tuple[Any, ...]:
        cell = job.cell
        return (cell.problem, cell.batch, cell.device, cell.dtype, cell.optimizer.label)

    found = []
    for _, group in groupby(sorted(jobs, key=bench), key=bench):
        clips: dict[str, dict[float, Job]] = {}
        for job in group:
            clips.setdefault(job.cell.clip.label, {})[job.threshold or 0.0] = job
        chosen = [points[sorted(points)[len(points) // 2]] for _, points in sorted(clips.items())]
        if "none" not in clips:  # every ratio is to no clip, whether the study trains without one or not
            chosen.insert(0, Job(replace(chosen[0].cell, clip=Part("none", 1)), {}))
        found.append([replace(job, cell=replace(job.cell, lr=LR, seed=0)) for job in chosen])
    return found


class Step:
    """One method's training step as its user writes it, without any measuring, over a fixed cycle of batches."""

    def __init__(self, job: Job) -> None:
        cell, parts = job.cell, Components.of(job)
        self.trainer, self.device = engines.Trainer(parts, cell, metered=False), cell.device
        batches = feed.batches(parts.workload, cell.seed, cell.batch, BATCHES, self.trainer.dtype, cell.device)
        self.batches = self._cycle(list(batches))

    @staticmethod
    def _cycle(batches: list[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from batches

    def once(self) -> None:
        """One step."""
        self.trainer.step(*next(self.batches))

    def block(self, steps: int) -> float:
        """Seconds for ``steps`` steps; a CUDA device has finished before the clock starts and before it stops."""
        self._finish()
        start = time.perf_counter()
        for _ in range(steps):
            self.once()
        self._finish()
        return time.perf_counter() - start

    def _finish(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def peak_bytes(self) -> int:
        """Peak memory of one step: weights, gradients and optimizer state, and the most that was allocated on top of them."""
        held = [tensor for param in self.trainer.module.parameters() for tensor in (param, param.grad) if tensor is not None]
        held += [value for state in self.trainer.optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
        base = sum(tensor.numel() * tensor.element_size() for tensor in held)
        self.trainer.optimizer.zero_grad(set_to_none=False)
        if self.device == "cuda":
            self._finish()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self.once()
            self._finish()
            return base + torch.cuda.max_memory_allocated() - before
        with _silent(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            self.once()
        changes = [
            (event.start_ns(), event.nbytes()) for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"
        ]
        level = peak = 0
        for _, change in sorted(changes, key=lambda pair: pair[0]):
            level += change
            peak = max(peak, level)
        return base + peak


@contextmanager
def _silent() -> Iterator[None]:
    """The process's own stderr closed for a moment: the profiler's C++ code writes lines there that no setting turns off."""
    kept, void = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(void, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(void)


def measure(benches: Sequence[Sequence[Job]]) -> list[dict[str, Any]]:
    """Time some benches, one after the other; rows of the ``throughput`` table, without the environment."""
    return [row for bench in benches for row in _measure(bench)]


def _measure(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """Time one bench.

    A block is not valid where it took more than twice its method's median: something else had the machine.
    """
    steps = [Step(job) for job in jobs]
    for step in steps:
        step.block(WARM_UP)
    single = min(step.block(3) for step in steps) / 3
    length = max(1, round(BLOCK_SECONDS / single))
    shuffle = trees.generator("throughput", 0, "order")
    seconds = torch.zeros(ROUNDS, len(steps), dtype=torch.float64)
    for number in range(ROUNDS):
        for index in torch.randperm(len(steps), generator=shuffle).tolist():
            seconds[number, index] = steps[index].block(length)
    limits = 2 * seconds.median(dim=0).values
    peaks = [step.peak_bytes() for step in steps]
    return [
        {
            "workload": job.cell.workload.name,
            "problem": job.cell.problem,
            "optimizer": job.cell.optimizer.label,
            "clip": job.cell.clip.label,
            "threshold": job.threshold,
            "implementation": "torch",
            "device": job.cell.device,
            "dtype": job.cell.dtype,
            "batch": job.cell.batch,
            "block": number,
            "seconds": float(seconds[number, index]),
            "steps": length,
            "peak_bytes": peaks[index],
            "valid": bool(seconds[number, index] <= limits[index]),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        for number in range(ROUNDS)
        for index, job in enumerate(jobs)
    ]
