"""What an executor would submit for a run, as text; nothing is run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from clipbench import execute
from clipbench.engines import Job, structure
from clipbench.engines.rates import Choice
from clipbench.errors import UsageError, counted
from clipbench.execute import Executor
from clipbench.protocol.campaign import Options
from clipbench.protocol.choose import Asked, used
from clipbench.protocol.place import opened
from clipbench.protocol.plans import choice_key, finished, runnable
from clipbench.study import Study


@runtime_checkable
class Submits(Executor, Protocol):
    """An executor that can show what it submits."""

    def scripts(self, devices: Sequence[str]) -> list[str]:
        """A script for the work of each device."""


def rehearse(study: Study, options: Options, folder: Path) -> str:
    """The scripts, and how many jobs the selection takes that a run has first: with the engines
    that the store knows, in the loop if it knows none.

    :raises UsageError: the executor submits nothing.
    """
    asked, store = runnable(study, options.device, options.elsewhere), opened(folder, study)
    devices = sorted({cell.device for cell in asked.templates})
    request = execute.Request(
        options.workers,
        device=devices[-1],
        options=options.executor_options,
        folder=folder,
    )
    made: Any = execute.offered(options.executor)(request)
    if not isinstance(made, Submits):
        raise UsageError(
            f"--dry-run: the executor {options.executor} submits no scripts; `clipbench plan` says "
            f"what a run will cost."
        )
    done = set() if store is None else finished(store.read("cells"))
    cells = [cell for cell in asked.cells if options.only.meets(cell) and cell.id not in done]
    if options.part is not None:
        cells = options.part.cells(cells)
    # a relative threshold is any number here: no packing depends on it
    jobs = [Job(cell, cell.clip_settings(1.0)) for cell in cells]
    known = {} if store is None else store.page("calibration").get("engines", {})
    engine = options.engine or study.document.run.engine
    question = Asked(engine, options.memory, execute.LIMIT, made, execute.Setting(), study)
    choices = {
        structure.shape(job.cell): used(
            Choice.of(known[choice_key(job.cell)]), question, job.cell.device
        )
        for job in jobs
        if choice_key(job.cell) in known
    }
    shards = execute.pack(jobs, choices, made.slots, made.seconds, made.cards)
    measured = "" if choices else " at most: no step has been timed yet"
    summary = (
        f"the selection's {counted(len(cells), 'cell')} are {counted(len(shards), 'job')}"
        f"{measured}; {made.slots} at a time, of about {made.seconds:g} s each or less. Pilots and "
        f"the choice of engines are a job each. Nothing was submitted."
    )
    return "\n".join([*made.scripts(devices), summary])
