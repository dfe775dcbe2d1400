"""The section on how often a clip fires."""

from __future__ import annotations

from functools import partial

from clipbench.analysis.fired import fired
from clipbench.figures.fired import draw
from clipbench.report.evidence import Evidence
from clipbench.report.frames import foldable, headed, picture
from clipbench.report.parts import Part, Section, Table
from clipbench.report.prose import paragraphs
from clipbench.report.words import fixed, percent, threshold_words
from clipbench.schema import Role
from clipbench.task import Task, Threshold

ALWAYS = 0.5  # of the steps: a clip that fires more often mostly sets their length
TITLE = "How often does it fire?"


def section(evidence: Evidence) -> Section:
    """Share of steps clipped."""
    shares = fired(evidence.cells)
    parts: list[Part] = []
    for task in evidence.tasks:
        mine, arms = evidence.of(shares, task), evidence.of(evidence.arms, task)
        mine = mine[mine.groupby("arm")["threshold"].transform("nunique") > 1]
        if mine.empty:  # one threshold is told by the table
            continue
        cells = evidence.of(evidence.cells, task)
        cells = cells[(cells["role"] == Role.SELECT) & cells["arm"].isin(mine["arm"])]
        figure = partial(draw, mine, evidence.shown(arms), evidence.footer(cells))
        caption = (
            f"{evidence.labels[task]}: share of steps in which the clip altered at least one "
            "element, by threshold: the median over learning rates and selection seeds; the bar "
            "is the whole range. At 0 the clip does nothing, at 1 it sets the length of every "
            "step."
        )
        table = Table(
            evidence.name("tables", "fired", evidence.labels[task]),
            "",
            [],
            [],
            mine.reset_index(drop=True),
        )
        parts += headed(
            evidence,
            task,
            [picture(evidence, figure, caption, cells, "fired", evidence.labels[task]), table],
        )
    return Section("fired", TITLE, [*_told(evidence), *parts])


def _told(evidence: Evidence) -> list[Part]:
    """What the clips that are compared leave of the gradient, at the setting that is chosen."""
    rows = evidence.answers[evidence.answers["fired"].notna()]
    if rows.empty:
        return []
    always = rows[rows["fired"] > ALWAYS]
    table = Table(
        evidence.name("tables", "kept"),
        "At the setting that is chosen most often. Kept: the length of the gradient after the clip "
        "over that before; cosine: between both; medians over the steps of a run.",
        ["problem", "clip", "threshold", "fired", "kept", "cosine"],
        [
            [
                evidence.labels[Task.of(row)],
                evidence.short(row["arm"]),
                threshold_words(Threshold.of(row)),
                percent(row["fired"]),
                percent(row["kept"]),
                fixed(row["cosine"], 3),
            ]
            for row in rows.to_dict("records")
        ],
        rows,
        words=3,
    )
    told = paragraphs(
        "fired",
        rows=len(rows),
        always=len(always),
        least=percent(float(rows["fired"].min())),
        most=percent(float(rows["fired"].max())),
    )
    return [*told, foldable(table)]
