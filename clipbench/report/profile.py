"""Which method is near the best most often? Performance profiles over the problems."""

from __future__ import annotations

import pandas as pd

from clipbench.analysis.profile import profiles
from clipbench.report.evidence import Evidence
from clipbench.report.frames import lines
from clipbench.report.parts import Section, Table
from clipbench.report.prose import paragraphs
from clipbench.report.words import percent

TITLE = "Which method is near the best most often?"
SHOWN = (1.0, 4.0, 16.0)  # margins


def section(evidence: Evidence) -> Section:
    """The share of the problems on which each method is near the best."""
    rows = profiles(evidence.levels, evidence.components, evidence.grade)
    if rows.empty:
        return Section("profile", TITLE, [])
    levels = evidence.levels[evidence.levels["grade"] == evidence.grade]
    levels = levels[levels["problem"].map(lambda name: bool(evidence.about([name])["margin"]))]
    panels = [
        {
            "title": evidence.short(str(optimizer)),
            "x": "margins behind the best",
            "y": "share of problems",
            "lines": [
                {
                    "clip": str(arm).partition(" + ")[2] or "none",
                    "x": list(mine["margins"]),
                    "y": list(mine["share"]),
                    "cells": evidence.behind(levels[levels["arm"] == arm])["cell"],
                }
                for arm, mine in of_one.groupby("arm", sort=False)
            ],
        }
        for optimizer, of_one in rows.groupby(rows["arm"].str.partition(" + ")[0], sort=True)
    ]
    caption = (
        "The share of the problems on which a method is at most so many margins behind the best."
    )
    shown = lines(evidence, panels, caption, "profile")
    table = Table(
        evidence.name("tables", "profile"),
        caption,
        ["method", *(f"within {at:g} δ" for at in SHOWN)],
        [
            [evidence.short(str(arm)), *(percent(_at(mine, at)) for at in SHOWN)]
            for arm, mine in rows.groupby("arm", sort=False)
        ],
        evidence.labelled(rows),
    )
    words = paragraphs("profile", problems=int(rows["problems"].max()), arms=rows["arm"].nunique())
    return Section("profile", TITLE, [*words, *shown, table])


def _at(mine: pd.DataFrame, margins: float) -> float:
    """The share within so many margins."""
    reached = mine[mine["margins"] <= margins * (1 + 1e-9)]["share"]
    return float(reached.iloc[-1]) if len(reached) else float("nan")
