"""The report phase: on fresh seeds the chosen settings, all those that are compared at the same
number of tries, and on some of the seeds those among which a threshold is tuned.
"""

from __future__ import annotations

import math
from dataclasses import replace

from clipbench import selection
from clipbench.protocol.campaign import Campaign
from clipbench.protocol.plans import partners
from clipbench.protocol.select import scores
from clipbench.schema import Role
from clipbench.task import FIRST_REPORT_SEED, Threshold


def report(campaign: Campaign) -> None:
    """Train every arm at the settings of every reading."""
    protocol = campaign.store.page("plan")["protocol"]
    seeds = {problem: count["report"] for problem, count in protocol["seeds"].items()}
    scored = scores(campaign)
    choices = selection.choose(scored)
    rows = selection.readings(choices, seeds, protocol["untuned"], protocol["untuned"]["arms"])
    cells = [
        replace(campaign.at(row), seed=int(row["seed"]), role=Role.REPORT)
        for row in rows.to_dict("records")
    ]
    first, unclipped = FIRST_REPORT_SEED, partners(campaign.plan.templates)
    for settings, most in (
        (selection.same_tries(scored, protocol["percentile"]), math.inf),
        (selection.several(scored, unclipped), protocol["budget"]),
    ):
        for row in settings.to_dict("records"):
            one = campaign.at(row)
            cells += [
                replace(one, seed=seed, role=Role.REPORT)
                for seed in range(first, first + int(min(seeds[one.problem], most)))
            ]
    for row in selection.lowered(choices, unclipped).to_dict("records"):
        one = campaign.at({**row, "arm": row["partner"], **Threshold().columns})
        cells += [
            replace(one, seed=seed, role=Role.REPORT)
            for seed in range(first, first + seeds[one.problem])
        ]
    campaign.train("report", list({cell.id: cell for cell in cells}.values()))
