"""Stable learning rates: a part of the section on how hot one may be."""

from __future__ import annotations

import math
from functools import partial

import pandas as pd

from clipbench.analysis.grid import grid
from clipbench.analysis.stable import effective, notes, stable
from clipbench.figures.stable import draw
from clipbench.report.evidence import Evidence
from clipbench.report.frames import headed, picture
from clipbench.report.parts import List, Part, Table, Text
from clipbench.report.words import DASH, fixed, listed, seeds_note, short, threshold_words
from clipbench.schema import Role
from clipbench.task import Task, Threshold


def subsection(evidence: Evidence) -> list[Part]:
    """Which learning rates are stable; for the section on how hot one may be."""
    ranges = stable(evidence.cells)
    if ranges.empty:
        return []
    words = (
        "A learning rate is stable for a method where every selection seed learned: none "
        "diverged, collapsed or stalled. For a clip the range is given twice: with the best "
        "threshold at each learning rate, and with the one threshold whose range is widest, "
        "which is what a user who fixes a threshold gets."
    )
    parts: list[Part] = [Text(words)]
    told = notes(evidence.arms)
    if told:
        parts.append(List([Text(note) for note in told]))
    for task in evidence.tasks:
        mine, arms = evidence.of(ranges, task), evidence.of(evidence.arms, task)
        if mine.empty:
            continue
        cells = evidence.of(evidence.cells, task)
        cells = cells[cells["role"] == Role.SELECT]
        figure = partial(
            draw, mine, evidence.shown(arms), effective(mine, arms), evidence.footer(cells)
        )
        about, seeds = evidence.about(task), sorted(set(grid(cells, evidence.components)["seeds"]))
        every = (
            f"all {listed([str(count) for count in seeds])} selection seeds"
            if seeds != [1]
            else "the one selection seed"
        )
        every += f" ({seeds_note(1, about)})" if seeds == [1] and about["deterministic"] else ""
        caption = (
            f"{evidence.labels[task]}: learning rates at which {every} learned. Ticks are "
            f"the values tried."
        )
        if len(effective(mine, arms)):
            caption += (
                " The thin line below a momentum bar is the same range as lr/(1 − μ), the "
                "size of its steps in a steady direction."
            )
        parts += headed(
            evidence,
            task,
            [
                picture(evidence, figure, caption, cells, "stable", evidence.labels[task]),
                _table(evidence, task, mine, arms),
            ],
        )
    return parts


def _table(evidence: Evidence, task: Task, mine: pd.DataFrame, arms: pd.DataFrame) -> Table:
    rows = []
    for arm in evidence.ordered(arms):
        for one in mine[mine["arm"] == arm].to_dict("records"):
            threshold = "" if (of := Threshold.of(one)).absent else f" of {threshold_words(of)}"
            low, high = short(one["low"]), short(one["high"])
            rows.append(
                [
                    evidence.short(arm),
                    one["basis"] + threshold,
                    DASH if math.isnan(one["low"]) else f"{'≤ ' if one['below'] else ''}{low}",
                    DASH if math.isnan(one["high"]) else f"{'≥ ' if one['above'] else ''}{high}",
                    fixed(max(one["decades"], 0.0), 1) if not math.isnan(one["low"]) else DASH,
                    f"{len(one['lrs'])} of {len(one['tried'])}",
                ]
            )
    data = mine.assign(
        lrs=[" ".join(f"{lr:g}" for lr in lrs) for lrs in mine["lrs"]],
        tried=[" ".join(f"{lr:g}" for lr in tried) for tried in mine["tried"]],
    )
    caption = f"{evidence.labels[task]}: the longest unbroken stretch of stable learning rates. "
    caption += "≤ and ≥: it reaches the end of what was tried."
    head = ["arm", "threshold", "from", "to", "decades", "stable lrs"]
    return Table(
        evidence.name("tables", "stable", evidence.labels[task]), caption, head, rows, data, words=2
    )
