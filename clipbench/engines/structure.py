"""Which cells train together: the shape that lanes of one program share, the structure that lanes
of one update share, the numbers in which lanes differ, and the order they come in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

from torch import Tensor

from clipbench import feed, registry
from clipbench.cell import Cell
from clipbench.engines.program import FEWEST_LANES, NoLanes
from clipbench.engines.record import Job
from clipbench.engines.sharded import Sharded
from clipbench.vocabulary import APART, GRADIENT, SHARD


def shape(cell: Cell) -> tuple[Any, ...]:
    """What cells must share to be lanes of one program."""
    workload = cell.workload
    settings = tuple(sorted(workload.settings.items()))
    shared = (
        workload.name,
        workload.version,
        settings,
        cell.batch,
        cell.steps,
        cell.evaluations,
        cell.device,
        cell.dtype,
        cell.replica,
    )
    return (*shared, cell.pieces) if cell.on in APART else shared


@dataclass(frozen=True)
class Pass:
    """How the gradient of a batch is taken: under autocast, in how many parts, or of how many
    pieces each by itself (0: of the whole).
    """

    mixed: bool = False
    parts: int = 1
    pieces: int = 0

    @classmethod
    def of(cls, cell: Cell) -> Pass:
        return cls(cell.dtype == feed.MIXED, cell.accumulate, cell.pieces)


PLAIN = Pass()  # of the whole batch at once, all in one dtype


@dataclass(frozen=True)
class Structure:
    """An optimizer and a clip without their plain numbers: lanes of one structure share one
    update.
    """

    optimizer: str
    optimizer_settings: tuple[tuple[str, Any], ...]
    clip: str
    clip_settings: tuple[tuple[str, Any], ...]
    versions: tuple[int | str, ...]  # of both: a program is not that of an edited file
    on: str = GRADIENT
    ranks: int = 1

    @classmethod
    def of(cls, job: Job) -> Structure:
        """The structure of one cell.

        :raises NoLanes: one of its components has no pure rule.
        """
        fixed = []
        for kind, name, settings in _components(job):
            component = registry.find(kind, name)
            if not hasattr(component, "update"):
                raise NoLanes(
                    f'{kind} "{name}" has no pure rule, which lanes need, and runs in the loop only'
                )
            floats = registry.lane_fields(component)
            fixed.append(
                (
                    name,
                    tuple(
                        sorted(
                            (word, value) for word, value in settings.items() if word not in floats
                        )
                    ),
                )
            )
        (optimizer, rest), (clip, others) = fixed
        versions = tuple(registry.find(kind, name).version for kind, name, _ in _components(job))
        return cls(optimizer, rest, clip, others, versions, job.cell.on, job.cell.ranks)

    @property
    def label(self) -> str:
        """``momentum + norm``, ``momentum + norm on update``."""
        return f"{self.optimizer} + {self.clip}" + (f" on {self.on}" if self.on != GRADIENT else "")

    def numbers(self, job: Job) -> dict[str, list[float]]:
        """The plain numbers of one cell, of its optimizer and its clip, in the order of their
        fields.
        """
        values: dict[str, list[float]] = {}
        for kind, name, settings in _components(job):
            component = registry.find(kind, name)
            fields = registry.lane_fields(component)
            values[kind] = [
                float(settings[field] if field in settings else getattr(component, field))
                for field in fields
            ]
        return values

    def components(
        self, optimizer_numbers: Iterable[Any], clip_numbers: Iterable[Any]
    ) -> tuple[Any, Any]:
        """Optimizer and clip with these numbers, which may be tensors."""
        built = []
        for kind, name, fixed, numbers in (
            ("optimizer", self.optimizer, self.optimizer_settings, optimizer_numbers),
            ("clip", self.clip, self.clip_settings, clip_numbers),
        ):
            component = registry.find(kind, name)  # type: ignore[arg-type]
            built.append(
                component(
                    **dict(fixed),
                    **dict(zip(registry.lane_fields(component), numbers, strict=True)),
                )
            )
        clip = Sharded(built[1], self.ranks) if self.on == SHARD else built[1]
        return built[0], clip


class Lane(NamedTuple):
    """The optimizer and the clip of a lane; of many lanes of one structure, every tensor's first
    dimension is the lane.
    """

    lr: Tensor
    optimizer: tuple[Tensor, ...]
    """The optimizer's plain numbers, in the order of its fields."""
    clip: tuple[Tensor, ...]
    """The clip's plain numbers."""
    state: tuple[Tensor, ...]
    """What both remember: the leaves of their states."""
    memory: tuple[Tensor, ...] = ()
    """What measures remember: the vectors `measures.REMEMBERED` of the step before."""

    @property
    def remembered(self) -> tuple[Tensor, ...]:
        """All that a step leaves for the next."""
        return (*self.state, *self.memory)


@dataclass
class Segment:
    """The lanes ``begin`` to ``end``, which share a structure."""

    structure: Structure
    begin: int
    end: int
    lane: Lane  # of all of them
    course: Tensor | None  # the lr of every lane at every step, where any has a schedule


def _components(job: Job) -> tuple[tuple[registry.Kind, str, dict[str, Any]], ...]:
    """Optimizer and clip, each as its kind, its name and its settings."""
    cell = job.cell
    return (
        ("optimizer", cell.optimizer.name, cell.optimizer.own),
        ("clip", cell.clip.name, dict(job.clip_settings)),
    )


def arranged(
    structures: Sequence[Structure],
    grain: Mapping[Structure | None, int],
) -> list[int]:
    """Lanes for cells of these structures, by the cells' numbers: one structure after the other,
    some cells repeated.

    :param grain: the number of lanes of which each structure, and the model (None), wants a
        multiple; 1 if it is not named.
    """

    def rank(number: int) -> tuple[int, str]:
        # those that want none come last, and fill up the whole
        return -grain.get(structures[number], 1), repr(structures[number])

    order: list[int] = []
    for _, group in groupby(sorted(range(len(structures)), key=rank), key=rank):
        mine = list(group)
        order += mine + mine[-1:] * (-len(mine) % grain.get(structures[mine[0]], 1))
    total = max(len(order), FEWEST_LANES)
    total += -total % grain.get(None, 1)
    return order + order[-1:] * (total - len(order))
