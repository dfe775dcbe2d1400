"""The timings of a study: its training steps, as ``run`` takes them; and the long form, every
implementation at every size.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch

from clipbench import feed, registry
from clipbench.cell import Part
from clipbench.engines import Job
from clipbench.throughput.floor import Reference, floor_bytes, held_bytes
from clipbench.throughput.footprint import Footprint
from clipbench.throughput.implementations import DEFAULT, Unfit
from clipbench.throughput.sizes import Shape
from clipbench.throughput.training import LR, Step, benches
from clipbench.throughput.turns import Blocks, Pace, take_turns
from clipbench.throughput.updates import Given, Update, Weights, halved
from clipbench.vocabulary import GRADIENT

# the column `part`: the whole training step; the clip and the optimizer's step alone
STEP, UPDATE = "step", "update"

AFTER_RUN = Pace(rounds=30, seconds=0.004, warm_up=5)
STEPS = Pace(rounds=20, seconds=0.002, warm_up=2, limit=4.0)
UPDATES = Pace(rounds=20, seconds=0.001, warm_up=2, limit=2.0)
# parameters from which on threads share the work of an update: it is timed with all of them as well
DIVIDED = 10**6

Row = dict[str, Any]
# implementation and reason → the first clip, optimizer or arm that it was refused with
Refusals = dict[tuple[str, str], str]


def measure(benches: Sequence[Sequence[Job]]) -> list[Row]:
    """Rows of the ``throughput`` table, without the environment: the timed training steps of
    some benches, one after the other.
    """
    return [row for bench in benches for row in _training(bench, [DEFAULT], AFTER_RUN, {})]


def surveys(
    jobs: Sequence[Job],
    sizes: Mapping[str, Sequence[Shape]],
    implementations: Sequence[str],
    cores: int,
) -> list[Survey]:
    """The surveys for a study's cells, on one thread; on a CPU also on all threads.

    With all threads, updates of few parameters are left out, as threads do not share them, and only
    torch's default is timed in training steps.
    """
    planned: list[Survey] = []
    benches_of: dict[tuple[str, str, str], list[list[Job]]] = {}
    for bench in benches(jobs):
        cell = bench[0].cell
        benches_of.setdefault((cell.device, cell.dtype, _bare(cell.optimizer).label), []).append(
            bench
        )
    for threads in dict.fromkeys((1, cores)):
        for (device, dtype, _), mine in benches_of.items():
            if threads > 1 and device != "cpu":
                continue
            clips = {
                job.cell.clip.label: (job.cell.clip, job.clip_settings)
                for bench in mine
                for job in bench
                if job.cell.on == GRADIENT
            }
            workloads = {bench[0].cell.problem: bench[0].cell.workload for bench in mine}
            optimizer = _bare(mine[0][0].cell.optimizer)
            planned.append(
                AtSizes(optimizer, clips, sizes, workloads, device, dtype, implementations, threads)
            )
            if threads == 1 or DEFAULT in implementations:
                planned.append(
                    InTraining(mine, implementations if threads == 1 else [DEFAULT], threads)
                )
    return planned


def carry_out(survey: Survey) -> tuple[list[Row], list[str]]:
    """The rows of one survey, and sentences on implementations without rows; called in a process
    of its own.
    """
    refusals: Refusals = {}
    rows = survey.rows(refusals)
    return rows, [
        f"{name} is left out with {what}: {reason}." for (name, reason), what in refusals.items()
    ]


@dataclass(frozen=True)
class InTraining:
    """The training steps of one optimizer on a study's workloads, in every implementation."""

    benches: Sequence[Sequence[Job]]
    implementations: Sequence[str]
    threads: int

    @property
    def device(self) -> str:
        """The device that its cells train on."""
        return self.benches[0][0].cell.device

    def rows(self, refusals: Refusals) -> list[Row]:
        """Its rows; ``refusals`` are added to."""
        return [
            row
            for bench in self.benches
            for row in _training(bench, self.implementations, STEPS, refusals)
        ]


def _training(
    bench: Sequence[Job], implementations: Sequence[str], pace: Pace, refusals: Refusals
) -> list[Row]:
    """The rows of one bench."""
    groups: dict[str, list[tuple[Job, Step]]] = {}
    for implementation in implementations:
        for job in bench:
            try:
                step = Step(job, implementation)
            except Unfit as unfit:
                refusals.setdefault((implementation, str(unfit)), job.cell.arm)
            else:
                groups.setdefault(implementation, []).append((job, step))
    timed = take_turns([[step for _, step in group] for group in groups.values()], pace)
    rows = []
    for (implementation, group), blocks in zip(groups.items(), timed, strict=True):
        for (job, step), mine in zip(group, blocks, strict=True):
            cell = job.cell
            key = {
                "workload": cell.workload.name,
                "problem": cell.problem,
                "optimizer": cell.optimizer.label,
                "clip": cell.clip.label,
                "threshold": job.threshold,
                "implementation": implementation,
                "device": cell.device,
                "dtype": cell.dtype,
                "batch": cell.batch,
                "part": STEP,
                "parameters": sum(param.numel() for param in step.params),
                "tensors": len(step.params),
            }
            rows += _rows(key, mine, step.footprint())
    return rows


@dataclass(frozen=True)
class AtSizes:
    """The updates of one optimizer on given gradients, at model sizes and at those of a study's
    workloads.

    ``clips`` are by label, with their settings; ``sizes`` and ``workloads`` by name.
    """

    optimizer: Part
    clips: Mapping[str, tuple[Part, Mapping[str, Any]]]
    sizes: Mapping[str, Sequence[Shape]]
    workloads: Mapping[str, Part]
    device: str
    dtype: str
    implementations: Sequence[str]
    threads: int

    def rows(self, refusals: Refusals) -> list[Row]:
        """Its rows; ``refusals`` are added to."""
        rows: list[Row] = []
        for problem, workload in self.workloads.items():
            module = feed.model(registry.build("workload", workload.name, workload.own), 0)
            trained = [tuple(param.shape) for param in module.parameters() if param.requires_grad]
            rows += self._at({"workload": workload.name, "problem": problem}, trained, refusals)
        for name, shapes in self.sizes.items():
            rows += self._at({"problem": name}, shapes, refusals)
        return rows

    def _at(self, name: Row, shapes: Sequence[Shape], refusals: Refusals) -> list[Row]:
        """The rows of one size."""
        gc.collect()  # the weights of the size before
        inputs = Given(shapes, feed.DTYPES[self.dtype], self.device)
        parameters = inputs.grads.numel()
        if self.threads > 1 and parameters < DIVIDED:
            return []
        settings = {
            label: halved(registry.find("clip", clip.name), own, inputs)
            for label, (clip, own) in self.clips.items()
        }
        groups = self._updates(inputs, settings, refusals)
        weights = parameters * inputs.grads.element_size()
        held = held_bytes(self.optimizer.name, weights)
        contenders: list[list[Any]] = [list(group.values()) for group in groups.values()]
        reference = None if held is None else Reference(held, inputs.grads.dtype, self.device)
        timed = take_turns(contenders if reference is None else [*contenders, [reference]], UPDATES)
        rows = []
        for (implementation, group), blocks in zip(groups.items(), timed, strict=False):
            for (label, update), mine in zip(group.items(), blocks, strict=True):
                clip, _ = self.clips[label]
                moved = floor_bytes(self.optimizer.name, clip.name, weights)
                key = {
                    **name,
                    "optimizer": self.optimizer.label,
                    "clip": label,
                    "threshold": settings[label].get(str(clip.threshold)),
                    "implementation": implementation,
                    "device": self.device,
                    "dtype": self.dtype,
                    "part": UPDATE,
                    "parameters": parameters,
                    "tensors": len(shapes),
                    "floor_bytes": moved,
                }
                more = _rows(key, mine, update.footprint())
                if reference is not None and moved is not None:
                    for row, seconds in zip(
                        more, reference.takes(moved, timed[-1][0]), strict=True
                    ):
                        row["floor_seconds"] = seconds
                rows += more
        return rows

    def _updates(
        self, inputs: Given, settings: Mapping[str, Any], refusals: Refusals
    ) -> dict[str, dict[str, Update]]:
        """Implementation → clip → its update; those that cannot be had are left out."""
        rule = registry.build("optimizer", self.optimizer.name, self.optimizer.own)
        groups: dict[str, dict[str, Update]] = {}
        for implementation in self.implementations:
            try:
                weights = Weights(implementation, rule, LR, inputs)
            except Unfit as unfit:
                refusals.setdefault((implementation, str(unfit)), self.optimizer.label)
                continue
            for label, (clip, _) in self.clips.items():
                try:
                    update = Update(weights, registry.build("clip", clip.name, settings[label]))
                except Unfit as unfit:
                    refusals.setdefault((implementation, str(unfit)), label)
                else:
                    groups.setdefault(implementation, {})[label] = update
        return groups


Survey = AtSizes | InTraining


def _bare(optimizer: Part) -> Part:
    """The optimizer without the settings that are the study's, such as a schedule."""
    return Part(optimizer.name, optimizer.version, optimizer.own)


def _rows(key: Row, blocks: Blocks, taken: Footprint) -> list[Row]:
    """A row a block."""
    return [
        {
            **key,
            "block": number,
            "seconds": seconds,
            "steps": blocks.steps,
            "peak_bytes": taken.peak_bytes,
            "kernels": taken.kernels,
            "synchronisations": taken.synchronisations,
            "threads": torch.get_num_threads(),
            "valid": valid,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        for number, (seconds, valid) in enumerate(
            zip(blocks.seconds.tolist(), blocks.valid.tolist(), strict=True)
        )
    ]
