"""The section on published results, run again."""

from __future__ import annotations

from functools import partial

import pandas as pd

from clipbench.analysis.claims import Setting
from clipbench.analysis.published import behind, published
from clipbench.figures.published import draw
from clipbench.report.evidence import Evidence
from clipbench.report.frames import picture
from clipbench.report.parts import Section, Table, Text
from clipbench.report.words import listed, plural


def section(evidence: Evidence) -> Section:
    """What papers say, beside what the same settings gave here."""
    rows, title = published(evidence.cells, evidence.components), "Published results, run again"
    if rows.empty:
        return Section("published", title, [])
    claims = rows.drop_duplicates("claim")
    cells = evidence.cells_of(behind(evidence.cells))
    figure = partial(draw, rows, evidence.footer(cells))
    caption = (
        "What was seen (bars, with their value), and where it must lie (grey); some claims ask "
        "for a relation between their bars instead. A share is of the seeds; steps are the "
        "fewest of any run; a peak is the largest loss of the last half of the steps over the "
        "median there, of the worst seed or of the one in the middle; f − f* (1e-16 at most if "
        "there is none) and an accuracy are means over the seeds."
    )
    shown = picture(evidence, figure, caption, cells, "published")
    sides = {claim: one.to_dict("records") for claim, one in rows.groupby("claim")}
    table = [
        [
            str(row["claim"]),
            str(row["source"]),
            str(row["setting"]),
            str(row["says"]),
            str(row["wanted"]),
            "; ".join(
                f"{side['side']}: {side['seen']:.4g} ({side['n']})" for side in sides[row["claim"]]
            ),
            "yes" if row["holds"] else "NO" if row["complete"] else "lacks runs",
        ]
        for row in claims.to_dict("records")
    ]
    head = [
        "claim",
        "source",
        "setting",
        "what the paper says",
        "what must hold here",
        "seen (runs)",
        "holds",
    ]
    told = Table(
        evidence.name("tables", "published"),
        "Every claim with its source, and whose setting it is.",
        head,
        table,
        rows,
        words=7,
    )
    return Section("published", title, [Text(opening(claims)), shown, told])


def opening(claims: pd.DataFrame) -> str:
    """How many claims hold, and how to read them.

    :param claims: a row per claim, of `analysis.published.published`.
    """
    held, complete = int(claims["holds"].sum()), int(claims["complete"].sum())
    rest, counted = len(claims) - complete, _by_setting(claims)
    return (
        f"**{held} of {plural(complete, 'claim')}** hold "
        f"here{f'; {rest} more lack runs, and are not judged' if rest else ''}"
        f"{': ' if counted else ''}{counted}. "
        "The column *setting* says which is which. The bounds were set before this "
        "run, and what does not hold stays. Which unclipped starts survive a cliff depends on "
        "rounding, so that its bounds leave room. A giant of heavy-tailed noise is rare: those "
        "claims are judged by the worst of ten seeds, and the paper shows curves of single runs; "
        "the seed in the middle is a row of its own. On wrong labels, a clip on the norm of each "
        "example's gradient is shown beside: examples differ in length seventeenfold, so that it "
        "is another method than the huberised loss, and it does mend them."
    )


def _by_setting(claims: pd.DataFrame) -> str:
    """How many claims of each setting hold, of those that have their runs."""
    ran = claims[claims["complete"]]
    named = {
        Setting.PAPER: "at the paper's own setting",
        Setting.OURS: "of a paper's claims at a setting of ours",
        Setting.CHECK: "of our own checks",
    }
    return listed(
        [
            f"{int(some['holds'].sum())} of {len(some)} {words}"
            for setting, words in named.items()
            if len(some := ran[ran["setting"] == setting])
        ]
    )
