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
from clipbench.protocol.choose import Asked, measured, missing, used
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

    Cells to select, cells stored, cells of extended axes and of the report at most, seconds a step,
    seconds for what is missing (as planned, and ``at_most`` with extended axes). Seconds a step are
    those of the stored choice of engine if there is one, of one measured here otherwise. ``device``
    and ``workers`` say where its cells run, and how many at a time; ``spread`` has the devices.
    """
    stored = store.read("cells") if store is not None else None
    pages_ = {
        name: store.page(name) if store is not None else {} for name in ("plan", "calibration")
    }
    chosen = set(pages_["plan"].get("cells", {}).get("report", []))
    tasks: dict[str, list[Cell]] = {}
    for cell in asked.templates:
        tasks.setdefault(Task.of(cell).label + by_example(cell), []).append(cell)
    counts = {task: sum(map(asked.count, cells)) for task, cells in tasks.items()}
    wanted = {
        task: (choice_key(cells[0]), cells, counts[task] * cells[0].steps)
        for task, cells in tasks.items()
    }
    known, engine = pages_["calibration"].get("engines", {}), engine or study.document.run.engine
    with Local(max(cores(), len(spread.indices)), spread) as executor:
        outlook = _choices(
            wanted, known, Asked(engine, None, execute.LIMIT, executor, Setting(tuple(study.used)))
        )
    rows = []
    for task, cells in tasks.items():
        seeds = study.seeds(cells[0].workload.name)
        report, extended = _at_most(study, asked, cells)
        have, unreported = 0, report
        if stored is not None and len(stored):
            ids = {replace(cell, seed=seed).id for cell in cells for seed in range(seeds.select)}
            have = len(ids & finished(stored))
            unreported = 0 if chosen and chosen <= set(stored["cell"]) else report
        choice = outlook[task]
        step_seconds = choice.rate(choice.engine) or 0.0
        missing = counts[task] - have + unreported
        rows.append(
            {
                "task": task,
                "select": counts[task],
                "stored": have,
                "extended": extended,
                "report": report,
                "engine": _engine_in_words(choice),
                "device": cells[0].device,
                "workers": execute.abreast(executor, cells[0].device),
                "step_seconds": step_seconds,
                "seconds": step_seconds * missing * cells[0].steps,
                "at_most": step_seconds * (missing + extended) * cells[0].steps,
            }
        )
    return rows


def _engine_in_words(choice: Choice) -> str:
    if choice.engine != BATCHED:
        return LOOP
    return f"{choice.lanes} lanes{', native' if choice.native else ''}"


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
) -> dict[str, Choice]:
    """How each task will be run: its stored choice, or one that is measured now.

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
    new = measured(
        {task: jobs[task] for task in missing(stored, jobs, asked.engine)},
        steps,
        asked,
        lambda: None,
    )
    for choice in new.values():
        if not choice.rates:
            raise UsageError(f"no rate could be measured: {next(iter(choice.refusals.values()))}.")
    return {
        task: used(
            new[task] if task in new else Choice.of(stored[task]), asked, jobs[task][0].cell.device
        )
        for task in tasks
    }


def _settings_beyond(cells: Sequence[Cell]) -> int:
    """How many settings `selection.extend` may add to those of one arm: two at an end of each
    axis that has an end.
    """
    thresholds = {str(cell.clip.settings) for cell in cells if cell.percentile is None}
    sides = [len({cell.lr for cell in cells}), len(thresholds)]
    return math.prod(side + 2 * (side > 1) for side in sides) - len(cells)
