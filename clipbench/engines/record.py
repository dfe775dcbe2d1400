"""`Job` and `Record`, what an engine takes and returns; how a run is evaluated and judged, the
same in every engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipbench import events, feed, measures, metrics, registry, skill, summary
from clipbench.cell import Cell
from clipbench.engines.failures import Fault, said
from clipbench.events import Evaluation, Event, Verdict

CHUNK = 512  # examples evaluated at once


@dataclass(frozen=True)
class Job:
    """A cell, and its clip's settings with a relative threshold resolved to a number."""

    cell: Cell
    clip_settings: Mapping[str, Any]

    @property
    def threshold(self) -> float | None:
        """The clip's first setting, or its default if none is given; None for a clip without
        settings.
        """
        name = str(self.cell.clip.threshold)
        return float(self.clip_settings[name]) if name in self.clip_settings else self.cell.number


@dataclass
class Record:
    """What became of a cell. ``rows`` is the curve, steps × measures in the order of
    `measures.COLUMNS`.

    ``failure`` says in one line why the cell could not be run, and is
    None if it was; ``fault`` is what else is known of the failure.
    """

    job: Job
    threshold: float | None = None
    rows: np.ndarray = field(default_factory=lambda: np.empty((0, len(measures.COLUMNS))))
    evaluations: list[Evaluation] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    verdict: Verdict | None = None
    failure: str | None = None
    fault: Fault | None = None
    metric: str | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    peak_ratio: float | None = None
    engine: str = "loop"
    threads: int = 1
    seconds: float = 0.0

    def fail(self, error: BaseException) -> None:
        """Note that the cell raised."""
        memory = isinstance(error, torch.OutOfMemoryError)
        self.failure = f"out of memory on {self.job.cell.device}" if memory else said(error)
        self.fault = Fault.of(error)


@dataclass(frozen=True)
class Components:
    """The three components of a cell, built."""

    workload: Any
    optimizer: Any
    clip: Any

    @classmethod
    def of(cls, job: Job) -> Components:
        cell = job.cell
        return cls(
            registry.build("workload", cell.workload.name, cell.workload.own),
            registry.build("optimizer", cell.optimizer.name, cell.optimizer.own),
            registry.build("clip", cell.clip.name, job.clip_settings),
        )


def stops(cell: Cell) -> list[int]:
    """The numbers of updates after which a run is evaluated, evenly spaced, the last step
    included and 0 left out.
    """
    return np.unique(np.linspace(0, cell.steps, max(2, cell.evaluations)).round().astype(int))[
        1:
    ].tolist()


@torch.no_grad()
def graded(
    workload: Any, outputs: Tensor, targets: Tensor, updates: int, split: str, last: bool
) -> list[Evaluation]:
    """Loss and metrics of a model's outputs over a whole split; on test before the ``last`` step
    the metric alone, which is all that grades a checkpoint.
    """
    named: dict[str, metrics.Metric] = {metrics.name_of(workload.metric): workload.metric}
    if last or split == "validation":
        named = {
            skill.LOSS: partial(_mean_loss, workload),
            **named,
            **{metrics.name_of(one): one for one in getattr(workload, "other_metrics", ())},
        }
    judged = scale(workload) if split == "validation" else None
    return [
        Evaluation(
            *(updates, split, name, float(metric(outputs, targets))),
            error=_error(judged, metric, outputs, targets)
            if judged and judged.metric == name
            else None,
        )
        for name, metric in named.items()
    ]


def _mean_loss(workload: Any, outputs: Tensor, targets: Tensor) -> float:
    return float(feed.loss_of(workload, outputs, targets).mean())


@lru_cache(maxsize=64)
def scale(workload: Any) -> skill.Scale | None:
    """What a workload's runs are judged by; kept, for it is asked at every evaluation of every
    lane, and a workload may have to calculate its reference.
    """
    return skill.Scale.of(about(workload))


def _error(judged: skill.Scale, metric: metrics.Metric, outputs: Tensor, targets: Tensor) -> float:
    """The standard error of a value over a split; of a function 0, for it has no examples."""
    return 0.0 if judged.chance is None else metrics.standard_error(metric, outputs, targets)


def about(workload: Any) -> dict[str, Any]:
    """What a reader must know of a workload to judge its runs."""
    return {
        "metric": metrics.name_of(workload.metric),
        "higher_is_better": metrics.direction(workload.metric),
        "chance": getattr(workload, "chance", None),
        "target_metric": getattr(workload, "target_metric", None),
        "target": getattr(workload, "target", None),
        "reference_loss": workload.reference_loss,
        "optimum": getattr(workload, "optimum", None),
        "margin": getattr(workload, "margin", None),
        "unbounded": bool(getattr(workload, "unbounded", False)),
    }


def conclude(record: Record, workload: Any) -> None:
    """Add events, verdict, peak ratio and what is to be known of the workload to the record of a
    run whose curve and evaluations are complete.
    """
    rules = events.rules_from(record.job.cell.events)
    record.rows = summary.as_stored(record.rows, record.job.cell.dtype)
    told = record.about = about(workload)
    dtype = str(feed.DTYPES[record.job.cell.dtype]).removeprefix("torch.")
    judged = skill.judge(told, record.evaluations, record.rows[:, measures.LOSS])
    derived = events.derive(
        record.rows, told["reference_loss"], told["optimum"], told["unbounded"], rules, dtype
    )
    record.events = events.ordered(
        [*derived, *events.evaluated(record.evaluations), *judged.events]
    )
    record.verdict = events.judge(record.events, judged.outcome)
    record.peak_ratio = events.peak_ratio(record.rows, told["optimum"])
