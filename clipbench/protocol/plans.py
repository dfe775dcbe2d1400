"""The cells that a study asks for on this machine, those that it cannot have, and the keys of
pilots and choices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import torch

from clipbench import execute, feed, lr_schedules, registry
from clipbench.cell import Cell
from clipbench.errors import UsageError
from clipbench.execute import Cards, cards
from clipbench.schema import RULES, Status
from clipbench.selection import METHODS
from clipbench.study import Study
from clipbench.study.only import Only
from clipbench.task import TASK, Task, arm_of
from clipbench.vocabulary import EXAMPLE, RANK


@dataclass
class Plan:
    """The selection cells on the first seed, the number of seeds of each workload, and the cells
    that cannot run here.
    """

    templates: list[Cell]
    seeds: dict[str, int]
    not_run: list[dict[str, Any]]

    @cached_property
    def cells(self) -> list[Cell]:
        """All cells of the selection phase."""
        return [
            replace(one, seed=seed) for one in self.templates for seed in range(self.count(one))
        ]

    def count(self, template: Cell) -> int:
        """The number of seeds on which a cell is asked for."""
        return self.seeds[template.workload.name]

    def part(self, only: Only) -> Plan:
        """The plan without what is left out."""
        return replace(self, templates=[cell for cell in self.templates if only.meets(cell)])


def schedule(cells: Sequence[Cell]) -> str | None:
    """The schedule of the headline: the first that every optimizer has in every task; None if they
    share none, so that all arms count alike.
    """
    of: dict[tuple[Any, ...], dict[str, None]] = {}
    for cell in cells:
        of.setdefault((*Task.of(cell), cell.optimizer.name), {})[cell.schedule] = None
    shared = [one for one in next(iter(of.values())) if all(one in met for met in of.values())]
    return shared[0] if shared else None


def headline(cells: Sequence[Cell]) -> dict[str, str]:
    """Method → arm, with the `schedule` of the headline."""
    shared = schedule(cells)
    if shared in (None, lr_schedules.CONSTANT):
        return METHODS
    arms = {
        (cell.optimizer.name, cell.clip.label): cell.arm
        for cell in cells
        if cell.schedule == shared and not cell.optimizer.own
    }
    arm_of = {}
    for method, arm in METHODS.items():
        optimizer, _, clip = arm.partition(" + ")
        arm_of[method] = arms.get((optimizer, clip or "none"), arm)
    return arm_of


def untuned(document: Any, cells: Sequence[Cell]) -> dict[str, Any]:
    """What the page says of settings that nobody tuned, and which ``arms`` run at them: the methods
    and those named. If it gives tables by name, their arms of the headline's schedule run, each at
    its own of the ``points``.
    """
    said = document.model_dump()
    lrs, thresholds = said["lr"], said["threshold"]
    if not isinstance(lrs, dict) and not isinstance(thresholds, dict):
        return {**said, "arms": [*headline(cells).values(), *said["arms"]]}
    shared, points = schedule(cells), {}
    for cell in cells:
        lr = _named(lrs, cell.optimizer.name)
        threshold = math.nan if cell.clip.name == "none" else _named(thresholds, cell.clip.name)
        meant = shared in (None, cell.schedule) or cell.arm in said["arms"]
        if meant and lr is not None and threshold is not None:
            points[cell.arm] = {"lr": lr} | (
                {} if math.isnan(threshold) else {"threshold": threshold}
            )
    return {**said, "arms": list(points), "points": points}


def _named(given: float | dict[str, float], name: str) -> float | None:
    return given.get(name) if isinstance(given, dict) else given


def clipped(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """A row per arm that has a clip and a partner without it, as `families` takes them."""
    arms = {(Task.of(cell), cell.arm): cell for cell in cells}
    unclipped = {
        (task, cell.optimizer.label): arm
        for (task, arm), cell in arms.items()
        if cell.clip.name == "none"
    }
    return [
        {
            **dict(zip(TASK, task, strict=True)),
            "arm": arm,
            "optimizer": cell.optimizer.name,
            "optimizer_label": cell.optimizer.label,
            "clip": cell.clip.name,
            "partner": unclipped[task, cell.optimizer.label],
        }
        for (task, arm), cell in arms.items()
        if cell.clip.name != "none" and (task, cell.optimizer.label) in unclipped
    ]


def partners(cells: Sequence[Cell]) -> dict[tuple[Any, ...], tuple[str, str]]:
    """`arm_of` a clipped arm → its optimizer's registered name, and the arm without the clip."""
    return {arm_of(row): (row["optimizer"], row["partner"]) for row in clipped(cells)}


def pilot_key(cell: Cell) -> str:
    """The key of a cell's pilot: another version of the workload has a pilot of its own."""
    return f"{Task.of(cell).label}, version {cell.workload.version}"


def choice_key(cell: Cell) -> str:
    """The key of the choice of an engine for a cell's task."""
    return pilot_key(cell) + by_example(cell)


def by_example(cell: Cell) -> str:
    """The end of a choice's key: the gradients of pieces of a batch have a program of their own."""
    if cell.on == RANK:
        return f", by rank of {cell.ranks}"
    return ", by example" if cell.on == EXAMPLE else ""


def gauge_key(cell: Cell, percentile: float | None) -> str:
    """The key of a clip's size within a pilot, of the median if no percentile is given: another
    version of the clip may measure size otherwise.
    """
    told = "" if percentile is None else f", percentile {percentile:g}"
    return f"{cell.clip.label}, version {cell.clip.version}{told}"


def plan(study: Study, device: str = "study", elsewhere: bool = False) -> Plan:
    """The selection cells of a study; those for a device this machine lacks are listed as not run.

    :param device: ``study`` (what the page says), ``cpu``, ``cuda``, ``cuda:1`` (one of several),
        or ``auto`` (CUDA if there is one, the CPU otherwise).
    :param elsewhere: whether cells run on other machines, whose devices are not known here.
    :raises UsageError: anything is wrong with the study or the device, or a workload is not
        ``ready``.
    """
    cells, not_run = study.templates(), []
    seeds = {name: study.seeds(name).select for name in {cell.workload.name for cell in cells}}
    for workload in {cell.problem: cell.workload for cell in cells}.values():
        registry.ready(workload.name, workload.own)
    if device != "study":
        wanted = _device_asked(device, elsewhere)
        cells = list(
            {cell.id: cell for cell in (replace(cell, device=wanted) for cell in cells)}.values()
        )
    if any(cell.dtype == feed.TF32 and cell.device == "cpu" for cell in cells):
        raise UsageError(
            f'{study.where}, [run]: dtype "tf32" is arithmetic of CUDA devices, and a CPU has none '
            f'of it; give device = "cuda", or dtype = "float32".'
        )
    if not elsewhere and not torch.cuda.is_available():
        absent = sum(seeds[cell.workload.name] for cell in cells if cell.device == "cuda")
        if absent:
            not_run.append(
                {"device": "cuda", "cells": absent, "reason": "this machine has no CUDA device"}
            )
        cells = [cell for cell in cells if cell.device != "cuda"]
    return Plan(cells, seeds, not_run)


def _device_asked(device: str, elsewhere: bool) -> str:
    """``cpu`` or ``cuda``, of the option.

    :raises UsageError: there is no such device here, or nobody can tell.
    """
    word, index = cards.named(device)
    if elsewhere:
        if word == "auto" or index is not None:
            raise UsageError(
                f"--device {device}: what other machines have is not known here; say cpu or cuda."
            )
        return word
    there = torch.cuda.is_available()
    if word == "auto":
        return "cuda" if there else "cpu"
    if word == "cuda" and not there:
        raise UsageError(f"--device {device}: {cards.absent()}; {cards.HINT}.")
    if index is not None:
        cards.within(index, torch.cuda.device_count())
    return word


def ready(asked: Plan, device: str = "study", workers: int | None = None) -> Cards:
    """The CUDA devices of a run, each of which can be used; looked at in a process of its own, if
    any cell is for them.

    :raises UsageError: one is too old for torch, or full.
    """
    spread = cards.spread(device, workers)
    if any(cell.device == "cuda" for cell in asked.templates):
        found, architectures = seen(spread.indices)
        for card in found:
            if reason := cards.unfit(card, architectures):
                raise UsageError(reason)
    return spread


@lru_cache(maxsize=1)  # before a folder is touched, and again when the run begins
def seen(indices: tuple[int, ...]) -> tuple[list[cards.Card], list[str]]:
    """What `cards.look` finds."""
    with execute.Local(1) as executor:
        work = execute.Call(cards.look, (indices,), "the look at the CUDA devices")
        found: tuple[list[cards.Card], list[str]] = execute.call(
            executor, work, execute.Setting(device="cuda", card=indices[0])
        )
        return found


def runnable(study: Study, device: str = "study", elsewhere: bool = False) -> Plan:
    """The plan of a study that has a cell to run here.

    :raises UsageError: it has none; or anything is wrong with the study.
    """
    asked = plan(study, device, elsewhere)
    if not asked.templates:
        raise UsageError(
            f"{study.where}: every cell is for an absent device ({asked.not_run[0]['reason']})."
        )
    return asked


def finished(cells: Any) -> set[str]:
    """The identities of the stored cells (a frame) that need not run again: they did not fail,
    and were judged by today's rules.
    """
    return set(
        cells.loc[(cells["status"] != Status.FAILED) & (cells["rules"].fillna(1) == RULES), "cell"]
    )


def shards(cells: int) -> int:
    """How many files of the ``cells`` table so many cells make, at least."""
    return -(-cells // execute.SHARD_CELLS)
