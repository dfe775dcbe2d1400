"""A part of a study, for one of several machines: ``--part 3/20``.

The unit is a task on a seed: its arms are compared, and stay together. What all parts share, the
pilots and the choice of engines, is made once, by part 0.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clipbench.cell import Cell
from clipbench.errors import UsageError
from clipbench.protocol.place import opened
from clipbench.store import Store
from clipbench.study import Study
from clipbench.task import Task

WRITTEN = re.compile(r"(\d{1,6})/(\d{1,6})", re.ASCII)


@dataclass(frozen=True)
class Part:
    """Part ``number`` of ``of``, from 1; number 0 is what all parts share."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def cells(self, cells: Sequence[Cell]) -> list[Cell]:
        """The cells of this part, of all of a phase: the same whatever is stored already.

        If there are more parts than units, the arms of a unit are split.
        """
        units: dict[tuple[str, int], list[Cell]] = {}
        for cell in cells:
            units.setdefault((Task.of(cell).label, cell.seed), []).append(cell)
        mine: list[Cell] = []
        for position, members in enumerate(units.values()):
            # one, or several if there are more parts than units
            owners = range(position % self.of, self.of, min(len(units), self.of))
            arms = list(dict.fromkeys(one.arm for one in members))
            mine += [
                cell
                for cell in members
                if owners[arms.index(cell.arm) % len(owners)] == self.number - 1
            ]
        return mine


def shared_by_parts(
    study: Study, cells: Sequence[Cell], part: Part | None, folder: Path | None
) -> Store | None:
    """The store of what parts share, which ``--after`` names; None if there is none.

    :raises UsageError: it is of another study, or it is needed and not given.
    """
    if folder is None:
        if part is not None and part.number and any(cell.needs_pilot for cell in cells):
            raise UsageError(
                f"--part {part}: {study.where} has thresholds that come from a pilot, which all "
                f"parts share; make it once by --part 0/{part.of} --out DIR, and give --after DIR."
            )
        return None
    if part is None:
        raise UsageError("--after: it names what parts share; give --part as well.")
    store = opened(folder, study)
    if store is None:
        raise UsageError(f"--after {folder}: this is no results folder.")
    return store


def part_named(text: str) -> Part:
    """``3/20`` as a `Part`.

    :raises UsageError: it is none.
    """
    found = WRITTEN.fullmatch(text)
    part = Part(int(found[1]), int(found[2])) if found else None
    if part is None or part.of == 0 or part.number > part.of:
        raise UsageError(
            f'--part "{text}": write NUMBER/OF, such as 3/20, from 1/20 to 20/20; 0/20 makes the '
            f"pilots and the choice of engines, which all parts share."
        )
    return part
