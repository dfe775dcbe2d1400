"""The second phase: which engine runs each task; measured if nothing is stored, and fitted to
the user's options.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from clipbench import execute
from clipbench.engines import Job, program, rates, structure
from clipbench.engines.rates import BATCHED, LOOP, Choice
from clipbench.errors import UsageError
from clipbench.execute import Call, Executor, Setting
from clipbench.protocol import remembered
from clipbench.protocol.campaign import Campaign
from clipbench.protocol.plans import choice_key
from clipbench.study import Study

PROBE = 0.1  # seconds of processor time
DISTURBED = 1.15  # times that, until it is over


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
    study: Study


def choose(campaign: Campaign) -> None:
    """Choose how each task is run: measured once on a machine, stored before the first shard, and
    used again by later runs of the folder.

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
        campaign.study,
    )
    wanted = missing(page.setdefault("engines", {}), tasks, engine)
    steps = {task: sum(job.cell.steps for job in jobs) for task, jobs in tasks.items()}
    new = recalled({task: tasks[task] for task in wanted}, steps, asked)
    unknown = {task: tasks[task] for task in wanted if task not in new}
    campaign.watcher.phase("choose", len(unknown))
    new |= measured(unknown, steps, asked, campaign.watcher.tick)
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


def recalled(
    tasks: Mapping[str, Sequence[Job]], steps: Mapping[str, int], asked: Asked
) -> dict[str, Choice]:
    """The choices that this machine has measured before; takes what `measured` takes."""
    known = {
        task: remembered.recall(name)
        for task, jobs in tasks.items()
        if (name := remembered_as(jobs, steps[task], asked)) is not None
    }
    return {task: choice for task, choice in known.items() if choice is not None}


def remembered_as(jobs: Sequence[Job], steps: int, asked: Asked) -> str | None:
    """The key under which a task's choice is remembered; None if it is not: rates of other machines
    and of CUDA devices, which are not looked at here, and of a user's components, whose files may
    read others.
    """
    cell = jobs[0].cell
    if (
        not isinstance(asked.executor, execute.Local)
        or cell.device != "cpu"
        or any(execute.has_user_component(job.cell) for job in jobs)
    ):
        return None
    question = {
        "task": choice_key(cell),
        "arms": [rates.versioned(job) for job in _an_arm_each(jobs)],
        "steps": cell.steps,
        "evaluations": cell.evaluations,
        # what measuring must pay within: about as many decide the same
        "work": round(math.log2(_before_a_worker(jobs, steps, asked))),
        "seeds": _seeds(jobs),
        "engine": asked.engine,
        "memory": asked.memory,
        "workers": asked.executor.slots,
    }
    return remembered.key(question)


def _an_arm_each(jobs: Sequence[Job]) -> list[Job]:
    return list({rates.versioned(job): job for job in reversed(jobs)}.values())


def _seeds(jobs: Sequence[Job]) -> int:
    return len({job.cell.seed for job in jobs})


def _before_a_worker(jobs: Sequence[Job], steps: int, asked: Asked) -> float:
    """The steps that one worker has to train, about: its share of the selection, half as much again
    beyond its axes, and every arm twice on each seed of the report.
    """
    cell, arms = jobs[0].cell, {job.cell.arm for job in jobs}
    report = 2 * len(arms) * asked.study.seeds(cell.workload.name).report * cell.steps
    return (1.5 * steps + report) / execute.abreast(asked.executor, cell.device)


def measured(
    tasks: Mapping[str, Sequence[Job]],
    steps: Mapping[str, int],
    asked: Asked,
    tick: Callable[[], object],
) -> dict[str, Choice]:
    """A choice for each task, which is remembered if nothing disturbed its measurement. As many are
    measured at a time as will train at a time: they share the memory's bandwidth then, too.

    :param steps: of all cells of a task's selection phase together.
    """
    works, names = {}, {}
    for task, jobs in tasks.items():
        arms, cell_steps = _an_arm_each(jobs), _before_a_worker(jobs, steps[task], asked)
        what = f"the choice of an engine for {jobs[0].cell.problem}"
        sharers = asked.executor.cards.sharing
        names[task] = remembered_as(jobs, steps[task], asked)
        work = rates.measure if names[task] is None else _measured_undisturbed
        arguments = (arms, asked.memory, cell_steps, asked.engine, sharers, _seeds(jobs))
        works[task] = Call(work, arguments, what), asked.setting.of(jobs[0].cell)
    chosen = {}
    for task, outcome in execute.calls(asked.executor, works, asked.limit):
        choice, undisturbed = outcome if isinstance(outcome, tuple) else (outcome, False)
        chosen[task] = _choice(choice, tasks[task])
        name = names[task]
        if name is not None and undisturbed and chosen[task].rates:
            remembered.keep(name, chosen[task])
        tick()
    return {task: chosen[task] for task in tasks}


def _measured_undisturbed(*arguments: Any) -> tuple[Choice, bool]:
    """The choice that `rates.measure` makes, and whether other programs left this process its
    processor: if not, the rates are good enough for this run, and for no other.
    """
    before = _is_undisturbed()
    choice = rates.measure(*arguments)
    return choice, before and _is_undisturbed()


def _is_undisturbed() -> bool:
    """Whether a tenth of a second of work takes about as long as its processor time."""
    begin, used = time.perf_counter(), time.process_time()
    while time.process_time() - used < PROBE:
        pass
    return time.perf_counter() - begin < DISTURBED * PROBE


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
