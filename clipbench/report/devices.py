"""The section on whether the CPU and a CUDA device agree, and which takes less time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from clipbench.analysis import devices
from clipbench.figures.style import setting
from clipbench.report import beside
from clipbench.report.evidence import Evidence
from clipbench.report.frames import LISTED, foldable
from clipbench.report.parts import Heading, Part, Section, Table, Text
from clipbench.report.prose import paragraphs
from clipbench.report.words import DASH, between, fixed, gap_places, plural, seconds, short
from clipbench.schema import Status
from clipbench.statistics import Interval
from clipbench.task import Task, labels

TITLE = "CPU against CUDA"
HEAD = ["on the CPU", "on CUDA", "verdict on the CPU", "verdict on CUDA"]


def section(evidence: Evidence) -> Section:
    """Whether the two devices agree; nothing if the study has cells of one alone."""
    if not {*devices.DEVICES} <= set(evidence.cells["device"]):
        return Section("devices", TITLE, [])
    both = devices.pairs(evidence.cells)
    alone = devices.alone(evidence.cells, both)
    parts: list[Part] = [*paragraphs("devices", about="pairs", n=len(both), **alone)]
    if len(both):
        parts += [*_curves(evidence, both), *_outcomes(evidence, both)]
    parts += _verdicts(evidence)
    parts += _speed(evidence, both)
    return Section("devices", TITLE, parts)


def _labels(evidence: Evidence) -> dict[Task, str]:
    """The tasks without their device, as the page calls them."""
    return labels({task._replace(device=devices.BOTH) for task in evidence.tasks})


def _machine(evidence: Evidence, environment: str, device: str) -> str:
    """What computed: the processor, or the CUDA device, with the key of its environment."""
    entry = evidence.environment.get("environments", {}).get(environment, {})
    named = entry.get("processor") if device == "cpu" else (entry.get("cuda") or {}).get("device")
    return f"{named or 'not named'} (environment {environment})"


def _by_machines(evidence: Evidence, rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The rows of each two machines, with their names."""
    for keys, mine in rows.groupby(devices.WHERE, sort=True):
        here, there = map(_machine, [evidence] * 2, keys, devices.DEVICES)
        yield f"CPU: {here}; CUDA: {there}", mine


# ------------------------------------------------------------------------------------------- curves


def _curves(evidence: Evidence, both: pd.DataFrame) -> list[Part]:
    asked = devices.comparable(both)
    recorded = evidence.curves_of([*asked["cell_cpu"], *asked["cell_cuda"]], ["loss"])
    parting = devices.parting(both, recorded)
    failed = (both[["ended_cpu", "ended_cuda"]] == Status.FAILED).any(axis=1)
    parts: list[Part] = [
        Heading("Do the losses agree, step by step?"),
        *paragraphs(
            "devices",
            about="curves",
            n=len(both),
            judged=len(parting),
            failed=int(failed.sum()),
            thresholds=int((~both["same_threshold"]).sum()),
            unkept=len(asked) - len(parting),
            rounding=devices.ROUNDING,
            sudden=devices.SUDDEN,
            calm=devices.CALM,
            exact=devices.EXACT,
            dtypes=[_of_dtype(mine, dtype) for dtype, mine in parting.groupby("dtype", sort=True)],
        ),
    ]
    for machines, mine in _by_machines(evidence, devices.summary(parting)):
        parts.append(_summary(evidence, mine, machines))
    gone = parting[parting["parted"].notna()]
    if len(gone):
        parts.append(foldable(_parted(evidence, gone)))
    return parts


def _of_dtype(mine: pd.DataFrame, dtype: str) -> dict[str, Any]:
    """What the words say of the pairs of one dtype."""
    gone = mine[mine["parted"].notna()]
    return {
        "name": dtype,
        "n": len(mine),
        "bound": float(mine["bound"].iloc[0]),
        "within": len(mine) - len(gone),
        "largest": float(mine.loc[mine["parted"].isna(), "largest"].max()),
        "first_median": float(mine["first"].median()),
        "first_largest": float(mine["first"].max()),
        "parted": len(gone),
        "at_once": int(gone["at_once"].sum()),
        "least": float(gone["parted"].min()),
        "median": float(gone["parted"].median()),
    }


def _summary(evidence: Evidence, mine: pd.DataFrame, machines: str) -> Table:
    named = _labels(evidence)
    rows = [
        [
            named[Task.of(row)],
            str(row["n"]),
            short(row["first_median"]),
            short(row["first_largest"]),
            short(row["bound"]),
            str(row["within"]),
            str(row["grown"]),
            str(row["at_once"]) if row["dtype"] == devices.EXACT else DASH,
            short(row["parted_least"]),
            short(row["parted_median"]),
        ]
        for row in mine.to_dict("records")
    ]
    head = ["problem", "pairs", "first step, median", "first step, most", "bound", "within it"]
    head += ["grown apart", "apart at once", "part at step, first", "part at step, median"]
    caption = f"How far the losses of the same cell part. {machines}."
    return Table(evidence.name("tables", "devices-curves"), caption, head, rows, mine)


def _parted(evidence: Evidence, gone: pd.DataFrame) -> Table:
    named = _labels(evidence)
    gone = gone.sort_values(
        ["at_once", "parted", "cell_cpu"], ascending=[False, True, True], kind="stable"
    )
    rows = [
        [
            named[Task.of(row)],
            f"{evidence.short(row['arm'])}, {setting(row)}",
            f"{row['role']} {row['seed']}",
            short(row["parted"]) + " (at once)" * row["at_once"],
            short(row["largest"]),
            row["cell_cpu"],
            row["cell_cuda"],
        ]
        for row in gone.head(LISTED).to_dict("records")
    ]
    head = ["problem", "arm and setting", "seed", "parts at step", "largest difference"]
    head += ["CPU cell", "CUDA cell"]
    caption = (
        f"{plural(len(gone), 'pair')} whose losses part by more than the bound (the first "
        f"{min(LISTED, len(gone))})."
    )
    name = evidence.name("tables", "devices-parted")
    return Table(name, caption, head, rows, evidence.labelled(gone), words=3)


# -------------------------------------------------------------------------- outcomes and verdicts


def _outcomes(evidence: Evidence, both: pd.DataFrame) -> list[Part]:
    alike = int((both["ended_cpu"] == both["ended_cuda"]).sum())
    parts: list[Part] = [
        Heading("Do the runs end alike?"),
        *paragraphs("devices", about="outcomes", n=len(both), alike=alike),
    ]
    for machines, mine in _by_machines(evidence, both):
        counted = devices.outcomes(mine)
        rows = [
            [str(ended), *(f"{count:,}" for count in counted.loc[ended])] for ended in counted.index
        ]
        head = ["on the CPU", *(f"{ended} on CUDA" for ended in counted.columns)]
        caption = f"How {plural(len(mine), 'pair')} ended on each device. {machines}."
        name = evidence.name("tables", "devices-outcomes")
        parts.append(Table(name, caption, head, rows, counted.reset_index()))
    return parts


def _verdicts(evidence: Evidence) -> list[Part]:
    both = devices.verdicts(evidence.gaps)
    if both.empty:
        return []
    parts: list[Part] = [
        Heading("Do the verdicts agree?"),
        Text(f"Each device chose its learning rates by itself. On CUDA, {beside.told(both)}"),
    ]
    for task, label in sorted(_labels(evidence).items()):
        mine = evidence.of(both, task)
        if len(mine):
            on_cpu = task._replace(device=devices.DEVICES[0])
            places = gap_places(evidence.of(evidence.gaps, on_cpu))
            name = evidence.name("tables", "devices-verdicts", label)
            caption = f"{label}: each comparison on the CPU, and on CUDA."
            parts.append(beside.table(evidence, mine, name, caption, places, HEAD))
    return parts


# -------------------------------------------------------------------------------------------- speed


def _speed(evidence: Evidence, both: pd.DataFrame) -> list[Part]:
    times, timings = devices.times(both), devices.timings(evidence.throughput)
    tables = [_cells(evidence, *one) for one in _by_machines(evidence, times)]
    tables += [_steps(evidence, *one) for one in _by_machines(evidence, timings)]
    if not tables:
        return []
    words = paragraphs("devices", about="speed", timed=len(timings), n=int(times["n"].sum()))
    return [Heading("Which takes less time?"), *words, *map(foldable, tables)]


def _cells(evidence: Evidence, machines: str, mine: pd.DataFrame) -> Table:
    named = _labels(evidence)
    rows = [
        [
            named[Task.of(row)],
            f"{row['engine_cpu']}, {row['engine_cuda']}",
            str(row["n"]),
            seconds(row["seconds_cpu"]),
            seconds(row["seconds_cuda"]),
            _ratio(row),
        ]
        for row in mine.to_dict("records")
    ]
    head = [
        "problem",
        "engine, on CUDA",
        "pairs",
        "CPU, median",
        "CUDA, median",
        "CUDA / CPU [95 %]",
    ]
    caption = f"Wall time of a cell. {machines}."
    name = evidence.name("tables", "devices-seconds")
    return Table(name, caption, head, rows, mine, words=2)


def _ratio(row: dict[str, Any]) -> str:
    bounds = Interval(row["ratio"], row["low"], row["high"])
    return f"{fixed(bounds.estimate, 2)} {between(bounds, 2)}".strip()


def _steps(evidence: Evidence, machines: str, mine: pd.DataFrame) -> Table:
    rows = [
        [
            *_method(row),
            seconds(row["step"]),
            seconds(row["step_b"]),
            fixed(row["ratio"], 2),
            f"{row['blocks']}, {row['blocks_b']}",
        ]
        for row in mine.to_dict("records")
    ]
    head = ["problem", "optimizer", "clip", "CPU, median", "CUDA, median", "CUDA / CPU"]
    caption = f"Time of a training step, timed apart. {machines}."
    name = evidence.name("tables", "devices-throughput")
    return Table(name, caption, [*head, "blocks, on CUDA"], rows, mine, words=3)


def _method(row: dict[str, Any]) -> Sequence[str]:
    problem = f"{row['problem']}, batch {row['batch']}, {row['dtype']}"
    return problem, row["optimizer"], f"{row['clip']} ({row['implementation']})"
