"""The section on threats to validity: how small, how short and on what all of this ran, and what
was not tried.
"""

from __future__ import annotations

import pandas as pd

from clipbench.report.evidence import Evidence
from clipbench.report.parts import List, Section, Table, Text
from clipbench.report.words import listed, percent, plural, short
from clipbench.schema import Role
from clipbench.task import ARM, Task


def section(evidence: Evidence) -> Section:
    """What limits the conclusions, read from the store."""
    items = [part(evidence) for part in (_reach, _edges, _machines, _untried)]
    return Section(
        "threats",
        "Threats to validity",
        [
            Text(
                "What is said above was seen under these conditions. Nothing here shows that it "
                "holds under others."
            ),
            _conditions(evidence),
            List([Text(item) for item in items if item]),
        ],
    )


def _conditions(evidence: Evidence) -> Table:
    """A row per task: how long its runs were, and how many there are of which kind."""
    rows, frames = [], []
    for task in evidence.tasks:
        mine = evidence.of(evidence.cells, task)
        selected = mine["role"] == Role.SELECT
        grid = mine[selected] if selected.any() else mine
        seeds = {
            role: mine.loc[mine["role"] == role, "seed"].nunique()
            for role in (Role.SELECT, Role.REPORT)
        }
        entry = {
            **task._asdict(),
            "steps": int(mine["steps"].max()),
            "optimizers": mine["optimizer"].nunique(),
            "clips": mine.loc[mine["clip"] != "none", "clip"].nunique(),
            "lowest_lr": float(grid["lr"].min()),
            "highest_lr": float(grid["lr"].max()),
            "select_seeds": seeds[Role.SELECT],
            "report_seeds": seeds[Role.REPORT],
        }
        frames.append(entry)
        rows.append(
            [
                task.problem,
                f"{entry['steps']:,}",
                str(task.batch),
                f"{task.device}, {task.dtype}",
                str(entry["optimizers"]),
                str(entry["clips"]),
                f"{short(entry['lowest_lr'])} to {short(entry['highest_lr'])}",
                f"{entry['select_seeds']} and {entry['report_seeds']}",
            ]
        )
    head = [
        "workload",
        "steps",
        "batch",
        "device",
        "optimizers",
        "clips",
        "learning rates",
        "seeds",
    ]
    caption = (
        "What ran: the longest run of each task, and its seeds, of selection and of report; at the "
        "same number of tries both count together."
    )
    return Table(
        evidence.name("tables", "threats"), caption, head, rows, pd.DataFrame(frames), words=1
    )


def _reach(evidence: Evidence) -> str:
    most = max(int(cells) for cells in evidence.cells["steps"])
    return (
        f"**Horizon.** No run is longer than {most:,} steps. What a clip does late in a long "
        "training, or to a model of a thousand times the size, was not seen."
    )


def _edges(evidence: Evidence) -> str:
    """Arms that mostly choose an end of their learning rates: a better one may lie beyond."""
    levels, cells = evidence.levels, evidence.cells
    if levels.empty:
        return ""
    own = cells[(cells["role"] == Role.SELECT) & ~cells["extended"].astype(bool)]
    axis = own.groupby(ARM, sort=True)["lr"].agg(["min", "max"]).astype(float).reset_index()
    rows = levels[levels["grade"] == evidence.grade].merge(axis, on=ARM, how="left")
    rows = rows[(rows["lr"] == rows["min"]) | (rows["lr"] == rows["max"])]
    if rows.empty:
        return "**Axes.** No method mostly chose the least or the largest of its learning rates."
    told = [
        f"{evidence.short(str(row['arm']))} on {evidence.labels[Task.of(row)]} "
        f"({short(row['lr'])} in {percent(row['share'])})"
        for row in rows.to_dict("records")
    ]
    return (
        "**Axes.** Some methods mostly chose an end of their learning rates, beyond which a better "
        f"one may lie: {listed(told)}."
    )


def _machines(evidence: Evidence) -> str:
    """On how many machines it ran."""
    cells, timed = (
        set(frame["environment"].dropna()) for frame in (evidence.cells, evidence.throughput)
    )
    keys = [*sorted(cells), *sorted(timed - cells)]
    machines = listed(
        [f"{evidence.machine(key)}{'' if key in cells else ' (timings alone)'}" for key in keys]
    )
    return (
        f"**Machines.** All of it ran in {plural(len(keys), 'environment')}: {machines}. On "
        "another processor last bits differ, and with them single runs that are near a cliff."
    )


def _untried(evidence: Evidence) -> str:
    schedules = (
        f"the schedule {evidence.schedule} alone"
        if evidence.schedule and len(evidence.schedules) == 1
        else "the schedules named"
    )
    absent = evidence.plan.get("not_run", [])
    missing = [f"{plural(int(one['cells']), 'cell')} on {one['device']}" for one in absent]
    lacking = f" Asked for and not run: {listed(missing)}." if missing else ""
    return (
        f"**Not tried.** Other optimizers, clips, thresholds, batch sizes and data than the tables "
        f"name; of learning rates {schedules}.{lacking}"
    )
