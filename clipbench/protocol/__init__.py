"""The protocol of a run: calibrate, choose, select, extend, report, time; a file each. Each
phase runs what is missing of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clipbench import execute
from clipbench.execute import ONE_CARD, Executor, Local
from clipbench.protocol.calibrate import calibrate
from clipbench.protocol.campaign import PHASES, Counts, Options, begin
from clipbench.protocol.choose import choose
from clipbench.protocol.extend import extend
from clipbench.protocol.failures import Reason
from clipbench.protocol.part import part_named, shared_by_parts
from clipbench.protocol.plans import Plan, headline, plan, ready, runnable, shards
from clipbench.protocol.predict import predict
from clipbench.protocol.rehearse import rehearse
from clipbench.protocol.report import report
from clipbench.protocol.select import select
from clipbench.protocol.timing import time_implementations, time_methods
from clipbench.protocol.watcher import Silent, Watcher
from clipbench.store import Store
from clipbench.study import Study

__all__ = [
    "PHASES",
    "Counts",
    "Options",
    "Plan",
    "Reason",
    "Silent",
    "check",
    "headline",
    "part_named",
    "plan",
    "predict",
    "ready",
    "rehearse",
    "run",
    "runnable",
    "shards",
    "survey",
]


def run(
    study: Study,
    store: Store,
    options: Options | None = None,
    watcher: Watcher | None = None,
    executor: Executor | None = None,
) -> Counts:
    """The counts of a run: what is missing of a study is run into a claimed store.

    :param executor: who runs the work; who the options name if not given.
    """
    options, watcher = options or Options(), watcher or Silent()
    if executor is None:
        asked = check(study, options)
        request = execute.Request(
            options.workers,
            ONE_CARD if options.elsewhere else ready(asked, options.device, options.workers),
            "cuda" if any(cell.device == "cuda" for cell in asked.templates) else "cpu",
            options.executor_options,
            store.folder,
        )
        with execute.offered(options.executor)(request) as made:
            return run(study, store, options, watcher, made)
    for moved in store.sweep():
        watcher.note(f"set aside: {moved}")
    campaign = begin(study, store, options, executor, watcher)
    campaign.failures.forget()
    calibrate(campaign)
    choose(campaign)
    for phase in (select, extend, report) if options.part is None or options.part.number else ():
        phase(campaign)
        if campaign.counts.elsewhere:  # what comes after needs the cells of other parts
            break
    if options.throughput and options.part is None:
        time_methods(campaign)
    return campaign.finish()


def check(study: Study, options: Options) -> Plan:
    """The plan of a run that can begin: nothing is touched for it.

    :raises UsageError: the study, the device, the part or the executor cannot be had here.
    """
    execute.offered(options.executor)
    asked = runnable(study, options.device, options.elsewhere)
    shared_by_parts(study, asked.templates, options.part, options.after)
    if not options.elsewhere:
        ready(asked, options.device, options.workers)
    return asked


def survey(
    study: Study,
    store: Store,
    device: str,
    sizes: Mapping[str, Any],
    implementations: Sequence[str],
    watcher: Watcher,
) -> int:
    """The number of timed blocks: every implementation of every method is timed into a claimed
    store, beside those stored.

    :param sizes: model sizes beside those of the study's workloads, name → shapes.
    :raises UsageError: the study has no cell to run here.
    """
    options = Options(device=device, curves=store.page("environment").get("curves", "all"))
    with Local(1, ready(runnable(study, device), device, 1)) as executor:
        campaign = begin(study, store, options, executor, watcher)
        calibrate(campaign)
        return time_implementations(campaign, sizes, implementations)
