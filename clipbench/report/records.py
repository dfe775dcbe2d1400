"""The sections on cost, events, what is missing, methods and provenance."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from clipbench import analysis, figures, schema, selection
from clipbench.report.evidence import Evidence
from clipbench.report.implementations import implementations
from clipbench.report.parts import Heading, List, Part, Picture, Section, Table, Text
from clipbench.report.words import (
    DASH,
    between,
    fixed,
    listed,
    metric_note,
    number_of_bytes,
    percent,
    plural,
    seconds,
    short,
)
from clipbench.statistics import Interval, share_interval
from clipbench.task import ARM, TASK, Task

LISTED = 40  # rows of a long list on the page; its CSV has them all


def cost(evidence: Evidence) -> Section:
    """What a clip costs."""
    title, costs, more = "What a clip costs", evidence.costs, implementations(evidence)
    if costs.empty and not more:
        return Section(
            "cost",
            title,
            [Text("Throughput was not measured in this folder; `clipbench throughput` or a run without `--no-throughput` does.")],
        )
    parts: list[Part] = []
    if len(costs):
        parts.append(
            Text(
                "Time of the real torch step, measured apart from the training runs with nothing else running: every clip's "
                "block beside one of the same optimizer "
                "without a clip. The ratio is the median over the pairs of blocks with its order-statistic interval; quantiles "
                "are over blocks."
            )
        )
    places = [*TASK, "environment"]
    several = len(set(costs["environment"])) > 1
    for key, mine in costs.groupby(places, dropna=False, sort=True):
        # The timings of a task that the plan no longer holds keep a label of their own.
        label = evidence.labels.get(Task(*key[:-1]), ", ".join(str(part) for part in key[:-1]))
        label += f" ({evidence.machine(key[-1])})" if several else ""
        shown: list[Part] = []
        if np.isfinite(mine["ratio"]).any():
            blocks = f"{int(mine['blocks'].sum()):,} timed blocks, {int(mine['invalid'].sum()):,} invalid"
            figure = figures.cost(mine, f"study {evidence.store.study_hash} · {blocks}")
            caption = f"{label}: step time with a clip over the step time without, and its 95 % interval."
            full = f"{caption} Drawn from {blocks} and left out; no training cell, so none diverged and none failed; "
            full += f"study {evidence.store.study_hash}."
            shown.append(Picture(evidence.name("figures", "cost", label), full, caption, *figures.render(figure)))
        shown.append(_cost_table(evidence, label, mine))
        parts += [Heading(label), *shown] if len(costs[places].drop_duplicates()) > 1 else shown
    return Section("cost", title, parts + more)


def _cost_table(evidence: Evidence, label: str, mine: pd.DataFrame) -> Table:
    rows = [
        [
            row["optimizer"],
            row["clip"],
            "1"
            if row["clip"] == "none"
            else f"{fixed(row['ratio'], 2)} {between(Interval(row['ratio'], row['low'], row['high']), 2)}".strip(),
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
    return Table(
        evidence.name("tables", "throughput", label),
        f"{label}: cost of a training step.",
        head,
        rows,
        mine.reset_index(drop=True),
        words=2,
    )


def events(evidence: Evidence) -> Section:
    """How cells ended, and the events on the way."""
    found = analysis.events(evidence.store.read("events"), evidence.cells)
    counted = analysis.event_counts(found, evidence.cells)
    parts: list[Part] = [
        Text(
            "Cells of both phases, by how they ended, and how many of them met each kind of event at least once. A diverged "
            "cell is never dropped, "
            "filled in or run again."
        )
    ]
    kinds = [kind for kind in schema.KINDS if counted[kind].sum()]
    rows = [
        [
            evidence.labels[Task.of(row)],
            row["arm"],
            str(row["cells"]),
            *(str(row[name]) for name in (*schema.OUTCOMES, "failed", *kinds)),
        ]
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
            evidence.labels[Task.of(row)],
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


def not_run(evidence: Evidence) -> Section:
    """What is missing, failed, kept aside or mixed."""
    items = [
        Text(f"{plural(int(entry['cells']), 'cell')} for {entry['device']}: {entry['reason']}.".replace("..", "."))
        for entry in evidence.plan.get("not_run", [])
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
        label = evidence.labels[Task.of(one)]
        items.append(
            Text(
                f"**Mixed**: the {one['role']} cells of {label} come from more than one {one['column']}: {values}. Read their "
                f"comparison with care."
            )
        )
    for key, mine in analysis.valueless(evidence.drawn, evidence.components).groupby(ARM, sort=True):
        runs = f"{plural(len(mine), 'report run')} of {evidence.labels[Task(*key[:-1])]}, {key[-1]},"
        named = listed([f"seed {row.seed} ({row.ended})" for row in mine.head(LISTED).itertuples()])
        items.append(
            Text(
                f"**No value**: {runs} did not diverge and yet ended without a usable metric: {named}. What they would have "
                "reached is unknown, so that nothing is concluded where they take part."
            )
        )
    parts: list[Part] = [List(items)] if items else [Text("Everything the study asks for is stored, and compared.")]
    lost = analysis.failures(evidence.cells)
    if len(lost):
        rows = [
            [
                evidence.labels[Task.of(row)],
                f"{row['arm']}, {figures.setting(row)}",
                f"{row['role']} {row['seed']}",
                str(row["attempt"]),
                str(row["reason"] or "no reason was recorded"),
                row["cell"],
            ]
            for row in lost.head(LISTED).to_dict("records")
        ]
        caption = f"{plural(len(lost), 'failed cell')} (the first {min(LISTED, len(lost))}); the next run tries them again."
        parts.append(
            Table(
                evidence.name("tables", "failed"),
                caption,
                ["workload", "arm and setting", "seed", "attempt", "reason", "cell"],
                rows,
                lost,
                words=6,
            )
        )
    return Section("missing", "What was not run, or is not compared", parts)


def methods(evidence: Evidence) -> Section:
    """The protocol in plain words."""
    protocol = evidence.plan.get("protocol", {})
    phases = sorted({(int(seeds["select"]), int(seeds["report"])) for seeds in protocol.get("seeds", {}).values()})
    seeds = listed([f"{select} selection and {report} report seeds" for select, report in phases]) or "the seeds that are stored"
    n = max((report for _, report in phases), default=0)
    untuned = protocol.get("untuned")
    items = [
        (
            f"**Two phases.** Every setting of the grid runs on selection seeds; the setting with the best validation loss (over "
            f"a run's evaluations, mean over seeds; "
            f"an unstable or failed seed counts as ∞) is chosen, and among those within one standard error of it the one with the "
            f"best neighbours on the grid. "
            f"The choice then runs on fresh report seeds, and is judged on the test split after the last step. Here: {seeds}."
        ),
        (
            "**Same luck.** Initial weights, batch order, noise and data splits depend on the workload and the seed only, so "
            "that every method meets the same, and differences are paired "
            "seed by seed."
        ),
        (
            "**Equal budget.** With k the number of settings of the smallest arm, each report seed runs the setting that the "
            "best of k settings drawn at random from the arm's grid would have been "
            "(by selection score; the draws follow a fixed low-discrepancy sequence), so that the mean estimates the expected "
            "result of tuning with k tries. Its interval includes the luck of that draw."
        ),
    ]
    if untuned:
        items.append(
            f"**Untuned.** Learning rate {short(untuned['lr'])} and, where there is a clip, threshold "
            f"{short(untuned['threshold'])}, whatever the workload."
        )
    items += [
        (
            "**Chosen at an edge.** A choice at the end of its axis extends that axis by two half-decades, once; a choice still "
            "named as lying at an edge may be bettered beyond it."
        ),
        (
            f"**Never fired.** A clip that altered fewer than {percent(selection.FIRED)} of steps, and less than one step a run, "
            f"is reported as doing nothing; a "
            f"difference then is one of learning rates, not of clipping."
        ),
        (
            "**Intervals.** Means have Student's t interval over seeds. Where a seed diverged it has no value: the result is "
            "then the median with such seeds as the worst possible outcome, and the "
            "order-statistic interval. All-or-nothing outcomes are success rates with Wilson's interval, their differences with "
            "Newcombe's. Seeds that failed or are missing, or have no metric "
            "though they did not diverge, are unknown: "
            "no interval is given then, nor where all seeds are alike: without a spread there is nothing to infer from, and the "
            "difference is not testable. The intervals of differences are not corrected for their number; the p values of the "
            "declared family are (Holm)."
        ),
        (
            "**∞ steps to target** means that fewer than half of the seeds ever met the workload's target validation loss; in "
            "brackets, how many did."
        ),
        (
            f"**Limits.** {_limit(n)} t intervals are too narrow for skewed data. A learning rate called stable was so on the "
            f"selection seeds only."
        ),
    ]
    return Section("methods", "How to read this", [List([Text(item) for item in items]), *_workload_table(evidence)])


def _limit(n: int) -> str:
    if not n:
        return "There are no report seeds."
    return (
        f"{n} report seeds see large effects only: 0 of {n} diverged still allows a rate of {percent(share_interval(0, n).high)}."
    )


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
    """A page's entry as columns: what is nested comes out under its own name, such as a library under ``libraries``."""
    flat: dict[str, Any] = {}
    for name, value in entry.items():
        if isinstance(value, Mapping):
            flat |= _flat(value)
        elif not isinstance(value, list):
            flat[name] = value
    return flat


def provenance(evidence: Evidence) -> Section:
    """Where the numbers come from."""
    store, environments = evidence.store, {key: _flat(entry) for key, entry in evidence.environment.get("environments", {}).items()}
    parts: list[Part] = [
        Text(
            f"`clipbench report results/{store.name}` drew this page from the folder's files alone, wherever they lie; the same "
            f"files give the same bytes."
        )
    ]
    if evidence.environment.get("curves") == "report":
        parts.append(Text("This copy of the store keeps the curves of report cells only; tables and heat maps need no others."))
    used = evidence.cells["environment"].value_counts()
    fields = sorted({name for entry in environments.values() for name in entry})
    if environments:
        rows = [
            [key, f"{int(used.get(key, 0)):,}", *(str(environments[key].get(name, "")) for name in fields)]
            for key in sorted(environments)
        ]
        frame = pd.DataFrame([{"environment": key, **environments[key]} for key in sorted(environments)])
        turned = [[name, *(row[index] for row in rows)] for index, name in enumerate(["environment", "cells", *fields])]
        parts.append(
            Table(
                evidence.name("tables", "environments"),
                "Where the cells were made.",
                ["", *[""] * len(rows)],
                turned,
                frame,
                words=1 + len(rows),
            )
        )
    versions = [
        f"{entry['name']} {entry['version']}"
        for kind in ("workloads", "optimizers")
        for entry in evidence.components.get(kind, {}).values()
    ]
    versions += [f"{name} {entry['version']}" for name, entry in evidence.components.get("clips", {}).items()]
    if versions:
        parts.append(Text(f"Versions of the mathematics: {', '.join(sorted(set(versions)))}."))
    parts.append(Text(store.study, kind="code"))
    return Section("provenance", "Provenance", parts)
