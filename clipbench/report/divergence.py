"""Does clipping prevent divergence? How many runs are lost with a clip and without, and what a
divergence looks like.
"""

from __future__ import annotations

import math
from functools import partial

import pandas as pd

from clipbench.analysis.divergence import AROUND, anatomy, first_diverged
from clipbench.figures.divergence import draw
from clipbench.report import events
from clipbench.report.evidence import Evidence
from clipbench.report.frames import foldable, picture
from clipbench.report.parts import Fold, Part, Section, Table
from clipbench.report.prose import paragraphs
from clipbench.report.words import Row, percent, signed
from clipbench.task import Task

TITLE = "Does clipping prevent divergence?"


def section(evidence: Evidence) -> Section:
    """Whether fewer runs are lost with a clip."""
    pairs = evidence.prevented
    parts: list[Part] = [*_told(pairs)] if len(pairs) else []
    first = first_diverged(evidence.cells)
    shown = anatomy(evidence.curves_of(first["cell"], ["loss", "grad_norm"]), first)
    if len(shown):
        cells = evidence.cells[evidence.cells["cell"].isin(shown["cell"])]
        panels = [
            {
                "title": f"{evidence.labels[Task.of(row)]}, {evidence.short(row['arm'])}, "
                f"lr {row['lr']:g}, seed {row['seed']}",
                "rows": rows,
                "at": row["diverged_at"],
            }
            for _, rows in shown.groupby("cell", sort=False)
            for row in rows.head(1).to_dict("records")
        ]
        caption = (
            f"A divergence, from {AROUND} steps before it on: the training loss and the norm of "
            "the raw gradient. The dotted line is the step of the event."
        )
        figure = partial(draw, panels, evidence.footer(cells))
        parts.append(picture(evidence, figure, caption, cells, "divergence"))
    if len(pairs):
        parts.append(foldable(_table(evidence, pairs)))
    folded = Fold("How all runs ended, and every event", events.subsection(evidence))
    return Section("divergence", TITLE, [*parts, folded])


def _told(pairs: pd.DataFrame) -> list[Part]:
    return [
        *paragraphs(
            "divergence",
            pairs=len(pairs),
            fewer=int((pairs["low"] > 0).sum()),
            more=int((pairs["high"] < 0).sum()),
            diverged=percent(float(pairs["diverged"].mean())),
            diverged_without=percent(float(pairs["diverged_without"].mean())),
            lost=percent(float(pairs["lost"].mean())),
            lost_without=percent(float(pairs["lost_without"].mean())),
            seeds=int(pairs["n"].max()),
        )
    ]


def _table(evidence: Evidence, pairs: pd.DataFrame) -> Table:
    rows = [
        [
            evidence.labels[Task.of(row)],
            evidence.short(row["arm"]),
            f"{percent(row['diverged_without'])} → {percent(row['diverged'])}",
            f"{percent(row['lost_without'])} → {percent(row['lost'])}",
            points(row, "fewer"),
            f"{row['n']} × {row['tries']}",
        ]
        for row in pairs.to_dict("records")
    ]
    head = ["problem", "clip", "diverged", "lost", "fewer lost, points [95 %]", "seeds × lrs"]
    data = evidence.labelled(pairs)
    caption = (
        "Runs along all learning rates of an optimizer, without the clip → with it. Lost: "
        "diverged, collapsed or stalled."
    )
    return Table(evidence.name("tables", "divergence"), caption, head, rows, data, words=2)


def points(row: Row, name: str) -> str:
    """A difference of shares, in percentage points with its interval."""
    values = [100 * row[one] for one in (name, "low", "high")]
    shown = [signed(value, 0) for value in values]
    return shown[0] if math.isnan(values[1]) else f"{shown[0]} [{shown[1]}, {shown[2]}]"
