"""The report phase: the chosen settings on fresh seeds."""

from __future__ import annotations

from dataclasses import replace

from clipbench import selection
from clipbench.protocol.campaign import Campaign
from clipbench.protocol.select import scores
from clipbench.schema import Role


def report(campaign: Campaign) -> None:
    """Train every arm at the settings of every reading."""
    protocol = campaign.store.page("plan")["protocol"]
    seeds = {problem: count["report"] for problem, count in protocol["seeds"].items()}
    rows = selection.readings(
        scores(campaign), seeds, protocol["untuned"], protocol["untuned"]["arms"]
    )
    cells = (
        replace(campaign.at(row), seed=int(row["seed"]), role=Role.REPORT)
        for row in rows.to_dict("records")
    )
    campaign.train("report", list({cell.id: cell for cell in cells}.values()))
