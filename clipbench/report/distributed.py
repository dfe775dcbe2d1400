"""On several processes, what do the mistakes of a clip cost? Each beside the right clip."""

from __future__ import annotations

import pandas as pd

from clipbench.analysis.distributed import mistaken
from clipbench.report.evidence import Evidence
from clipbench.report.frames import foldable, pairs_picture
from clipbench.report.parts import Section, Table
from clipbench.report.prose import paragraphs
from clipbench.report.words import gap_places, metric_words, signed_gap

TITLE = "On several processes: what do mistakes cost?"
MISTAKES = {"rank": "before the all-reduce", "shard": "by the norm of a shard"}


def section(evidence: Evidence) -> Section:
    """Each mistake beside the same clip as it should be."""
    pairs = mistaken(evidence.axes, evidence.arms, evidence.grade)
    if pairs.empty:
        return Section("distributed", TITLE, [])
    caption = (
        "Each mistake against the same clip of the whole gradient, at the same threshold: negative "
        "if the mistake costs something, with a 95 % interval. The band is the margin."
    )
    count = {
        on: {
            "pairs": int((pairs["on"] == on).sum()),
            "worse": int(((pairs["on"] == on) & (pairs["high"] < 0)).sum()),
            "better": int(((pairs["on"] == on) & (pairs["low"] > 0)).sum()),
        }
        for on in MISTAKES
    }
    told = paragraphs("distributed", **count, seeds=int(pairs["n"].max()))
    return Section(
        "distributed",
        TITLE,
        [
            *told,
            pairs_picture(evidence, pairs, "mistake over right, {}", caption, "distributed"),
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
                evidence.short(row["partner"]),
                MISTAKES[row["on"]],
                str(row["ranks"]),
                metric_words(evidence.about(task)),
                signed_gap(row, places),
                str(row["n"]),
            ]
            for row in mine.to_dict("records")
        ]
    head = ["problem", "clip", "mistake", "processes", "metric", "over right [95 %]", "seeds"]
    caption = "Negative: the mistake costs something. No row is corrected for the others."
    data = evidence.labelled(pairs)
    return Table(evidence.name("tables", "distributed"), caption, head, rows, data, words=5)
