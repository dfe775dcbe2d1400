"""Which engine runs each task: measured where nothing is stored, and fitted to what the user asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from clipbench import execute
from clipbench.cell import Cell
from clipbench.engines import Job, program, rates
from clipbench.engines.rates import BATCHED, LOOP, Choice
from clipbench.errors import UsageError


@dataclass(frozen=True)
class Asked:
    """What a run asks for: ``auto``, ``loop`` or ``batched``, bytes a worker, seconds a measurement, workers, strangers' files."""

    engine: str
    memory: int
    limit: float
    workers: int
    use: Sequence[execute.Used]


def missing(known: Mapping[str, Any], tasks: Mapping[str, Sequence[Job]], engine: str) -> list[str]:
    """The tasks without a stored choice that was made for all their arms, and with lanes where those are asked for."""

    def is_known(page: Mapping[str, Any] | None, jobs: Sequence[Job]) -> bool:
        if page is None or (engine == BATCHED and not page["lanes"]):
            return False
        arms = page.get("arms")
        return not arms or {rates.versioned(job) for job in jobs} <= set(arms)

    return [key for key, jobs in tasks.items() if not is_known(known.get(key), jobs)]


def measured(
    tasks: Mapping[str, Sequence[Job]], steps: Mapping[str, int], asked: Asked, tick: Callable[[], object]
) -> dict[str, Choice]:
    """A choice for each task, as many measured at a time as will train at a time: they share the memory's bandwidth then, too.

    :param steps: of all cells of a task's selection phase together.
    """

    def one(key: str) -> Choice:
        jobs = tasks[key]
        arms = list({rates.versioned(job): job for job in reversed(jobs)}.values())
        # Before one worker, about: selection, and half as much again for the phases after it.
        cell_steps = 1.5 * steps[key] / asked.workers
        try:
            given = (arms, asked.memory, cell_steps, asked.engine)
            what = f"the choice of an engine for {jobs[0].cell.problem}"
            return execute.call(rates.measure, given, asked.use, jobs[0].cell.device, what=what, limit=asked.limit)
        except UsageError as error:  # a cell that cannot be run is a failed cell, not a failed run: the loop records it
            return Choice(LOOP, refusals={"": str(error).rstrip(".")})
        except execute.Bug as bug:
            if not any(execute.has_stranger(job.cell) for job in jobs):
                raise
            # What a stranger's component returned may only break what is ours: the loop tells it by the cell.
            return Choice(LOOP, refusals={"": str(bug).rstrip(":")})
        finally:
            tick()

    with ThreadPoolExecutor(asked.workers) as pool:
        try:
            return dict(zip(tasks, pool.map(one, tasks), strict=True))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            execute.abandon()
            raise


def used(choice: Choice, asked: Asked) -> Choice:
    """A choice as this run uses it: within its memory, with its engine.

    :raises UsageError: lanes are asked for, and there are none.
    """
    if asked.engine == LOOP:
        return replace(choice, engine=LOOP)
    if asked.engine == BATCHED and choice.refusals:
        raise UsageError(f"--engine batched: {next(iter(choice.refusals.values()))}; leave --engine out, or say loop.")
    lanes = min(choice.lanes, asked.memory // choice.lane_bytes) if choice.lane_bytes else choice.lanes
    if lanes < program.FEWEST:
        if asked.engine == BATCHED:
            raise UsageError(f"--engine batched: two lanes take {2 * choice.lane_bytes} bytes; give more with --memory.")
        return replace(choice, engine=LOOP)
    compiled = choice.compiled and lanes == choice.lanes
    return replace(choice, lanes=lanes, compiled=compiled, engine=BATCHED if asked.engine == BATCHED else choice.engine)


def outlook(tasks: Mapping[str, tuple[str, Sequence[Cell], int]], known: Mapping[str, Any], asked: Asked) -> dict[str, Choice]:
    """How each task will be run, by its stored choice or one measured now.

    :param tasks: name → where its choice is stored, its cells on one seed, and the steps of all its cells together. A relative
        threshold is any number here: no rate depends on it.
    """
    jobs = {key: _jobs(cells) for key, (_, cells, _) in tasks.items()}
    steps = {key: number for key, (_, _, number) in tasks.items()}
    stored = {key: known[place] for key, (place, _, _) in tasks.items() if place in known}
    found = measured({key: jobs[key] for key in missing(stored, jobs, asked.engine)}, steps, asked, lambda: None)
    for choice in found.values():
        if not choice.rates:
            raise UsageError(f"no rate could be measured: {next(iter(choice.refusals.values()))}.")
    return {key: used(found[key] if key in found else Choice(**stored[key]), asked) for key in tasks}


def _jobs(cells: Iterable[Cell]) -> list[Job]:
    return [Job(cell, cell.clip_settings(1.0)) for cell in cells]
