"""The sections that a figure carries: curves, heat maps, stable learning rates, shares of steps clipped."""

from __future__ import annotations

import math

import pandas as pd

from clipbench import analysis, figures
from clipbench.report.evidence import Evidence
from clipbench.report.frames import headed, picture
from clipbench.report.parts import List, Part, Section, Table, Text
from clipbench.report.words import (
    DASH,
    fixed,
    listed,
    metric_note,
    metric_words,
    seeds_note,
    short,
    threshold_words,
)
from clipbench.task import Task, Threshold

MAX_ARMS = 36  # above it, curves and heat maps show the named methods only


def curves(evidence: Evidence) -> Section:
    """Loss curves of the report seeds."""
    if evidence.environment.get("curves") == "none":
        lacking = (
            "This copy of the results keeps no curves, and so lacks these figures: the median loss of every method, step by step."
        )
        return Section(
            "curves", "Loss curves", [Text(f"{lacking} `clipbench run` with `--curves report` in a new folder draws them.")]
        )
    recorded = evidence.store.read("curves")
    lines = analysis.curves(recorded, evidence.drawn, evidence.components)
    parts: list[Part] = []
    for task in evidence.tasks:
        mine, arms = evidence.of(lines, task), _drawable(evidence, task)
        mine = mine[mine["arm"].isin(arms["arm"])]
        if mine.empty:
            continue
        about = evidence.about(task)
        known = about["optimum"] is not None
        label = "training loss above the optimum" if known else "training loss"
        reference = about["reference_loss"]
        line = reference - (about["optimum"] or 0.0) if reference is not None else None
        chosen = _chosen(evidence, task)
        cells = evidence.cells[evidence.cells["cell"].isin(set(mine["cell"]))]
        figure = figures.curves(mine, arms, chosen, label, line, evidence.footer(cells))
        caption = (
            f"{evidence.labels[task]}: {label} of every report seed (thin) at each method's chosen setting, and their median "
            f"(thick; a diverged seed "
            f"counts as infinite). A cross marks where a run diverged; the dotted line is the loss of the best constant "
            f"prediction. "
            f"Each point is the median of a stretch of steps."
        )
        parts += headed(evidence, task, [picture(evidence, figure, caption, cells, "curves", evidence.labels[task])])
    return Section("curves", "Loss curves", parts)


def _drawable(evidence: Evidence, task: Task) -> pd.DataFrame:
    arms = evidence.of(evidence.arms, task)
    return arms if len(arms) <= MAX_ARMS else arms[arms["arm"].isin(evidence.methods.values())]


def _chosen(evidence: Evidence, task: Task) -> pd.DataFrame:
    """The choice of every arm, known from the selection phase alone."""
    return evidence.of(evidence.choices, task)


def heat(evidence: Evidence) -> Section:
    """The grid as heat maps."""
    settings = analysis.grid(evidence.cells, evidence.components)
    parts: list[Part] = []
    for task in evidence.tasks:
        mine, arms, about = evidence.of(settings, task), _drawable(evidence, task), evidence.about(task)
        if mine.empty:
            continue
        cells = evidence.of(evidence.cells, task)
        cells = cells[(cells["role"] == "select") & cells["arm"].isin(arms["arm"])]
        shares = about["success"] is not None
        measure = metric_note(about) if shares else f"{metric_words(about)}, mean over seeds"
        figure = figures.heat(mine, arms, _chosen(evidence, task), measure, about["higher_is_better"], evidence.footer(cells))
        caption = (
            f"{evidence.labels[task]}: {measure} after the last step, on selection seeds, over learning rate × threshold (× is a "
            f"multiple of the median size of the "
            f"raw gradient). D, C, S, F: seeds that diverged, collapsed, stalled, failed, with their number unless all did; "
            f"?: seeds that ran but have no value. {_grey(shares)} "
            f"The red frame is the setting that was chosen, by validation loss."
        )
        table = Table(
            evidence.name("tables", "grid", evidence.labels[task]), "", [], [], mine.reset_index(drop=True)
        )  # too long for the page: its CSV is the table
        parts += headed(evidence, task, [picture(evidence, figure, caption, cells, "heat", evidence.labels[task]), table])
    if parts:
        parts.insert(0, Text("Every setting of the selection phase: how good it was, and how its seeds ended."))
    return Section("grid", "Learning rate × threshold", parts)


def _grey(shares: bool) -> str:
    if shares:
        return "A diverged seed did not succeed; a failed one, or one with no value, is left out of the share."
    return "Grey where one diverged: a mean over the survivors would flatter it."


def stable(evidence: Evidence) -> Section:
    """Which learning rates are stable."""
    ranges = analysis.stable(evidence.cells)
    if ranges.empty:
        return Section("stable", "Stable learning rates", [])
    words = (
        "A learning rate is stable for a method where every selection seed learned: none diverged, collapsed or stalled. For "
        "a clip the range is given twice: with "
        "the best threshold at each learning rate, and with the one threshold whose range is widest, which is what a user "
        "who fixes a threshold gets."
    )
    parts: list[Part] = [Text(words)]
    notes = analysis.notes(evidence.arms)
    if notes:
        parts.append(List([Text(note) for note in notes]))
    for task in evidence.tasks:
        mine, arms = evidence.of(ranges, task), evidence.of(evidence.arms, task)
        if mine.empty:
            continue
        cells = evidence.of(evidence.cells, task)
        cells = cells[cells["role"] == "select"]
        figure = figures.stable(mine, arms, analysis.effective(mine, arms), evidence.footer(cells))
        about, seeds = evidence.about(task), sorted(set(analysis.grid(cells, evidence.components)["seeds"]))
        every = f"all {listed([str(count) for count in seeds])} selection seeds" if seeds != [1] else "the one selection seed"
        every += f" ({seeds_note(1, about)})" if seeds == [1] and about["deterministic"] else ""
        caption = f"{evidence.labels[task]}: learning rates at which {every} learned. Ticks are the values tried."
        if len(analysis.effective(mine, arms)):
            caption += (
                " The thin line below a momentum bar is the same range as lr/(1 − μ), the size of its steps in a steady direction."
            )
        parts += headed(
            evidence,
            task,
            [picture(evidence, figure, caption, cells, "stable", evidence.labels[task]), _stable_table(evidence, task, mine, arms)],
        )
    return Section("stable", "Stable learning rates", parts)


def _stable_table(evidence: Evidence, task: Task, mine: pd.DataFrame, arms: pd.DataFrame) -> Table:
    rows = []
    for arm in figures.ordered(arms):
        for one in mine[mine["arm"] == arm].to_dict("records"):
            threshold = "" if (of := Threshold.of(one)).absent else f" of {threshold_words(of)}"
            low, high = short(one["low"]), short(one["high"])
            rows.append(
                [
                    arm,
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
    return Table(evidence.name("tables", "stable", evidence.labels[task]), caption, head, rows, data, words=2)


def fired(evidence: Evidence) -> Section:
    """Share of steps clipped."""
    shares = analysis.fired(evidence.cells)
    parts: list[Part] = []
    for task in evidence.tasks:
        mine, arms = evidence.of(shares, task), evidence.of(evidence.arms, task)
        if mine.empty:
            continue
        cells = evidence.of(evidence.cells, task)
        cells = cells[(cells["role"] == "select") & (cells["clip"] != "none")]
        figure = figures.fired(mine, arms, evidence.footer(cells))
        caption = (
            f"{evidence.labels[task]}: share of steps in which the clip altered at least one element, by threshold: the "
            f"median over learning rates and selection "
            f"seeds; the band is the whole range. At 0 the clip does nothing, at 1 it sets the length of every step."
        )
        table = Table(evidence.name("tables", "fired", evidence.labels[task]), "", [], [], mine.reset_index(drop=True))
        parts += headed(evidence, task, [picture(evidence, figure, caption, cells, "fired", evidence.labels[task]), table])
    return Section("fired", "How often a clip fires", parts)
