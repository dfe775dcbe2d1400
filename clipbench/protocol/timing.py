"""The last phase: what a step of every method takes, and, for `survey`, in every implementation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from clipbench import execute, throughput
from clipbench.cell import Cell
from clipbench.errors import UsageError
from clipbench.execute import Call, cards
from clipbench.protocol.campaign import Campaign
from clipbench.protocol.plans import seen
from clipbench.schema import Status
from clipbench.task import TASK, Task

LONGEST = 3600.0  # seconds that the timings of one task may take


def time_methods(campaign: Campaign) -> None:
    """Time every method, unless this environment's timings are stored."""
    stored = campaign.store.read("throughput")
    same = (stored["environment"] == campaign.environment) & (
        stored["implementation"] == throughput.DEFAULT
    )
    same &= (stored["part"].fillna(throughput.STEP) == throughput.STEP) & (
        stored["threads"].fillna(1) == 1
    )
    timed = set(stored.loc[same, [*TASK, "optimizer", "clip"]].itertuples(index=False, name=None))
    # Whole benches: a clip that joins a study is timed beside its neighbours, not alone.
    trained = _cells_that_ran(campaign)
    wanted = [cell for cell in campaign.cells if campaign.options.only.meets(cell)]
    benches = throughput.benches([campaign.job(cell) for cell in wanted if cell.id in trained])
    benches = [bench for bench in benches if not {_method(job.cell) for job in bench} <= timed]
    tasks = [list(group) for _, group in groupby(benches, key=lambda bench: Task.of(bench[0].cell))]
    campaign.watcher.phase("throughput", len(tasks))
    _note_sharing(campaign)
    for task in tasks:
        work = Call(throughput.measure, (task,), f"the timing of {Task.of(task[0][0].cell).label}")
        try:
            setting = campaign.setting.of(task[0][0].cell)
            _keep(campaign, execute.call(campaign.executor, work, setting, LONGEST))
            campaign.counts.timed += len(task)
        except UsageError as error:  # the cells are there; the next run tries it again
            campaign.watcher.note(str(error))
        campaign.watcher.tick()


def _note_sharing(campaign: Campaign) -> None:
    """Tell of programs of others on the CUDA devices of this machine: ours run one at a time,
    alone.
    """
    if campaign.setting.device == "cuda" and not campaign.options.elsewhere:
        for card in seen(campaign.executor.cards.indices)[0]:
            if remark := cards.shared(card):
                campaign.watcher.note(remark)


def _method(cell: Cell) -> tuple[Any, ...]:
    return (*Task.of(cell), cell.optimizer.label, cell.clip.label)


def _cells_that_ran(campaign: Campaign) -> set[str]:
    """The identities of the cells that did not fail: what cannot be run cannot be timed."""
    cells = campaign.store.read("cells")
    return set(cells.loc[cells["status"] != Status.FAILED, "cell"])


def time_implementations(
    campaign: Campaign, sizes: Mapping[str, Any], implementations: Sequence[str]
) -> int:
    """The number of timed blocks; every implementation of every method is timed."""
    jobs = [campaign.job(cell) for cell in campaign.cells]
    surveys = throughput.surveys(jobs, sizes, implementations, execute.cores())
    campaign.watcher.phase("throughput", len(surveys))
    _note_sharing(campaign)
    blocks, refused = 0, set[str]()
    for one in surveys:
        work = Call(throughput.carry_out, (one,), "the timing of implementations")
        setting = replace(campaign.setting, threads=one.threads, device=one.device)
        rows, refusals = execute.call(campaign.executor, work, setting, LONGEST)
        for sentence in refusals:
            if sentence not in refused:
                campaign.watcher.note(sentence)
        refused.update(refusals)
        _keep(campaign, rows)
        blocks += len(rows)
        campaign.watcher.tick()
    return blocks


def _keep(campaign: Campaign, rows: Sequence[Mapping[str, Any]]) -> None:
    """Store timings. Their block numbers go on from the stored ones: blocks with the same number
    ran side by side.
    """
    if rows:
        stored = campaign.store.read("throughput")["block"]
        first = int(stored.max()) + 1 if len(stored) else 0
        filed = [
            {**row, "environment": campaign.environment, "block": first + row["block"]}
            for row in rows
        ]
        campaign.store.add_throughput(filed)
