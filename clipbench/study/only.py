"""Which part of a study one call is about: what ``--only problem=wdbc,optimizer=adam`` says."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from clipbench.cell import Cell, Part
from clipbench.errors import UsageError, nearest

KEYS = ("problem", "optimizer", "clip")
SETTINGS = ("lr", "threshold", "relative", "percentile", "seed", "batch", "device", "dtype")
COMMA = re.compile(r",(?![^()]*\))")  # no comma between brackets


@dataclass(frozen=True)
class Only:
    """Names by key, registered ones or labels; an empty set leaves nothing out.

    A choice is made on all the learning rates, thresholds and seeds of an arm, so that only whole
    problems, optimizers and clips can be left out. An optimizer without a clip is never left out of
    those that are run with one: it is what the clip is compared with.
    """

    problem: frozenset[str] = frozenset()
    optimizer: frozenset[str] = frozenset()
    clip: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        """Whether anything is left out."""
        return any((self.problem, self.optimizer, self.clip))

    def __str__(self) -> str:
        return ",".join(f"{key}={name}" for key in KEYS for name in sorted(getattr(self, key)))

    def of_problem(self, cell: Cell) -> bool:
        """Whether the cell's problem is among them."""
        return _named(self.problem, cell.workload)

    def meets(self, cell: Cell) -> bool:
        """Whether the cell is among them."""
        clip = cell.clip.name == "none" or _named(self.clip, cell.clip)
        return self.of_problem(cell) and _named(self.optimizer, cell.optimizer) and clip


def only(texts: Sequence[str], cells: Iterable[Cell]) -> Only:
    """What is said, of a study with these cells; names of the same key add up.

    :raises UsageError: a key that cannot be chosen, or a name that the study does not have.
    """
    parts = [*cells]
    known = {
        "problem": [cell.workload for cell in parts],
        "optimizer": [cell.optimizer for cell in parts],
        "clip": [cell.clip for cell in parts],
    }
    chosen = chosen_of(
        texts, {key: [(one.name, one.label) for one in ones] for key, ones in known.items()}
    )
    found = Only(**{key: frozenset(names) for key, names in chosen.items()})
    if found and not any(found.meets(cell) for cell in parts):
        raise UsageError(f"--only {found}: the study runs no such combination.")
    return found


def chosen_of(
    texts: Sequence[str], known: Mapping[str, Sequence[tuple[str, str]]]
) -> dict[str, set[str]]:
    """Key → the names that are said of it, none if nothing is.

    :param known: key → name and label of each that there is.
    :raises UsageError: a key that cannot be chosen, or a name that there is not.
    """
    chosen: dict[str, set[str]] = {key: set() for key in KEYS}
    for said in (one.strip() for text in texts for one in COMMA.split(text)):
        key, equals, name = said.partition("=")
        if not equals or not name:
            raise UsageError(f"--only {said}: write KEY=NAME, such as problem=wdbc,optimizer=adam.")
        if key not in KEYS:
            why = (
                f"`{key}` cannot be chosen, because arms are compared and tuned on all their "
                f"settings and seeds."
                if key in SETTINGS
                else f"there is no key `{key}`.{nearest(key, KEYS)}"
            )
            raise UsageError(f"--only {said}: {why} There are: {', '.join(KEYS)}.")
        names = list(dict.fromkeys(word for one in known[key] for word in one))
        if name not in names:
            raise UsageError(
                f'--only {said}: the study has no {key} "{name}".{nearest(name, names)} There are: '
                f"{', '.join(dict.fromkeys(name for name, _ in known[key]))}."
            )
        chosen[key].add(name)
    return chosen


def _named(names: frozenset[str], part: Part) -> bool:
    return not names or part.name in names or part.label in names
