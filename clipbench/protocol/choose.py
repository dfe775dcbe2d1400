"""The second phase: which engine runs each task; measured if nothing is stored, and fitted to
the user's options.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from clipbench import execute
from clipbench.engines import Job, program, rates, structure
from clipbench.engines.rates import BATCHED, LOOP, Choice
from clipbench.errors import UsageError
from clipbench.execute import Call, Executor, Setting
from clipbench.protocol.campaign import Campaign
from clipbench.protocol.plans import choice_key


@dataclass(frozen=True)
class Asked:
    """The options of a choice: ``auto``, ``loop`` or ``batched``, bytes a worker (None: what its
    device has for it), seconds a measurement, and an executor.
    """

    engine: str
    memory: int | None
    limit: float
    executor: Executor
    setting: Setting


def choose(campaign: Campaign) -> None:
    """Choose how each task is run: measured once, stored before the first shard, and used again by
    later runs of the folder.

    :raises UsageError: lanes were asked for, and a task cannot have them.
    """
    engine = campaign.options.engine or campaign.study.document.run.engine
    if engine == LOOP:
        return
    page = campaign.store.page("calibration")
    tasks: dict[str, list[Job]] = {}
    for cell in campaign.cells:
        tasks.setdefault(choice_key(cell), []).append(campaign.job(cell))
    asked = Asked(
        engine,
        campaign.options.memory,
        campaign.options.patience,
        campaign.executor,
        campaign.setting,
    )
    wanted = missing(page.setdefault("engines", {}), tasks, engine)
    campaign.watcher.phase("choose", len(wanted))
    steps = {task: sum(job.cell.steps for job in jobs) for task, jobs in tasks.items()}
    new = measured({task: tasks[task] for task in wanted}, steps, asked, campaign.watcher.tick)
    # What failed is not remembered: the next run looks again.
    page["engines"] |= {task: choice.page() for task, choice in new.items() if choice.rates}
    if new:
        campaign.store.write_page("calibration", page)
    for task, jobs in tasks.items():
        choice = new[task] if task in new else Choice.of(page["engines"][task])
        campaign.choices[structure.shape(jobs[0].cell)] = used(choice, asked, jobs[0].cell.device)


def missing(known: Mapping[str, Any], tasks: Mapping[str, Sequence[Job]], engine: str) -> list[str]:
    """The tasks without a stored choice that covers all their arms, and that has lanes if lanes
    are asked for.
    """

    def is_known(page: Mapping[str, Any] | None, jobs: Sequence[Job]) -> bool:
        if page is None or (engine == BATCHED and not page["lanes"]):
            return False
        arms = page.get("arms")
        return not arms or {rates.versioned(job) for job in jobs} <= set(arms)

    return [task for task, jobs in tasks.items() if not is_known(known.get(task), jobs)]


def measured(
    tasks: Mapping[str, Sequence[Job]],
    steps: Mapping[str, int],
    asked: Asked,
    tick: Callable[[], object],
) -> dict[str, Choice]:
    """A choice for each task. As many are measured at a time as will train at a time: they share
    the memory's bandwidth then, too.

    :param steps: of all cells of a task's selection phase together.
    """
    works = {}
    for task, jobs in tasks.items():
        arms = list({rates.versioned(job): job for job in reversed(jobs)}.values())
        # What one worker has to train, about: its share of the selection, and half as much again
        # for the phases after it.
        abreast = execute.abreast(asked.executor, jobs[0].cell.device)
        cell_steps = 1.5 * steps[task] / abreast
        what = f"the choice of an engine for {jobs[0].cell.problem}"
        sharers = asked.executor.cards.sharing
        works[task] = (
            Call(rates.measure, (arms, asked.memory, cell_steps, asked.engine, sharers), what),
            asked.setting.of(jobs[0].cell),
        )
    chosen = {}
    for task, outcome in execute.calls(asked.executor, works, asked.limit):
        chosen[task] = _choice(outcome, tasks[task])
        tick()
    return {task: chosen[task] for task in tasks}


def _choice(outcome: Any, jobs: Sequence[Job]) -> Choice:
    """The choice that was measured, else the loop: a cell that cannot be run is a failed cell,
    not a failed run.
    """
    if isinstance(outcome, UsageError):
        return Choice(LOOP, refusals={"": str(outcome).rstrip(".")})
    # What a user-defined component returned may break code of ours only: the loop reports it with
    # the cell.
    if isinstance(outcome, execute.Bug) and any(
        execute.has_user_component(job.cell) for job in jobs
    ):
        return Choice(LOOP, refusals={"": str(outcome).rstrip(":")})
    if isinstance(outcome, Exception):
        raise outcome
    measured_choice: Choice = outcome
    return measured_choice


def used(choice: Choice, asked: Asked, device: str) -> Choice:
    """A choice as this run uses it: within its memory, with its engine.

    :raises UsageError: lanes are asked for, and there are none.
    """
    if asked.engine == LOOP:
        return replace(choice, engine=LOOP)
    if asked.engine == BATCHED and choice.refusals:
        raise UsageError(
            f"--engine batched: {next(iter(choice.refusals.values()))}; leave --engine out, or "
            f"say loop."
        )
    lanes = choice.lanes
    # what a CUDA device had was counted when the choice was measured
    memory = asked.memory or (rates.MEMORY if device == "cpu" else None)
    if choice.lane_bytes and memory is not None:
        lanes = min(lanes, memory // choice.lane_bytes)
    if lanes < program.FEWEST_LANES:
        if asked.engine == BATCHED:
            raise UsageError(
                f"--engine batched: two lanes take {2 * choice.lane_bytes} bytes; give more with "
                f"--memory."
            )
        return replace(choice, engine=LOOP)
    return replace(
        choice,
        lanes=lanes,
        engine=BATCHED if asked.engine == BATCHED else choice.engine,
    )
