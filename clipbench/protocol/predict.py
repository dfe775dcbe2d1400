"""What a run will cost, before it is started."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from clipbench import execute, selection
from clipbench.cell import Cell
from clipbench.engines import Job
from clipbench.engines.rates import BATCHED, LOOP, Choice
from clipbench.errors import UsageError
from clipbench.execute import ONE_CARD, Cards, Local, Setting, cores
from clipbench.protocol.choose import Asked, measured, missing, recalled, used
from clipbench.protocol.plans import Plan, by_example, choice_key, finished, partners, untuned
from clipbench.store import Store
from clipbench.study import Study
from clipbench.task import Task


def predict(
    study: Study,
    asked: Plan,
    store: Store | None,
    engine: str | None = None,
    spread: Cards = ONE_CARD,
) -> list[dict[str, Any]]:
    """What a run will cost, a row per task.

    Cells to select, stored, of extended axes and of the report at most, seconds a step, seconds for
    what is missing (as planned, and ``at_most`` with extended axes). Seconds a step are those of
    the choice of engine that is stored, else of one ``remembered`` from another run, else of one
    measured here. ``device`` and ``workers`` say where its cells run, and how many at a time;
    ``spread`` has the devices.
    """
    stored = None if store is None else store.read("cells")
    names = ("plan", "calibration")
    pages_ = {name: {} if store is None else store.page(name) for name in names}
    chosen = set(pages_["plan"].get("cells", {}).get("report", []))
    tasks = _tasks(asked)
    counts = {task: sum(map(asked.count, cells)) for task, cells in tasks.items()}
    wanted = {
        task: (choice_key(cells[0]), cells, counts[task] * cells[0].steps)
        for task, cells in tasks.items()
    }
    known, engine = pages_["calibration"].get("engines", {}), engine or study.document.run.engine
    with Local(max(cores(), len(spread.indices)), spread) as executor:
        outlook, known_before = _choices(
            wanted,
            known,
            Asked(engine, None, execute.LIMIT, executor, Setting(tuple(study.used)), study),
        )
    rows = []
    for task, cells in tasks.items():
        report, extended = _at_most(study, asked, cells)
        have, unreported = 0, report
        if stored is not None and len(stored):
            seeds = range(study.seeds(cells[0].workload.name).select)
            ids = {replace(cell, seed=seed).id for cell in cells for seed in seeds}
            have = len(ids & finished(stored))
            unreported = 0 if chosen and chosen <= set(stored["cell"]) else report
        step_seconds = outlook[task].rate(outlook[task].engine) or 0.0
        missing = counts[task] - have + unreported
        rows.append(
            {
                "task": task,
                "select": counts[task],
                "stored": have,
                "extended": extended,
                "report": report,
                "engine": _engine_in_words(outlook[task]),
                "device": cells[0].device,
                "workers": execute.abreast(executor, cells[0].device),
                "step_seconds": step_seconds,
                "remembered": task in known_before,
                "seconds": step_seconds * missing * cells[0].steps,
                "at_most": step_seconds * (missing + extended) * cells[0].steps,
            }
        )
    return rows


def _tasks(asked: Plan) -> dict[str, list[Cell]]:
    """Label → the cells of a task, on one seed."""
    tasks: dict[str, list[Cell]] = {}
    for cell in asked.templates:
        tasks.setdefault(Task.of(cell).label + by_example(cell), []).append(cell)
    return tasks


def _engine_in_words(choice: Choice) -> str:
    if choice.engine != BATCHED:
        return LOOP
    if choice.native:
        return f"{choice.lanes} lanes, native"
    return f"{choice.lanes} lanes" + (
        f" (not native: {choice.untranslated})" if choice.untranslated else ""
    )


def _at_most(study: Study, asked: Plan, cells: Sequence[Cell]) -> tuple[int, int]:
    """How many cells a task has at most in the report, and beyond its axes."""
    arms = {cell.arm for cell in cells}
    at_defaults = set(untuned(study.document.untuned, asked.templates)["arms"])
    seeds = study.seeds(cells[0].workload.name)
    same = selection.same_tries(selection.settings(cells), study.document.protocol.percentile)
    report = (sum(1 + (arm in at_defaults) for arm in arms) + len(same)) * seeds.report
    proportional = {
        cell.arm
        for cell in cells
        if cell.clip.name != "none" and cell.optimizer.name in selection.PROPORTIONAL
    }
    report += len(proportional) * seeds.report
    report += len(selection.several(selection.settings(cells), partners(cells))) * min(
        seeds.report, study.document.protocol.budget
    )
    extended = (
        sum(_settings_beyond([cell for cell in cells if cell.arm == arm]) for arm in arms)
        * seeds.select
    )
    extended *= bool(study.document.run.extend and seeds.report)
    return report, extended


def _choices(
    tasks: Mapping[str, tuple[str, Sequence[Cell], int]], known: Mapping[str, Any], asked: Asked
) -> tuple[dict[str, Choice], set[str]]:
    """How each task will be run: its stored choice, one that is remembered, or one that is measured
    now; and the tasks of the second kind.

    :param tasks: label → the key of its choice, its cells on one seed, and the number of steps of
        all its cells together. A relative threshold is any number here: no rate depends on it.
    """
    jobs = {
        task: [Job(cell, cell.clip_settings(1.0)) for cell in cells]
        for task, (_, cells, _) in tasks.items()
    }
    steps = {task: number for task, (_, _, number) in tasks.items()}
    stored = {
        task: known[choice_name]
        for task, (choice_name, _, _) in tasks.items()
        if choice_name in known
    }
    wanted = {task: jobs[task] for task in missing(stored, jobs, asked.engine)}
    new = recalled(wanted, steps, asked)
    before = set(new)
    unknown = {task: wanted[task] for task in wanted if task not in before}
    new |= measured(unknown, steps, asked, lambda: None)
    for choice in new.values():
        if not choice.rates:
            raise UsageError(f"no rate could be measured: {next(iter(choice.refusals.values()))}.")
    choices = {task: new[task] if task in new else Choice.of(stored[task]) for task in tasks}
    return {
        task: used(choice, asked, jobs[task][0].cell.device) for task, choice in choices.items()
    }, before


def _settings_beyond(cells: Sequence[Cell]) -> int:
    """How many settings `selection.extend` may add to those of one arm: two at an end of each
    axis that has an end.
    """
    thresholds = {str(cell.clip.settings) for cell in cells if cell.percentile is None}
    sides = [len({cell.lr for cell in cells}), len(thresholds)]
    return math.prod(side + 2 * (side > 1) for side in sides) - len(cells)
