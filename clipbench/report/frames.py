"""Shared by all sections: a figure with a caption, a heading if there are several tasks, and how
much a page shows.

Shared by the sections. It knows none of them, and not how a figure is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from clipbench.analysis.cells import counts
from clipbench.figures import Figure, headline
from clipbench.figures.panels import draw
from clipbench.figures.style import arm_colours
from clipbench.report.evidence import Evidence
from clipbench.report.parts import Fold, Heading, Part, Picture, Table
from clipbench.report.words import census, metric_words
from clipbench.task import Task

MAX_ARMS = 36  # above it, curves and heat maps show the named methods only
SEEN = 12  # rows of a table that stands open
LISTED = 40  # rows of a long list on the page; its CSV has them all


def picture(
    evidence: Evidence, draw: Callable[[], Figure], caption: str, cells: pd.DataFrame, *name: str
) -> Picture:
    """A figure with its caption, which counts the cells it draws and how they ended."""
    counted = f"{caption} Drawn from {census(counts(cells))}; study {evidence.store.study_hash}."
    return Picture(evidence.name("figures", *name), counted, caption, draw)


def timed_picture(
    evidence: Evidence,
    draw_timings: Callable[[pd.DataFrame, str], Figure],
    timings: pd.DataFrame,
    caption: str,
    *name: str,
    note: str = "",
) -> Picture:
    """A figure of timings with its caption, which counts the blocks it draws; ``note`` is not
    part of the alternative text.
    """
    study = f"study {evidence.store.study_hash}"
    blocks = (
        f"{int(timings['blocks'].sum()):,} timed blocks, {int(timings['invalid'].sum()):,} invalid"
    )
    full = (
        f"{caption}{note} Drawn from {blocks} and left out; no training cell, so none diverged "
        f"and none failed; {study}."
    )
    return Picture(
        evidence.name("figures", *name),
        full,
        caption,
        partial(draw_timings, timings, f"{study} · {blocks}"),
    )


def headed(evidence: Evidence, task: Task, parts: Sequence[Part]) -> list[Part]:
    """The parts of one task, under its name if the study has several."""
    return (
        [Heading(evidence.labels[task]), *parts]
        if len(evidence.tasks) > 1 and parts
        else list(parts)
    )


def drawable(evidence: Evidence, task: Task) -> pd.DataFrame:
    """The arms of one task; if a figure has no room for all of them, those of the named methods."""
    arms = evidence.of(evidence.arms, task)
    return arms if len(arms) <= MAX_ARMS else arms[arms["arm"].isin(evidence.methods.values())]


def gap_panels(evidence: Evidence, gaps: pd.DataFrame, words: str) -> list[dict[str, Any]]:
    """A panel for each task that has differences, as the headline's figure takes them.

    :param words: what a difference is, with ``{}`` for the metric.
    """
    return [
        {
            "task": task,
            "title": evidence.labels[task],
            "label": words.format(metric_words(evidence.about(task))),
        }
        for task in evidence.tasks
        if len(evidence.of(gaps, task))
    ]


def pairs_picture(
    evidence: Evidence, pairs: pd.DataFrame, words: str, caption: str, name: str
) -> Picture:
    """The differences of pairs of arms that have no verdict, a panel for each task.

    :param words: what a difference is, with ``{}`` for the metric.
    """
    drawn = pairs.assign(
        label=[evidence.short(arm) for arm in pairs["arm"]],
        margin=[
            evidence.about(Task.of(row)).get("margin") or np.nan for row in pairs.to_dict("records")
        ],
        **dict.fromkeys(("family_low", "family_high", "last"), np.nan),
    )
    cells = evidence.behind(pairs)
    panels, colours = gap_panels(evidence, pairs, words), arm_colours(evidence.arms)
    figure = partial(headline.draw, drawn, panels, colours, evidence.footer(cells))
    return picture(evidence, figure, caption, cells, name)


def foldable(table: Table) -> Table | Fold:
    """The table, folded if it is long."""
    many = len(table.rows) > SEEN
    return Fold(f"The table: {len(table.rows)} rows", [table]) if many else table


def lines(
    evidence: Evidence,
    panels: Sequence[dict[str, Any]],
    caption: str,
    *name: str,
) -> list[Picture]:
    """The figure of these panels, each line with the ``cells`` that it is made of; none if there
    is no panel.
    """
    cells = evidence.cells_of(
        cell for panel in panels for line in panel["lines"] for cell in line["cells"]
    )
    figure = partial(draw, panels, evidence.footer(cells))
    return [picture(evidence, figure, caption, cells, *name)] if panels else []


def by_optimizer(
    evidence: Evidence,
    line_of: Callable[[Task, str], dict[str, Any] | None],
    label_of: Callable[[Task], str],
    **look: Any,
) -> list[dict[str, Any]]:
    """A panel for each task and optimizer of the headline's schedule that has a line of a clip.

    :param line_of: what a panel draws of an arm; None if there is nothing.
    :param label_of: what the panel of a task has upwards.
    """
    panels = []
    for task in evidence.tasks:
        arms = evidence.of(evidence.arms, task)
        arms = arms[[evidence.of_headline(arm) for arm in arms["arm"]]]
        for optimizer in dict.fromkeys(arms["optimizer_label"]):
            lines = [
                {**line, "clip": row["clip_label"]}
                for row in arms[arms["optimizer_label"] == optimizer].to_dict("records")
                if (line := line_of(task, row["arm"])) is not None
            ]
            if any(line["clip"] != "none" for line in lines):
                title = f"{evidence.labels[task]}, {evidence.short(str(optimizer))}"
                panels.append({"title": title, "y": label_of(task), "lines": lines, **look})
    return panels
