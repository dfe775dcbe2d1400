"""Shards: what a worker takes in hand, a few cells for the loop or as many as are lanes
together.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from clipbench import engines
from clipbench.cell import Cell
from clipbench.engines import Job, Record, lanes, structure
from clipbench.engines.rates import BATCHED, LOOP, Choice, versioned
from clipbench.execute.cards import CUDA, ONE_CARD, Cards

IN_HAND = 4  # cells of a shard for the loop: enough to hide the pipe, few enough to end together
# the same if the time of a cell is not known and a shard costs seconds to hand over: a job that
# takes too long gives back what is left of it
IN_HAND_AFAR, AFAR = 32, 60.0
WHOLE = 10  # a shard afar lasts at least this part of what it should, if there are cells for it
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
    killed while it ran this, ``alone`` that memory ran out while another process used its device.
    """

    jobs: tuple[Job, ...]
    engine: str = LOOP
    native: bool = False
    seconds: float = 0.0
    again: bool = False
    card: int = 0
    alone: bool = False

    @property
    def place(self) -> tuple[str, int]:
        """The device of its cells, and which of several."""
        return self.jobs[0].cell.device, self.card

    def run(self) -> Iterator[list[Record]]:
        """The records, as soon as there are any."""
        if self.engine == LOOP:
            yield from ([engines.run(job)] for job in self.jobs)
        else:
            yield lanes.run(self.jobs, self.native)

    def without(self, done: int) -> Shard:
        """The shard without its first ``done`` cells."""
        return replace(self, jobs=self.jobs[done:], again=False)

    def in_loop(self) -> Shard:
        """Its cells for the loop, one after the other."""
        return Shard(self.jobs, seconds=self.seconds, card=self.card, alone=self.alone)

    def halves(self) -> list[Shard]:
        """Two shards for one; a program of this machine that ended its process is not tried
        again.
        """
        middle = len(self.jobs) // 2
        return [
            replace(self, jobs=jobs, native=False)
            for jobs in (self.jobs[:middle], self.jobs[middle:])
        ]


def pack(
    jobs: Sequence[Job],
    choices: Mapping[Any, Choice],
    workers: int,
    lasting: float = 0.0,
    cards: Cards = ONE_CARD,
) -> list[Shard]:
    """All jobs in shards, the longest first, so that the workers end together.

    :param choices: how the cells of a `structure.shape` are run; in the loop if nothing is said.
    :param workers: processes for the cells of the CPU.
    :param lasting: seconds that a shard for the loop should last, as far as its cells' time is
        known.
    :param cards: the CUDA devices: all cells of a seed are packed for one of them.
    """
    here = [job for job in jobs if job.cell.device != CUDA]
    there: dict[int, list[Job]] = {}
    for job in jobs:
        if job.cell.device == CUDA:
            there.setdefault(cards.of_seed(job.cell.seed), []).append(job)
    shards = _packed(here, choices, workers, lasting)
    for card, members in there.items():
        packed = _packed(members, choices, cards.sharers, lasting)
        shards += [replace(shard, card=card) for shard in packed]
    return sorted(shards, key=lambda shard: -shard.seconds * len(shard.jobs))


def _packed(
    jobs: Sequence[Job], choices: Mapping[Any, Choice], workers: int, lasting: float
) -> list[Shard]:
    """The shards of one place, whose cells so many workers share."""
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
        unknown = IN_HAND_AFAR if lasting >= AFAR else IN_HAND
        wanted = max(IN_HAND, math.ceil(lasting / seconds)) if seconds else unknown
        # afar, idle workers are better than many jobs that each begin for a moment's work
        least = math.ceil(lasting / WHOLE / seconds) if seconds else IN_HAND
        least = min(least, len(rest)) if lasting >= AFAR else 1
        share = max(1, least, min(wanted, len(rest) // workers))
        shards += [
            Shard(tuple(rest[at : at + share]), seconds=seconds)
            for at in range(0, len(rest), share)
        ]
    return shards


class Waiting:
    """Shards that wait for their place: the CPU's slots, or a CUDA device."""

    def __init__(self, shards: Iterable[Shard], cards: Cards) -> None:
        self.cards = cards
        self.at: dict[tuple[str, int], deque[Shard]] = {}
        for shard in shards:
            self.at.setdefault(shard.place, deque()).append(shard)

    def __bool__(self) -> bool:
        return any(self.at.values())

    def first(self, *shards: Shard) -> None:
        """Put shards of one place before all others of it."""
        self.at.setdefault(shards[0].place, deque()).extendleft(reversed(shards))

    def clear(self) -> None:
        self.at.clear()

    def next(self, under_way: Collection[Shard]) -> Shard | None:
        """A shard that may begin beside those under way, one for a CUDA device before one for the
        CPU; None if each waits.
        """
        for place, shards in sorted(self.at.items(), key=lambda item: item[0][0] != CUDA):
            if not shards:
                continue
            beside = [one for one in under_way if one.place == place]
            shy = shards[0].alone or any(one.alone for one in beside)
            if place[0] == CUDA and len(beside) >= (1 if shy else self.cards.sharers):
                continue
            return shards.popleft()
        return None


def _for_lanes(jobs: Sequence[Job], choice: Choice, workers: int) -> list[Shard]:
    if not jobs:
        return []
    seconds = (choice.rate(BATCHED) or 0.0) * jobs[0].cell.steps

    def place(job: Job) -> tuple[Any, ...]:
        """Equal structures next to each other are one update. Lanes of a program of this machine
        that share a seed share its batches; of torch's lanes, those of equal rates tend to end
        together.
        """
        update, cell, threshold = repr(structure.Structure.of(job)), job.cell, job.threshold or 0.0
        if choice.native:
            return update, cell.seed, cell.lr, threshold
        return update, cell.lr, threshold, cell.seed

    ordered = sorted(jobs, key=place)
    return [
        Shard(jobs_of_shard, BATCHED, choice.native, seconds)
        for jobs_of_shard in _split(ordered, choice.lanes, workers)
    ]


def _split(jobs: Sequence[Job], most: int, workers: int) -> list[tuple[Job, ...]]:
    """``jobs`` in groups of nearly equal size: as few as ``most`` allows, but as many for each
    worker, so that none waits for another at the end, if each group has enough of them.
    """
    fewest = -(-len(jobs) // most)
    even = -(-fewest // workers) * workers
    number = max(fewest, min(even, len(jobs) // WORTH), 1)
    cuts = [round(len(jobs) * cut / number) for cut in range(number + 1)]
    return [tuple(jobs[begin:end]) for begin, end in pairwise(cuts) if end > begin]
