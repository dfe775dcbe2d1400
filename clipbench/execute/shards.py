"""Shards: what a worker takes in hand, a few cells for the loop or as many as are lanes
together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import Any

from clipbench import engines
from clipbench.cell import Cell
from clipbench.engines import Job, Record, lanes, program, structure
from clipbench.engines.rates import BATCHED, LOOP, Choice, versioned

IN_HAND = 4  # cells of a shard for the loop: enough to hide the pipe, few enough to end together
WORTH = 8  # lanes below which a shard is not split further for the sake of an idle worker


def has_user_component(cell: Cell) -> bool:
    """Whether a component is user-defined: its version is the hash of a file, or its name is a
    path outside torch.
    """
    components = (cell.workload, cell.optimizer, cell.clip)
    return any(
        isinstance(one.version, str) or ("." in one.name and not one.name.startswith("torch."))
        for one in components
    )


@dataclass(frozen=True)
class Shard:
    """Some cells of one `structure.shape`, and how they are run.

    ``seconds`` are predicted for a cell, 0 if unknown; ``again`` says that a worker was already
    killed while it ran this.
    """

    jobs: tuple[Job, ...]
    engine: str = LOOP
    compiled: bool = False
    fewest: int = program.FEWEST_LANES
    seconds: float = 0.0
    again: bool = False

    def run(self) -> Iterator[list[Record]]:
        """The records, as soon as there are any."""
        if self.engine == LOOP:
            yield from ([engines.run(job)] for job in self.jobs)
        else:
            yield lanes.run(self.jobs, self.compiled, self.fewest)

    def without(self, done: int) -> Shard:
        """The shard without its first ``done`` cells."""
        return replace(self, jobs=self.jobs[done:], again=False)

    def halves(self) -> list[Shard]:
        """Two shards for one, without the compiled program, which has the same lanes for any
        number of cells.
        """
        middle = len(self.jobs) // 2
        halves = self.jobs[:middle], self.jobs[middle:]
        return [
            replace(self, jobs=jobs, compiled=False, fewest=program.FEWEST_LANES) for jobs in halves
        ]


def pack(
    jobs: Sequence[Job], choices: Mapping[Any, Choice], workers: int, lasting: float = 0.0
) -> list[Shard]:
    """All jobs in shards, the longest first, so that the workers end together.

    :param choices: how the cells of a `structure.shape` are run; in the loop if nothing is said.
    :param lasting: seconds that a shard for the loop should last, as far as its cells' time is
        known.
    """
    groups: dict[Any, list[Job]] = {}
    for job in jobs:
        groups.setdefault(structure.shape(job.cell), []).append(job)
    shards: list[Shard] = []
    for shape, members in groups.items():
        choice = choices.get(shape) or Choice(LOOP)
        able: list[Job] = []
        rest: list[Job] = []
        for job in members:
            looked_at = (
                choice.engine == BATCHED
                and (not choice.arms or versioned(job) in choice.arms)
                and job.cell.arm not in choice.refusals
            )
            (able if looked_at else rest).append(job)
        shards += _for_lanes(able, choice, workers)
        seconds = (choice.rate(LOOP) or 0.0) * members[0].cell.steps
        wanted = max(IN_HAND, math.ceil(lasting / seconds)) if seconds else IN_HAND
        share = max(1, min(wanted, len(rest) // workers))
        shards += [
            Shard(tuple(rest[at : at + share]), seconds=seconds)
            for at in range(0, len(rest), share)
        ]
    return sorted(shards, key=lambda shard: -shard.seconds * len(shard.jobs))


def _for_lanes(jobs: Sequence[Job], choice: Choice, workers: int) -> list[Shard]:
    if not jobs:
        return []
    seconds = (choice.rate(BATCHED) or 0.0) * jobs[0].cell.steps
    # Equal structures next to each other are one update; equal rates next to each other tend to end
    # together.
    ordered = sorted(
        jobs,
        key=lambda job: (
            repr(structure.Structure.of(job)),
            job.cell.lr,
            job.threshold or 0.0,
            job.cell.seed,
        ),
    )
    if not choice.compiled:
        return [
            Shard(jobs_of_shard, BATCHED, seconds=seconds)
            for jobs_of_shard in _split(ordered, choice.lanes, workers)
        ]
    # A compiled program has one structure, and its lanes once and for all, however few cells are
    # missing: a run that goes on after an interruption gives the same bits.
    return [
        Shard(jobs_of_shard, BATCHED, compiled=True, fewest=choice.lanes, seconds=seconds)
        for _, group in groupby(ordered, key=structure.Structure.of)
        for jobs_of_shard in _split(list(group), choice.lanes, 1)
    ]


def _split(jobs: Sequence[Job], most: int, workers: int) -> list[tuple[Job, ...]]:
    """``jobs`` in groups of nearly equal size: as few as ``most`` allows, or one for each worker
    if each has enough of them.
    """
    number = max(-(-len(jobs) // most), min(workers, len(jobs) // WORTH), 1)
    cuts = [round(len(jobs) * cut / number) for cut in range(number + 1)]
    return [tuple(jobs[begin:end]) for begin, end in pairwise(cuts) if end > begin]
