"""The first phase: pilots, from which relative thresholds become numbers."""

from __future__ import annotations

from typing import Any

from clipbench import engines, execute, registry
from clipbench.cell import Cell
from clipbench.engines.pilot import MEDIAN
from clipbench.execute import Call
from clipbench.protocol.campaign import Campaign
from clipbench.protocol.plans import gauge_key, pilot_key
from clipbench.task import Task

# key → registered name, settings other than the threshold, which percentile of its size, and
# whether a cell needs it
Clips = dict[str, tuple[str, dict[str, Any], float, bool]]


def calibrate(campaign: Campaign) -> None:
    """Run the pilots of relative thresholds that are not stored, and store them before the first
    shard.

    :raises UsageError: a pilot meets gradients whose median size is zero or not finite.
    """
    page = campaign.store.page("calibration")
    campaign.pilots = page.setdefault("pilots", {})
    wanted = {
        pilot: one
        for pilot, one in _gauges(campaign).items()
        if {key for key, (*_, needed) in one[1].items() if needed}
        - set(campaign.pilots.get(pilot, {}))
    }
    campaign.watcher.phase("calibrate", len(wanted))
    # In a worker of one thread, as the cells are: the thread count changes bits.
    works = {
        pilot: (
            Call(_pilot, one, f"the pilot of {Task.of(one[0]).label}"),
            campaign.setting.of(one[0]),
        )
        for pilot, one in wanted.items()
    }
    for pilot, sizes in execute.calls(campaign.executor, works, campaign.options.patience):
        if isinstance(sizes, Exception):
            raise sizes
        campaign.pilots[pilot] = campaign.pilots.get(pilot, {}) | sizes
        campaign.watcher.tick()
    campaign.store.write_page("calibration", page)


def _gauges(campaign: Campaign) -> dict[str, tuple[Cell, Clips]]:
    """Pilot → a cell of its task, and the clips whose threshold it gives; of each the median as
    well, so that a reader can tell a threshold as a multiple of it.
    """
    gauges: dict[str, tuple[Cell, Clips]] = {}
    for cell in campaign.cells:
        if cell.needs_pilot:
            clips = gauges.setdefault(pilot_key(cell), (cell, {}))[1]
            for percentile in (None, cell.percentile):
                key = gauge_key(cell, percentile)
                needed = percentile == cell.percentile or (key in clips and clips[key][-1])
                asked = MEDIAN if percentile is None else percentile
                clips[key] = (cell.clip.name, cell.clip.own, asked, needed)
    return gauges


def _pilot(cell: Cell, clips: Clips) -> dict[str, float]:
    """A pilot in its worker: the clips are built there, with a threshold that nothing reads."""
    built = {}
    for key, (name, settings, *_) in clips.items():
        threshold = registry.threshold_field(registry.find("clip", name))
        built[key] = registry.build("clip", name, {**settings, str(threshold): 1.0})
    return engines.pilot(
        cell,
        built,
        {key: percentile for key, (_, _, percentile, _) in clips.items()},
        {key for key, (*_, needed) in clips.items() if needed},
    )
