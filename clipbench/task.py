"""What is compared: the task, within which cells compete, and a clip's threshold as the study gave
it.

Both are made from a cell or from a row of a table, which is any mapping. This module must not know
of frames, and not of torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from clipbench.cell import Cell
from clipbench.vocabulary import CONSTANT, PERCENTILE, RELATIVE, SCHEDULE


class Task(NamedTuple):
    """Which cells are compared with each other: those of one problem, under the same conditions."""

    problem: str
    batch: int
    device: str
    dtype: str

    @classmethod
    def of(cls, one: Cell | Mapping[str, Any]) -> Task:
        """The task of a cell, or of a row with these columns."""
        return cls(
            *(one[name] if isinstance(one, Mapping) else getattr(one, name) for name in cls._fields)
        )

    @property
    def words(self) -> tuple[str, str, str, str]:
        """Its fields as a reader knows them, in their order."""
        return str(self.problem), f"batch {self.batch}", str(self.device), str(self.dtype)

    @property
    def label(self) -> str:
        """``wdbc, batch 32, cpu, float32``."""
        return ", ".join(self.words)


FIRST_REPORT_SEED = 1000  # selection seeds count from 0, report seeds from here
TASK = [*Task._fields]
ARM = [*TASK, "arm"]  # the columns that tell an arm of a task: an optimizer with a clip


def arm_of(one: Cell | Mapping[str, Any]) -> tuple[Any, ...]:
    """What `ARM` names, of a cell or of a row."""
    return (*Task.of(one), one["arm"] if isinstance(one, Mapping) else one.arm)


def labels(tasks: Iterable[Task]) -> dict[Task, str]:
    """A label for each of a study's tasks: its problem, and of batch, device and dtype only what
    differs within a problem.
    """
    tasks = list(tasks)
    problems = {task.problem for task in tasks}
    varied = [
        index
        for index in range(1, len(TASK))
        if len({(task.problem, task[index]) for task in tasks}) > len(problems)
    ]
    return {
        task: ", ".join([task.words[0], *(task.words[index] for index in varied)]) for task in tasks
    }


def schedule_of(label: str) -> str:
    """The schedule that the label of an optimizer or arm names; ``constant`` if it names none."""
    named = _SCHEDULE.search(label)
    return named[1] if named else CONSTANT


def without_schedule(label: str, schedule: str) -> str:
    """The label of an optimizer or arm without the schedule that it names.

    >>> without_schedule("sgd(momentum=0.5, schedule=cosine) + norm", "cosine")
    'sgd(momentum=0.5) + norm'
    """
    word = re.escape(f"{SCHEDULE}={schedule}")
    return re.sub(rf"\({word}\)|, {word}(?!\()|{word}, ", "", label)


_SCHEDULE = re.compile(rf"\b{SCHEDULE}=([\w-]+(?:\([^()]*\))?)")


class Threshold(NamedTuple):
    """A clip's threshold: ``value`` in the clip's own unit, ``relative`` as a multiple of the
    pilot's median size, ``percentile`` as one of the pilot's sizes.

    NaN stands for what is not known: all of a run without a clip, ``relative`` and ``percentile``
    if the study gave a number, ``value`` of one that no pilot has resolved.
    """

    value: float = math.nan
    relative: float = math.nan
    percentile: float = math.nan

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Threshold:
        """The threshold of a row with the columns `THRESHOLD`."""
        return cls(*(float(row[name]) for name in THRESHOLD))

    @property
    def absent(self) -> bool:
        """Whether there is none: no clip, or one without settings."""
        return all(map(math.isnan, self))

    @property
    def is_relative(self) -> bool:
        """Whether the study gave a multiple."""
        return not math.isnan(self.relative)

    @property
    def is_percentile(self) -> bool:
        """Whether the study gave a percentile."""
        return not math.isnan(self.percentile)

    @property
    def word(self) -> str | None:
        """The word of the study by which it was given; None if it was a plain number."""
        return RELATIVE if self.is_relative else PERCENTILE if self.is_percentile else None

    @property
    def given(self) -> float:
        """The number that the study gave: a multiple, a percentile, or the value."""
        return getattr(self, self.word or "value")

    @property
    def setting(self) -> tuple[str, float]:
        """The word and the number that the study gave, which tell settings apart: a cell that
        failed early may have no value. Equal ones are equal; that of no clip is its own.
        """
        return ("none", 0.0) if self.absent else (self.word or "value", self.given)

    @property
    def key(self) -> tuple[float, float, float]:
        """What equal thresholds share, and what sorts them: none first, then by size. A NaN is
        not equal to itself.
        """
        return tuple(-1.0 if math.isnan(number) else number for number in self)  # type: ignore[return-value]

    @property
    def columns(self) -> dict[str, float]:
        """Its columns of a row."""
        return dict(zip(THRESHOLD, self, strict=True))


THRESHOLD = ["threshold", *Threshold._fields[1:]]  # the columns of one


def axis_label(setting: str | None, *, relative: bool) -> str:
    """``max_norm (× median size of the gradient)``: an axis of thresholds, after the clip's own
    setting.
    """
    return f"{setting or 'threshold'}{' (× median size of the gradient)' * relative}"
