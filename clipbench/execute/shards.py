"""Shards: what a worker takes in hand, a few cells for the loop or as many as are lanes together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import Any

from clipbench import engines
from clipbench.cell import Cell
from clipbench.engines import Job, Record, lanes, program, stacked
from clipbench.engines.rates import BATCHED, LOOP, Choice, versioned

IN_HAND = 4  # cells of a shard for the loop: enough to hide the pipe, few enough to end together
WORTH = 8  # lanes below which a shard is not split further for the sake of an idle worker


def has_stranger(cell: Cell) -> bool:
    """Whether a component of it is not packaged: it has the hash of a file for its version, or a path outside torch."""
    parts = (cell.workload, cell.optimizer, cell.clip)
    return any(isinstance(part.version, str) or ("." in part.name and not part.name.startswith("torch.")) for part in parts)


@dataclass(frozen=True)
class Shard:
    """Some cells of one `stacked.shape`, and how they are run.

    ``seconds`` are predicted for a cell, 0 where nobody knows; ``again`` says that a worker was killed at it already.
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
        """What is left of it after so many cells."""
        return replace(self, jobs=self.jobs[done:], again=False)

    def halves(self) -> list[Shard]:
        """Two shards for one, without the compiled program, which has the same lanes for any number of cells."""
        middle = len(self.jobs) // 2
        parts = self.jobs[:middle], self.jobs[middle:]
        return [replace(self, jobs=jobs, compiled=False, fewest=program.FEWEST_LANES) for jobs in parts]


def pack(jobs: Sequence[Job], choices: Mapping[Any, Choice], workers: int, lasting: float = 0.0) -> list[Shard]:
    """All jobs in shards, the longest first, so that the workers end together.

    :param choices: how the cells of a `stacked.shape` are run; in the loop if nothing is said.
    :param lasting: seconds that a shard for the loop should last, as far as its cells' time is known.
    """
    groups: dict[Any, list[Job]] = {}
    for job in jobs:
        groups.setdefault(stacked.shape(job.cell), []).append(job)
    found: list[Shard] = []
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
        found += _for_lanes(able, choice, workers)
        seconds = (choice.rate(LOOP) or 0.0) * members[0].cell.steps
        wanted = max(IN_HAND, math.ceil(lasting / seconds)) if seconds else IN_HAND
        share = max(1, min(wanted, len(rest) // workers))
        found += [Shard(tuple(rest[at : at + share]), seconds=seconds) for at in range(0, len(rest), share)]
    return sorted(found, key=lambda shard: -shard.seconds * len(shard.jobs))


def _for_lanes(jobs: Sequence[Job], choice: Choice, workers: int) -> list[Shard]:
    if not jobs:
        return []
    seconds = (choice.rate(BATCHED) or 0.0) * jobs[0].cell.steps
    # Equal structures next to each other are one update; equal rates next to each other tend to end together.
    ordered = sorted(jobs, key=lambda job: (repr(stacked.Structure.of(job)), job.cell.lr, job.threshold or 0.0, job.cell.seed))
    if not choice.compiled:
        return [Shard(part, BATCHED, seconds=seconds) for part in _parts(ordered, choice.lanes, workers)]
    # A compiled program has one structure, and its lanes once and for all, however few cells are missing: a run that goes on after
    # an interruption gives the same bits.
    return [
        Shard(part, BATCHED, compiled=True, fewest=choice.lanes, seconds=seconds)
        for _, group in groupby(ordered, key=stacked.Structure.of)
        for part in _parts(list(group), choice.lanes, 1)
    ]


def _parts(jobs: Sequence[Job], most: int, workers: int) -> list[tuple[Job, ...]]:
    """``jobs`` in as few parts as ``most`` allows, or one for each worker where those are worth it, of nearly equal size."""
    number = max(-(-len(jobs) // most), min(workers, len(jobs) // WORTH), 1)
    cuts = [round(len(jobs) * part / number) for part in range(number + 1)]
    return [tuple(jobs[begin:end]) for begin, end in pairwise(cuts) if end > begin]
