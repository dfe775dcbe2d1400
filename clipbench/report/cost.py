"""The section on what a clip costs."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from clipbench.figures.cost import draw
from clipbench.report.evidence import Evidence
from clipbench.report.frames import timed_picture
from clipbench.report.implementations import subsection
from clipbench.report.parts import Heading, Part, Section, Table, Text
from clipbench.report.words import DASH, between, fixed, number_of_bytes, seconds
from clipbench.statistics import Interval
from clipbench.task import TASK, Task


def section(evidence: Evidence) -> Section:
    """What a clip costs."""
    title, costs, more = "What does it cost?", evidence.costs, subsection(evidence)
    if costs.empty and not more:
        return Section(
            "cost",
            title,
            [
                Text(
                    "Throughput was not measured in this folder; `clipbench throughput` or a run "
                    "without `--no-throughput` does."
                )
            ],
        )
    parts: list[Part] = []
    if len(costs):
        parts.append(
            Text(
                "Time of the real torch step, measured apart from the training runs with nothing "
                "else running: every clip's block beside one of the same optimizer without a "
                "clip. The ratio is the median over the pairs of blocks with its order-statistic "
                "interval; quantiles are over blocks."
            )
        )
    keys = [*TASK, "environment"]
    several = len(set(costs["environment"])) > 1
    for task_and_machine, mine in costs.groupby(keys, dropna=False, sort=True):
        # The timings of a task that the plan no longer holds keep a label of their own.
        label = evidence.labels.get(
            Task(*task_and_machine[:-1]), ", ".join(str(value) for value in task_and_machine[:-1])
        )
        label += f" ({evidence.machine(task_and_machine[-1])})" if several else ""
        shown: list[Part] = []
        if np.isfinite(mine["ratio"]).any():
            caption = (
                f"{label}: step time with a clip over the step time without, and its 95 % interval."
            )
            shown.append(timed_picture(evidence, draw, mine, caption, "cost", label))
        shown.append(_table(evidence, label, mine))
        parts += [Heading(label), *shown] if len(costs[keys].drop_duplicates()) > 1 else shown
    return Section("cost", title, parts + more)


def _table(evidence: Evidence, label: str, mine: pd.DataFrame) -> Table:
    rows = [
        [
            row["optimizer"],
            row["clip"],
            "1"
            if row["clip"] == "none"
            else (
                f"{fixed(row['ratio'], 2)} "
                f"{between(Interval(row['ratio'], row['low'], row['high']), 2)}"
            ).strip(),
            seconds(row["step_5"]),
            seconds(row["step_50"]),
            seconds(row["step_95"]),
            f"{row['samples_per_second']:,.0f}"
            if math.isfinite(row["samples_per_second"])
            else DASH,
            number_of_bytes(row["peak_bytes"]),
            str(int(row["blocks"])),
            str(int(row["invalid"])),
        ]
        for row in mine.to_dict("records")
    ]
    head = [
        "optimizer",
        "clip",
        "ratio to no clip",
        "step, 5 %",
        "median",
        "95 %",
        "samples/s",
        "peak memory",
        "blocks",
        "invalid",
    ]
    return Table(
        evidence.name("tables", "throughput", label),
        f"{label}: cost of a training step.",
        head,
        rows,
        mine.reset_index(drop=True),
        words=2,
    )
