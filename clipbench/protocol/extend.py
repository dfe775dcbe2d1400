"""The extend phase: if a choice lies at an edge of its axis, two half-decades beyond it are
trained, once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from clipbench import selection
from clipbench.cell import Cell
from clipbench.errors import UsageError
from clipbench.protocol.campaign import Campaign
from clipbench.protocol.select import scores
from clipbench.task import arm_of


def extend(campaign: Campaign) -> None:
    """Train the cells beyond the edges, unless the study says otherwise."""
    campaign.train(
        "extend", [*_cells_beyond(campaign)] if campaign.study.document.run.extend else []
    )


def _cells_beyond(campaign: Campaign) -> Iterator[Cell]:
    """The cells beyond an edge, as far as a threshold's own range goes: no percentile is above 100.

    If no seed is reported on, nothing is chosen.
    """
    for row in selection.extend(scores(campaign)).to_dict("records"):
        count = campaign.study.seeds(campaign.templates[arm_of(row)].workload.name)
        if not count.report:
            continue
        try:
            cell = campaign.at(row)
        except UsageError:
            continue
        yield from (replace(cell, seed=seed, extended=True) for seed in range(count.select))
