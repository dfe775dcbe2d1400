"""The page, section by section."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from clipbench import analysis, figures, schema, selection
from clipbench.report.evidence import Evidence
from clipbench.report.parts import Heading, List, Part, Picture, Section, Table, Text
from clipbench.report.words import (
    DASH,
    Row,
    between,
    census,
    decimals,
    fixed,
    gap_places,
    interval_of,
    listed,
    metric_words,
    number_of_bytes,
    percent,
    plural,
    seconds,
    short,
    signed,
)
from clipbench.selection import GROUP, TASK
from clipbench.statistics import Interval, share_interval

LISTED = 40  # rows of a long list on the page; its CSV has them all
MAX_ARMS = 36  # above it, curves and heat maps show the named methods only
READING_WORDS = {"equal": "equal budget", "all": "all settings", "untuned": "untuned"}
ENDS = ("diverged", "collapsed", "stalled", "failed", "missing")
END_HEAD = ("div.", "coll.", "stall.", "failed")

Task = tuple[Any, ...]


def subtitle(evidence: Evidence) -> str:
    """What the page stands on, in one line."""
    store, ended = evidence.store, analysis.counts(evidence.cells)
    return f"Study {store.name} ({store.study_hash}) · {census(ended)}"


def told(evidence: Evidence) -> list[Section]:
    """All sections that this store can fill."""
    if not len(evidence.cells):
        return [_not_run(evidence), _provenance(evidence)]
    parts = [
        _headline(evidence),
        _stable(evidence),
        _clips(evidence),
        _curves(evidence),
        _heat(evidence),
        _fired(evidence),
        _cost(evidence),
        _events(evidence),
        _not_run(evidence),
        _methods(evidence),
        _provenance(evidence),
    ]
    return [section for section in parts if section.parts]


def picture(evidence: Evidence, figure: Figure, caption: str, cells: pd.DataFrame, *name: str) -> Picture:
    """A figure with its caption, which counts the cells it draws and how they ended."""
    counted = f"{caption} Drawn from {census(analysis.counts(cells))}; study {evidence.store.study_hash}."
    return Picture(evidence.name("figures", *name), counted, caption, *figures.render(figure))


def _headed(evidence: Evidence, task: Task, parts: Sequence[Part]) -> list[Part]:
    """The parts of one task, under its name where the study has several."""
    return [Heading(evidence.labels[task]), *parts] if len(evidence.tasks) > 1 and parts else list(parts)


def _report_cells(evidence: Evidence, drawn: pd.DataFrame) -> pd.DataFrame:
    return evidence.cells[evidence.cells["cell"].isin(set(drawn["cell"].dropna()))]


# ------------------------------------------------------------------------------------------------------------------ the headline


def _headline(evidence: Evidence) -> Section:
    methods, results = evidence.methods, evidence.results
    shown = results[results["arm"].isin(methods.values())]
    if shown.empty or not evidence.drawn["ended"].isin([*schema.OUTCOMES, "failed"]).any():
        return Section("headline", "The five methods", [Text("The report phase has not run yet, so that there is nothing to compare.")])
    parts: list[Part] = [
        Text(
            "Each method's setting was chosen on the selection seeds and run again on fresh report seeds; what follows is from those alone. "
            "**Equal budget** asks what each method reaches when it may try only as many settings as the method with the fewest: a clip has a "
            "threshold to tune, and must not win by five times as many tries. **All settings** lets each method use its whole grid. "
            "**Untuned** is one fixed learning rate and threshold. Intervals are 95 %."
        ),
        Text(
            "A run ends in one of four ways. **Diverged**: a value stopped being finite, or the loss blew up and stayed there. **Collapsed**: finite, but back at the "
            "loss of a constant prediction after having left it, which is how most runs of small networks fail. **Stalled**: still at that loss, too slow. "
            "**Learned**: none of these."
        ),
    ]
    panels = [
        {
            "task": task,
            "title": evidence.labels[task],
            "label": _axis_label(evidence.about(task)),
            "success": evidence.about(task)["success"] is not None,
            "higher_is_better": evidence.about(task)["higher_is_better"],
        }
        for task in evidence.tasks
    ]
    drawn = evidence.drawn[evidence.drawn["arm"].isin(methods.values())]
    cells = _report_cells(evidence, drawn)
    with_clip = results.merge(evidence.arms, on=GROUP)
    figure = figures.headline(with_clip, drawn, panels, methods, evidence.footer(cells))
    caption = (
        "The named methods on report seeds: the mean, or the success rate, with its 95 % interval, and every seed as a faint dot. Where a seed "
        "diverged the mark is the median, with that seed as the worst possible outcome. The dashed line is plain SGD at equal budget."
    )
    parts.append(picture(evidence, figure, caption, cells, "headline"))
    compared = analysis.compare(evidence.drawn, analysis.headline_pairs(evidence.arms, methods), evidence.components)
    for task in evidence.tasks:
        parts += _headed(evidence, task, [_headline_table(evidence, task, compared)])
    return Section("headline", "The five methods", parts)


def _axis_label(about: Row) -> str:
    if about["success"] is not None:
        sign = "≥" if about["higher_is_better"] else "≤"
        return f"share of seeds that succeed ({metric_words(about)} {sign} {short(about['success'])})"
    return f"{metric_words(about)} on the test split ({'higher' if about['higher_is_better'] else 'lower'} is better)"


def _headline_table(evidence: Evidence, task: Task, compared: pd.DataFrame) -> Table:
    about, methods = evidence.about(task), evidence.methods
    results, gaps = evidence.of(evidence.results, task), evidence.of(compared, task)
    results = results[results["arm"].isin(methods.values())]
    places, digits = decimals(results["estimate"]), gap_places(gaps)
    rows, frames = [], []
    for method, arm in methods.items():
        first = True
        for reading in READING_WORDS:
            found = results[(results["arm"] == arm) & (results["reading"] == reading)]
            if found.empty:
                continue
            row = found.iloc[0].to_dict()
            gap = gaps[(gaps["arm"] == arm) & (gaps["reading"] == reading)]
            against = gap.iloc[0].to_dict() if len(gap) else None
            rows.append(
                [
                    method if first else "",
                    READING_WORDS[reading],
                    estimate(row, places),
                    difference(against, digits) if against else "baseline" if method == "plain SGD" else DASH,
                    *_ends(row),
                    percent(row["clipped_fraction"]) if "clip" in method else DASH,
                    _target(row),
                    setting(row),
                ]
            )
            frames.append({"method": method, **row, **_prefixed(against)})
            first = False
    caption = (
        f"{evidence.labels[task]}: {metric_note(about)}, on report seeds. The difference is paired, seed by seed, and positive where the method is "
        f"better than plain SGD. n seeds; div., coll., stall., failed: how many of them ended so."
    )
    head = ["method", "reading", _value_head(about), "better than plain SGD by", "n", *END_HEAD, "steps clipped", "steps to target", "chosen setting"]
    return Table(evidence.name("tables", "headline", evidence.labels[task]), caption, head, rows, pd.DataFrame(frames), words=2)


def metric_note(about: Row) -> str:
    """What the numbers of a task are."""
    if about["success"] is not None:
        sign = "≥" if about["higher_is_better"] else "≤"
        return f"share of seeds with {metric_words(about)} {sign} {short(about['success'])} (its outcome is all or nothing, so that a mean would mislead)"
    return f"{metric_words(about)}, {'higher' if about['higher_is_better'] else 'lower'} is better"


def _value_head(about: Row) -> str:
    return "succeeded" if about["success"] is not None else metric_words(about)


def estimate(row: Row, places: int) -> str:
    """A result with its interval and, where it is no mean, what it is."""
    interval, n = interval_of(row), int(row["n"])
    known = n - int(row["failed"]) - int(row["missing"])
    if row["statistic"] == "incomplete":
        if not known:
            return "no seed finished"
        return f"{fixed(interval.estimate, places)} (median of {known} of {n} seeds, incomplete)" if not row["successes"] >= 0 else f"{row['successes']:.0f}/{known} (incomplete)"
    if row["statistic"] == "share":
        return f"{row['successes']:.0f}/{n} [{percent(interval.low)}, {percent(interval.high)}]"
    words = f"{fixed(interval.estimate, places)} {between(interval, places)}".strip()
    if row["statistic"] == "median":
        return f"median {words}" + ("" if interval.bounded else " (too few seeds for an interval)")
    return words if interval.bounded else f"{words} (n = 1, no interval)"


def difference(row: Row, places: int) -> str:
    """A paired difference, or why there is none."""
    if row["note"] == "never fired":
        return "never fired: the same as none"
    if row["note"] == "incomplete":
        return "incomplete"
    interval = interval_of(row)
    if not interval.bounded:
        return f"{signed(interval.estimate, places)} (too few seeds for an interval)"
    if row["statistic"] == "share":
        return f"{signed(interval.estimate, 2)} {between(interval, 2, sign=True)}"
    words = f"{signed(interval.estimate, places)} {between(interval, places, sign=True)}"
    return f"median {words}" if row["statistic"] == "median" else words


def _ends(row: Row) -> list[str]:
    lost = int(row["failed"]) + int(row["missing"])
    return [str(int(row["n"])), *(str(int(row[name])) for name in ("diverged", "collapsed", "stalled")), str(lost)]


def _target(row: Row) -> str:
    if math.isnan(row["steps_to_target"]):
        return DASH
    if math.isinf(row["steps_to_target"]):
        return f"∞ ({int(row['reached'])}/{int(row['n'])})"
    return f"{row['steps_to_target']:.0f} ({int(row['reached'])}/{int(row['n'])})"


def setting(row: Row) -> str:
    """The setting behind a result, or how many settings the seeds drew."""
    if row["settings"] > 1:
        return f"{int(row['settings'])} settings, best of {int(row['budget'])}"
    words = [f"lr {short(row['lr'])}"]
    if not math.isnan(row["threshold"]) or not math.isnan(row["relative"]):
        multiple = "" if math.isnan(row["relative"]) else f" ({short(row['relative'])}×)"
        words.append(f"threshold {short(row['threshold'])}{multiple}")
    if row["edge"]:
        words.append(f"at an edge: {row['edge']}")
    return ", ".join(words)


def _prefixed(against: Row | None) -> dict[str, Any]:
    names = ("baseline", "statistic", "estimate", "low", "high", "p", "note")
    return {f"difference_{name}": against[name] if against else None for name in names}


# ------------------------------------------------------------------------------------------------------- clips on other optimizers


def _clips(evidence: Evidence) -> Section:
    pairs = analysis.clip_pairs(evidence.arms)
    others = pairs[~pairs["arm"].isin(evidence.methods.values())]
    title = "Clips on other optimizers"
    if others.empty or not evidence.drawn["ended"].isin([*schema.OUTCOMES, "failed"]).any():
        return Section("clips", title, [])
    compared = analysis.compare(evidence.drawn, pairs, evidence.components)
    claimed = analysis.claims(evidence.drawn, evidence.arms, evidence.components)
    parts: list[Part] = [
        Text(
            "The same clips on the other optimizers, each against the same optimizer without a clip, on the same report seeds. The last column is the "
            f"p value of the difference at all settings after Holm's correction over the declared family, "
            f"{{norm, value}} × optimizer × workload ({plural(int(claimed['p'].notna().sum()), 'comparison')}); thresholds are tuned, not tested."
        )
    ]
    for task in evidence.tasks:
        mine = evidence.of(others, task)
        if len(mine):
            parts += _headed(evidence, task, [_clip_table(evidence, task, mine, compared, claimed)])
    return Section("clips", title, parts)


def _clip_table(evidence: Evidence, task: Task, mine: pd.DataFrame, compared: pd.DataFrame, claimed: pd.DataFrame) -> Table:
    about, results = evidence.about(task), evidence.of(evidence.results, task)
    gaps, tested = evidence.of(compared, task), evidence.of(claimed, task)
    arms = evidence.of(evidence.arms, task)
    places, digits = decimals(results["estimate"]), gap_places(gaps)
    order = figures.ordered(arms[arms["arm"].isin([*mine["arm"], *mine["baseline"]])])
    rows, frames = [], []
    for arm in order:
        found = results[(results["arm"] == arm) & (results["reading"] == "all")]
        if found.empty:
            continue
        row = found.iloc[0].to_dict()
        by_reading = {one["reading"]: one for one in gaps[gaps["arm"] == arm].to_dict("records")}
        holm = tested.loc[tested["arm"] == arm, "holm"]
        rows.append(
            [
                arm,
                estimate(row, places),
                *(difference(by_reading[name], digits) if name in by_reading else "unclipped" for name in ("all", "equal")),
                *_ends(row),
                percent(row["clipped_fraction"]) if arm in set(mine["arm"]) else DASH,
                _target(row),
                setting(row),
                p_value(float(holm.iloc[0])) if len(holm) else DASH,
            ]
        )
        frames.append({**row, **_prefixed(by_reading.get("all")), "holm": float(holm.iloc[0]) if len(holm) else math.nan})
    head = ["arm", f"{_value_head(about)}, all settings", "gain, all settings", "gain, equal budget", "n", *END_HEAD, "steps clipped"]
    head += ["steps to target", "chosen setting", "p (Holm)"]
    caption = f"{evidence.labels[task]}: {metric_note(about)}, on report seeds. Gains are paired differences from the same optimizer without a clip."
    return Table(evidence.name("tables", "clips", evidence.labels[task]), caption, head, rows, pd.DataFrame(frames))


def p_value(p: float) -> str:
    """A p value as papers write it."""
    return DASH if math.isnan(p) else "<0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


# ---------------------------------------------------------------------------------------------------------------------- pictures


def _curves(evidence: Evidence) -> Section:
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
            f"{evidence.labels[task]}: {label} of every report seed (thin) at each method's chosen setting, and their median (thick; a diverged seed "
            f"counts as infinite). A cross marks where a run diverged; the dotted line is the loss of the best constant prediction. "
            f"Each point is the median of a stretch of steps."
        )
        parts += _headed(evidence, task, [picture(evidence, figure, caption, cells, "curves", evidence.labels[task])])
    return Section("curves", "Loss curves", parts)


def _drawable(evidence: Evidence, task: Task) -> pd.DataFrame:
    arms = evidence.of(evidence.arms, task)
    return arms if len(arms) <= MAX_ARMS else arms[arms["arm"].isin(evidence.methods.values())]


def _chosen(evidence: Evidence, task: Task) -> pd.DataFrame:
    """The choice of every arm, known from the selection phase alone."""
    return evidence.of(evidence.choices, task)


def _heat(evidence: Evidence) -> Section:
    settings = analysis.grid(evidence.cells, evidence.components)
    parts: list[Part] = []
    for task in evidence.tasks:
        mine, arms, about = evidence.of(settings, task), _drawable(evidence, task), evidence.about(task)
        if mine.empty:
            continue
        cells = evidence.of(evidence.cells, task)
        cells = cells[(cells["role"] == "select") & cells["arm"].isin(arms["arm"])]
        label = f"{metric_words(about)}, mean over selection seeds"
        figure = figures.heat(mine, arms, _chosen(evidence, task), label, about["higher_is_better"], evidence.footer(cells))
        caption = (
            f"{evidence.labels[task]}: {metric_words(about)} after the last step, over learning rate × threshold (× is a multiple of the median size of the "
            f"raw gradient). D, C, S, F: seeds that diverged, collapsed, stalled, failed, with their number unless all did. Grey where one diverged: a mean over "
            f"the survivors would flatter it. The red frame is the setting that was chosen, by validation loss."
        )
        table = Table(
            evidence.name("tables", "grid", evidence.labels[task]), "", [], [], mine.reset_index(drop=True)
        )  # too long for the page: its CSV is the table
        parts += _headed(evidence, task, [picture(evidence, figure, caption, cells, "heat", evidence.labels[task]), table])
    if parts:
        parts.insert(0, Text("Every setting of the selection phase: how good it was, and how its seeds ended."))
    return Section("grid", "Learning rate × threshold", parts)


def _stable(evidence: Evidence) -> Section:
    ranges = analysis.stable(evidence.cells)
    if ranges.empty:
        return Section("stable", "Stable learning rates", [])
    words = (
        "A learning rate is stable for a method where every selection seed learned: none diverged, collapsed or stalled. For a clip the range is given twice: with "
        "the best threshold at each learning rate, and with the one threshold whose range is widest, which is what a user who fixes a threshold gets."
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
        seeds = sorted(set(analysis.grid(cells, {})["seeds"]))
        caption = f"{evidence.labels[task]}: learning rates at which all {listed([str(seed) for seed in seeds])} selection seeds learned. Ticks are the values tried."
        if len(analysis.effective(mine, arms)):
            caption += " The thin line below a momentum bar is the same range as lr/(1 − μ), the size of its steps in a steady direction."
        parts += _headed(
            evidence, task, [picture(evidence, figure, caption, cells, "stable", evidence.labels[task]), _stable_table(evidence, task, mine, arms)]
        )
    return Section("stable", "Stable learning rates", parts)


def _stable_table(evidence: Evidence, task: Task, mine: pd.DataFrame, arms: pd.DataFrame) -> Table:
    rows = []
    for arm in figures.ordered(arms):
        for one in mine[mine["arm"] == arm].to_dict("records"):
            threshold = "" if math.isnan(one["threshold"]) else f" of {short(one['threshold'])}"
            threshold += "" if math.isnan(one["relative"]) else f" ({short(one['relative'])}×)"
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
        lrs=[" ".join(f"{lr:g}" for lr in lrs) for lrs in mine["lrs"]], tried=[" ".join(f"{lr:g}" for lr in tried) for tried in mine["tried"]]
    )
    caption = f"{evidence.labels[task]}: the longest unbroken stretch of stable learning rates. ≤ and ≥: it reaches the end of what was tried."
    head = ["arm", "threshold", "from", "to", "decades", "stable lrs"]
    return Table(evidence.name("tables", "stable", evidence.labels[task]), caption, head, rows, data, words=2)


def _fired(evidence: Evidence) -> Section:
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
            f"{evidence.labels[task]}: share of steps in which the clip altered at least one element, by threshold: the median over learning rates and selection "
            f"seeds; the band is the whole range. At 0 the clip does nothing, at 1 it sets the length of every step."
        )
        table = Table(evidence.name("tables", "fired", evidence.labels[task]), "", [], [], mine.reset_index(drop=True))
        parts += _headed(evidence, task, [picture(evidence, figure, caption, cells, "fired", evidence.labels[task]), table])
    return Section("fired", "How often a clip fires", parts)


# -------------------------------------------------------------------------------------------------------------- cost and events


def _cost(evidence: Evidence) -> Section:
    title, costs = "What a clip costs", analysis.cost(evidence.throughput)
    if costs.empty:
        return Section("cost", title, [Text("Throughput was not measured in this folder; `clipbench throughput` or a run without `--no-throughput` does.")])
    parts: list[Part] = [
        Text(
            "Time of the real torch step, measured apart from the training runs with nothing else running: every clip's block beside one of the same optimizer "
            "without a clip. The ratio is the median over the pairs of blocks with its order-statistic interval; quantiles are over blocks."
        )
    ]
    places = ["problem", "batch", "device", "dtype"]
    for key, mine in costs.groupby(places, sort=True):
        # The timings of a task that the plan no longer holds keep a label of their own.
        label = evidence.labels.get(tuple(key), ", ".join(str(part) for part in key))
        shown: list[Part] = []
        if np.isfinite(mine["ratio"]).any():
            blocks = f"{int(mine['blocks'].sum()):,} timed blocks, {int(mine['invalid'].sum()):,} invalid"
            figure = figures.cost(mine, f"study {evidence.store.study_hash} · {blocks}")
            caption = f"{label}: step time with a clip over the step time without, and its 95 % interval."
            full = f"{caption} Drawn from {blocks} and left out; no training cell, none diverged, none failed; study {evidence.store.study_hash}."
            shown.append(Picture(evidence.name("figures", "cost", label), full, caption, *figures.render(figure)))
        shown.append(_cost_table(evidence, label, mine))
        parts += [Heading(label), *shown] if len(costs[places].drop_duplicates()) > 1 else shown
    return Section("cost", title, parts)


def _cost_table(evidence: Evidence, label: str, mine: pd.DataFrame) -> Table:
    several = mine["implementation"].nunique() > 1
    rows = [
        [
            row["optimizer"],
            row["clip"] + (f" ({row['implementation']})" if several else ""),
            "1" if row["clip"] == "none" else f"{fixed(row['ratio'], 2)} {between(Interval(row['ratio'], row['low'], row['high']), 2)}".strip(),
            seconds(row["step_5"]),
            seconds(row["step_50"]),
            seconds(row["step_95"]),
            f"{row['samples_per_second']:,.0f}" if math.isfinite(row["samples_per_second"]) else DASH,
            number_of_bytes(row["peak_bytes"]),
            str(int(row["blocks"])),
            str(int(row["invalid"])),
        ]
        for row in mine.to_dict("records")
    ]
    head = ["optimizer", "clip", "ratio to no clip", "step, 5 %", "median", "95 %", "samples/s", "peak memory", "blocks", "invalid"]
    return Table(evidence.name("tables", "throughput", label), f"{label}: cost of a training step.", head, rows, mine.reset_index(drop=True), words=2)


def _events(evidence: Evidence) -> Section:
    found = analysis.events(evidence.store.read("events"), evidence.cells)
    counted = analysis.event_counts(found, evidence.cells)
    parts: list[Part] = [
        Text(
            "Cells of both phases, by how they ended, and how many of them met each kind of event at least once. A diverged cell is never dropped, "
            "filled in or run again."
        )
    ]
    kinds = [kind for kind in schema.KINDS if counted[kind].sum()]
    rows = [
        [evidence.labels[tuple(row[name] for name in TASK)], row["arm"], str(row["cells"]), *(str(row[name]) for name in (*schema.OUTCOMES, "failed", *kinds))]
        for row in counted.to_dict("records")
    ]
    head = ["workload", "arm", "cells", *schema.OUTCOMES, "failed", *(kind.replace("_", " ") for kind in kinds)]
    parts.append(Table(evidence.name("tables", "outcomes"), "How the cells ended.", head, rows, counted, words=2))
    if found.empty:
        parts.append(Text("No event was recorded."))
        return Section("events", "Divergence and other events", parts)
    rows = [
        [
            row["kind"].replace("_", " "),
            evidence.labels[tuple(row[name] for name in TASK)],
            f"{row['arm']}, {figures.setting(row)}",
            f"{row['role']} {row['seed']}",
            str(row["step"]),
            short(row["value"]),
            str(row["detail"] or ""),
            str(row["outcome"] or "failed"),
            row["cell"],
        ]
        for row in found.head(LISTED).to_dict("records")
    ]
    head = ["event", "workload", "arm and setting", "seed", "step", "value", "rule", "cell ended", "cell"]
    caption = f"The first {min(LISTED, len(found))} of {plural(len(found), 'event')}, worst kinds first; the CSV holds all."
    parts.append(Table(evidence.name("tables", "events"), caption, head, rows, found, words=9))
    return Section("events", "Divergence and other events", parts)


# ---------------------------------------------------------------------------------------------------- what is missing, and methods


def _not_run(evidence: Evidence) -> Section:
    items = [
        Text(f"{plural(int(entry['cells']), 'cell')} for {entry['device']}: {entry['reason']}.".replace("..", ".")) for entry in evidence.plan.get("not_run", [])
    ]
    stored = set(evidence.cells["cell"])
    for phase, asked in sorted(evidence.plan.get("cells", {}).items()):
        lacking = sum(cell not in stored for cell in asked)
        if lacking:
            items.append(Text(f"{lacking:,} of {plural(len(asked), f'{phase} cell')} not stored yet: `clipbench run` makes them."))
    if len(evidence.cells) and not evidence.plan.get("cells", {}).get("report"):
        items.append(Text("The report phase: its settings are to be chosen."))
    items += [Text(f"{plural(count, 'stored cell')} kept but not compared: {reason}.") for reason, count in evidence.kept.items()]
    items += [Text(f"Damaged file left out: {name} {damage}.") for name, damage in sorted(evidence.store.bad.items())]
    for one in analysis.mixtures(evidence.cells):
        values = listed([f"{value} ({plural(count, 'cell')})" for value, count in one["values"].items()])
        label = evidence.labels[tuple(one[name] for name in TASK)]
        items.append(Text(f"**Mixed**: the {one['role']} cells of {label} come from more than one {one['column']}: {values}. Read their comparison with care."))
    parts: list[Part] = [List(items)] if items else [Text("Everything the study asks for is stored, and compared.")]
    lost = analysis.failures(evidence.cells)
    if len(lost):
        rows = [
            [
                evidence.labels[tuple(row[name] for name in TASK)],
                f"{row['arm']}, {figures.setting(row)}",
                f"{row['role']} {row['seed']}",
                str(row["attempt"]),
                str(row["reason"] or "no reason was recorded"),
                row["cell"],
            ]
            for row in lost.head(LISTED).to_dict("records")
        ]
        caption = f"{plural(len(lost), 'failed cell')} (the first {min(LISTED, len(lost))}); the next run tries them again."
        parts.append(Table(evidence.name("tables", "failed"), caption, ["workload", "arm and setting", "seed", "attempt", "reason", "cell"], rows, lost, words=6))
    return Section("missing", "What was not run, or is not compared", parts)


def _methods(evidence: Evidence) -> Section:
    protocol = evidence.plan.get("protocol", {})
    phases = sorted({(int(seeds["select"]), int(seeds["report"])) for seeds in protocol.get("seeds", {}).values()})
    seeds = listed([f"{select} selection and {report} report seeds" for select, report in phases]) or "the seeds that are stored"
    n = max((report for _, report in phases), default=0)
    untuned = protocol.get("untuned")
    items = [
        f"**Two phases.** Every setting of the grid runs on selection seeds; the setting with the best validation loss (over a run's evaluations, mean over seeds; "
        f"an unstable or failed seed counts as ∞) is chosen, and among those within one standard error of it the one with the best neighbours on the grid. "
        f"The choice then runs on fresh report seeds. Here: {seeds}.",
        "**Same luck.** Initial weights, batch order, noise and data splits depend on the workload and the seed only, so that every method meets the same, and differences are paired "
        "seed by seed.",
        "**Equal budget.** With k the number of settings of the smallest arm, each report seed runs the setting that the best of k settings drawn at random from the arm's grid would have been "
        "(by selection score; the draws follow a fixed low-discrepancy sequence), so that the mean estimates the expected result of tuning with k tries. Its interval includes the luck of that draw.",
    ]
    if untuned:
        items.append(f"**Untuned.** Learning rate {short(untuned['lr'])} and, where there is a clip, threshold {short(untuned['threshold'])}, whatever the workload.")
    items += [
        "**Chosen at an edge.** A choice at the end of its axis extends that axis by two half-decades, once; a choice still named as lying at an edge may be bettered beyond it.",
        f"**Never fired.** A clip that altered fewer than {percent(selection.FIRED)} of steps is reported as doing nothing; a difference then is one of learning rates, not of clipping.",
        "**Intervals.** Means have Student's t interval over seeds. Where a seed diverged it has no value: the result is then the median with such seeds as the worst possible outcome, and the "
        "order-statistic interval. All-or-nothing outcomes are success rates with Wilson's interval, their differences with Newcombe's. Seeds that failed or are missing are unknown: "
        "no interval is given then. The intervals of differences are not corrected for their number; the p values of the declared family are (Holm).",
        "**∞ steps to target** means that fewer than half of the seeds ever met the workload's target validation loss; in brackets, how many did.",
        f"**Limits.** {_limit(n)} t intervals are too narrow for skewed data. A learning rate called stable was so on the selection seeds only.",
    ]
    return Section("methods", "How to read this", [List([Text(item) for item in items]), *_workload_table(evidence)])


def _limit(n: int) -> str:
    if not n:
        return "There are no report seeds."
    return f"{n} report seeds see large effects only: 0 of {n} diverged still allows a rate of {percent(share_interval(0, n).high)}."


def _workload_table(evidence: Evidence) -> list[Part]:
    entries = evidence.components.get("workloads", {})
    problems = [task[0] for task in evidence.tasks]
    rows = []
    for problem in sorted(set(problems) & set(entries)):
        about = analysis.workload(evidence.components, problem)
        rows.append(
            [
                problem,
                str(about.get("about", "")),
                metric_note(about),
                *(DASH if about[name] is None else short(float(about[name])) for name in ("reference_loss", "target", "optimum")),
            ]
        )
    if not rows:
        return []
    head = ["workload", "what it is", "judged by", "constant prediction's loss", "target", "optimum"]
    frame = pd.DataFrame([{"problem": problem, **_flat(entries[problem])} for problem in sorted(set(problems) & set(entries))])
    return [Table(evidence.name("tables", "workloads"), "The workloads.", head, rows, frame, words=3)]


def _flat(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if not isinstance(value, (dict, list))}


def _provenance(evidence: Evidence) -> Section:
    store, environments = evidence.store, evidence.environment.get("environments", {})
    parts: list[Part] = [Text(f"`clipbench report {store.folder.name}` drew this page from the folder's files alone; the same files give the same bytes.")]
    if evidence.environment.get("curves") == "report":
        parts.append(Text("This copy of the store keeps the curves of report cells only; tables and heat maps need no others."))
    used = evidence.cells["environment"].value_counts()
    fields = sorted({name for entry in environments.values() for name in entry if not isinstance(entry[name], (dict, list))})
    if environments:
        rows = [[key, f"{int(used.get(key, 0)):,}", *(str(environments[key].get(name, "")) for name in fields)] for key in sorted(environments)]
        frame = pd.DataFrame([{"environment": key, **_flat(environments[key])} for key in sorted(environments)])
        turned = [[name, *(row[index] for row in rows)] for index, name in enumerate(["environment", "cells", *fields])]
        parts.append(Table(evidence.name("tables", "environments"), "Where the cells were made.", ["", *[""] * len(rows)], turned, frame, words=1 + len(rows)))
    versions = [f"{entry['name']} {entry['version']}" for kind in ("workloads", "optimizers") for entry in evidence.components.get(kind, {}).values()]
    versions += [f"{name} {entry['version']}" for name, entry in evidence.components.get("clips", {}).items()]
    if versions:
        parts.append(Text(f"Versions of the mathematics: {', '.join(sorted(set(versions)))}."))
    parts.append(Text(store.study, kind="code"))
    return Section("provenance", "Provenance", parts)
