"""The selection phase: the whole grid on selection seeds, and the scores that come of it."""

from __future__ import annotations

from typing import Any

from clipbench import selection
from clipbench.protocol.campaign import Campaign
from clipbench.task import ARM


def select(campaign: Campaign) -> None:
    """Train the study's own grid."""
    campaign.train("select", campaign.plan.cells)


def scores(campaign: Campaign) -> Any:
    """The selection scores of the cells this study asks for now, but for arms that lost a cell
    from outside, or that lack one because this run leaves them out.
    """
    _say_lost(campaign)
    cells = selection.planned(campaign.stored(), campaign.store.page("plan")["cells"])
    stored = set(cells["cell"])
    lacking = {arm for cell, arm in campaign.asked.items() if cell not in stored}
    unknown = {*campaign.lost, *lacking}
    whole = [arm not in unknown for arm in cells[ARM].itertuples(index=False, name=None)]
    return selection.score(cells[whole])


def _say_lost(campaign: Campaign) -> None:
    """Of what no setting is to blame for, nothing can be chosen."""
    for arm, count in campaign.lost.items():
        if arm not in campaign.told:
            campaign.told.add(arm)
            cells = (
                f"{count} cells of {arm[-1]} on {arm[0]} were"
                if count > 1
                else f"a cell of {arm[-1]} on {arm[0]} was"
            )
            campaign.watcher.note(
                f"{cells} killed, took too long or ran out of memory: nothing is chosen for this "
                f"arm, and `run` tries again."
            )
