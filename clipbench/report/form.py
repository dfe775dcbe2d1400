"""Value or norm? The two clips of one optimizer beside each other."""

from __future__ import annotations

import pandas as pd

from clipbench.analysis.form import norm_over_value
from clipbench.report.evidence import Evidence
from clipbench.report.frames import foldable, pairs_picture
from clipbench.report.parts import Section, Table
from clipbench.report.prose import paragraphs
from clipbench.report.words import gap_places, metric_words, signed_gap

TITLE = "Value or norm?"


def section(evidence: Evidence) -> Section:
    """The norm clip against the value clip."""
    pairs = norm_over_value(evidence.axes, evidence.arms, evidence.grade)
    if pairs.empty:
        return Section("form", TITLE, [])
    caption = (
        "The norm clip against the value clip of the same optimizer, each at the threshold fixed "
        "in advance: positive if norm is better, with a 95 % interval. The band is the margin."
    )
    return Section(
        "form",
        TITLE,
        [
            *paragraphs(
                "form",
                pairs=len(pairs),
                norm=int((pairs["low"] > 0).sum()),
                value=int((pairs["high"] < 0).sum()),
                seeds=int(pairs["n"].max()),
            ),
            pairs_picture(evidence, pairs, "norm over value, {}", caption, "form"),
            foldable(_table(evidence, pairs)),
        ],
    )


def _table(evidence: Evidence, pairs: pd.DataFrame) -> Table:
    rows = []
    for task in evidence.tasks:
        mine = evidence.of(pairs, task)
        places = gap_places(mine)
        rows += [
            [
                evidence.labels[task],
                evidence.short(row["arm"]).partition(" + ")[0],
                metric_words(evidence.about(task)),
                signed_gap(row, places),
                str(row["n"]),
            ]
            for row in mine.to_dict("records")
        ]
    head = ["problem", "optimizer", "metric", "norm over value [95 %]", "seeds"]
    data = evidence.labelled(pairs)
    caption = "Positive: the norm clip is better. No row is corrected for the others."
    return Table(evidence.name("tables", "form"), caption, head, rows, data, words=3)
