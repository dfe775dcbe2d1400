"""The comparisons that a study declares before it runs: each clip against its optimizer without
one, in families of which each has its own chance of a wrong word.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from clipbench.task import TASK, Task, schedule_of
from clipbench.verdicts import LEVEL

CLAIMED = ("value", "norm")  # the clips that the question is about
FIRST = ("sgd", "adamw")  # optimizers of the first questions, which share the chance of error


class Family(NamedTuple):
    """What is judged together: the level of the whole, and pairs (task, arm, the same optimizer
    without a clip).
    """

    name: str
    level: float
    pairs: tuple[tuple[Task, str, str], ...]


def families(
    clipped: Iterable[Mapping[str, Any]],
    functions: Iterable[str],
    optimizers: Iterable[str],
    schedule: str | None,
) -> list[Family]:
    """The families of a study, by name.

    Value and norm clipping on one optimizer are a family, over all the study's workloads; other
    clips on it are another. Functions, which have no data, are families of their own. If a study
    has both of the first questions, each has half of the level; they are about the headline's
    schedule.

    :param clipped: rows of arms with a clip: the columns `TASK`, ``arm``, ``optimizer`` (its
        registered name), ``optimizer_label``, ``clip``, and ``partner``, the arm without it.
    :param functions: the problems that are functions.
    :param optimizers: the registered names of all optimizers of the study.
    :param schedule: the headline's; None if all arms are of it.
    """
    functions, both = set(functions), set(FIRST) <= set(optimizers)
    found: dict[str, tuple[float, list[tuple[Task, str, str]]]] = {}
    for row in clipped:
        first = row["clip"] in CLAIMED
        name = (
            f"clips on {row['optimizer_label']}"
            if first
            else (f"other clips on {row['optimizer_label']}")
        )
        if row["problem"] in functions:
            name += ", functions"
        asked_first = first and row["optimizer"] in FIRST and row["problem"] not in functions
        shared = (
            both
            and asked_first
            and (schedule is None or schedule_of(str(row["optimizer_label"])) == schedule)
        )
        level = LEVEL / 2 if shared else LEVEL
        pair = (Task(*(row[column] for column in TASK)), row["arm"], row["partner"])
        found.setdefault(name, (level, []))[1].append(pair)
    return [
        Family(name, level, tuple(sorted(pairs))) for name, (level, pairs) in sorted(found.items())
    ]
