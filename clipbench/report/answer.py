"""The answer to the reader's question "should I clip?", in sentences and one table, in words that
the intervals support.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from clipbench.analysis.cells import plain
from clipbench.analysis.form import norm_over_value
from clipbench.figures.style import given
from clipbench.report.answer_table import SIGNS, decimals_of, table, without_stopping_of
from clipbench.report.evidence import Evidence
from clipbench.report.parts import Part
from clipbench.report.prose import paragraphs
from clipbench.report.words import (
    DASH,
    Row,
    fixed,
    listed,
    metric_words,
    percent,
    short,
    signed,
)
from clipbench.schema import Outcome, Role, Verdict
from clipbench.task import THRESHOLD, Task, Threshold

NAMED = 4  # arms, or thresholds, that a sentence names one by one


def told(evidence: Evidence) -> Sequence[Part]:
    """The reader's question, answered from the numbers: a sentence for each part of it, a table,
    and what was run.
    """
    nothing = _nothing(evidence)
    if nothing:
        return paragraphs("nothing", why=nothing)
    rows = rows_of(evidence)
    return [
        *paragraphs("answer", **_numbers(evidence, rows)),
        table(evidence, rows),
        *paragraphs("several", clips=_several(evidence, rows)),
        *paragraphs("ran", tasks=_ran(evidence), **_conditions(evidence)),
    ]


def rows_of(evidence: Evidence) -> list[dict[str, Any]]:
    """The comparisons, with their ``row`` of the CSV, whose head is the first; none if there is no
    answer.
    """
    if _nothing(evidence):
        return []
    return [
        {**row, "row": number}
        for number, row in enumerate(evidence.answers.to_dict("records"), start=2)
    ]


def _nothing(evidence: Evidence) -> str:
    """Why there is no answer; empty if there is one."""
    if not len(evidence.cells):
        return "empty"
    ended = evidence.drawn["ended"].isin([*Outcome]).any()
    if evidence.reports and not ended:
        return "not yet"
    if evidence.answers.empty:
        has_clips = evidence.arms["partner"].notna().any()
        if not has_clips:
            return "no clip"
        return "no report" if not evidence.reports else "nothing compared"
    if not (evidence.answers["n"] > 0).any():
        return "nothing compared"
    return ""


def _numbers(evidence: Evidence, rows: Sequence[Row]) -> dict[str, Any]:
    """What the template of the answer names."""
    by_verdict = {
        verdict: [named(evidence, row) for row in rows if row["verdict"] == verdict]
        for verdict in Verdict
    }
    tuned = [row for row in rows if row["basis"] == "tuned"]
    pairs = norm_over_value(evidence.axes, evidence.arms, evidence.grade)
    rivals = [row for row in rows if row["instead"] and not math.isnan(row["instead_low"])]
    leading = [row for row in rivals if row["instead_low"] > 0]
    widest = max(leading, key=lambda row: row["instead_gain"] / _scale(row), default=None)
    timed = evidence.costs[evidence.costs["ratio"].notna()]
    costs = sorted(100 * (timed["ratio"] - 1))
    open_rows = [row for row in rows if row["verdict"] == Verdict.UNDECIDED]
    needed = [row["needed"] for row in open_rows if row["n"] < row["needed"] < math.inf]
    budget = [row for row in rows if not evidence.budget.empty]
    counts = sorted({int(row["n"]) for row in rows if row["n"] > 0})
    return {
        "better": by_verdict[Verdict.BETTER] + by_verdict[Verdict.PERHAPS_BETTER],
        "worse": by_verdict[Verdict.WORSE] + by_verdict[Verdict.PERHAPS_WORSE],
        "same": by_verdict[Verdict.SAME],
        "never": by_verdict[Verdict.NEVER_FIRED],
        "incomplete": by_verdict[Verdict.INCOMPLETE],
        "open": len(by_verdict[Verdict.UNDECIDED]),
        "compared": len(rows),
        "tuned": len(tuned),
        "ahead": sum(row["low"] > 0 for row in tuned),
        "behind": sum(row["high"] < 0 for row in tuned),
        "pairs": len(pairs),
        "norm_ahead": int((pairs["low"] > 0).sum()),
        "value_ahead": int((pairs["high"] < 0).sum()),
        "fixed": _fixed(rows),
        "others": _other_thresholds(evidence, rows),
        "acted": _range([row["fired"] for row in rows]),
        "optimizers": _by_optimizer(evidence, rows),
        "edges": sum(_at_an_end(evidence, row) for row in rows),
        "budget": len(budget) and int(evidence.budget.groupby(["problem", "arm"]).ngroups),
        "budget_ahead": sum(not math.isnan(row["tries_until"]) for row in rows),
        "rivals": len(rivals),
        "rivals_ahead": len(leading),
        "rival": f"{_lead(evidence, widest)}" if widest else "",
        "cheapest": fixed(costs[0], 0) if costs else "",
        "dearest": fixed(costs[-1], 0) if costs else "",
        "machines": timed["environment"].nunique(),
        "seeds": " to ".join(str(count) for count in {counts[0]: 0, counts[-1]: 0}),
        "learned": _learned(evidence),
        "needed": f"{statistics.median(needed):,.0f}" if needed else "",
        "least": f"{min(needed):,.0f}" if needed else "",
    }


def _fixed(rows: Sequence[Row]) -> str:
    """The thresholds that are compared at the same number of tries."""
    percentiles = {row["percentile"] for row in rows if not math.isnan(row["percentile"])}
    if percentiles:
        told = listed([f"{short(one)}th" for one in sorted(percentiles)])
        return f"the {told} percentile of the gradient's sizes in a short pilot run"
    given = {short(row["threshold"]) for row in rows if row["basis"] == "same tries"}
    return listed(sorted(given - {DASH}))


def _other_thresholds(evidence: Evidence, rows: Sequence[Row]) -> int:
    """How many thresholds were tried beside those that the rows compare."""
    points = evidence.cells[["problem", "arm", "threshold"]].dropna().drop_duplicates()
    compared = {(row["problem"], row["arm"], row["threshold"]) for row in rows}
    return sum(tuple(one) not in compared for one in points.itertuples(index=False))


def _several(evidence: Evidence, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The clips of the rows that have several thresholds, which compete on the selection seeds;
    those of the same thresholds together.
    """
    met: dict[tuple[str, bool], list[str]] = {}
    tried = evidence.cells[evidence.cells["role"] == Role.SELECT]
    for row in {row["arm"]: row for row in rows}.values():
        mine = plain(tried.loc[tried["arm"] == row["arm"], THRESHOLD].drop_duplicates())
        thresholds = sorted(map(Threshold.of, mine.to_dict("records")), key=lambda one: one.setting)
        settings = {
            one.setting: given(one) if one.word else short(one.value)
            for one in thresholds
            if not one.absent
        }
        if len(settings) > 1:
            told_of = _some(list(settings.values()), "thresholds")
            fixed_before = row["basis"] == "same tries"
            met.setdefault((told_of, fixed_before), []).append(evidence.short(row["arm"]))
    return [
        {
            "arms": _some(arms, "clips of the table"),
            "several": len(arms) > 1,
            "thresholds": told,
            "fixed": fixed_before,
        }
        for (told, fixed_before), arms in met.items()
    ]


def _some(names: Sequence[str], what: str) -> str:
    """The names, or how many if they are many."""
    return listed(names) if len(names) <= NAMED else f"{len(names)} {what}"


def _range(shares: Sequence[float]) -> str:
    known = sorted(one for one in shares if not math.isnan(one))
    if not known:
        return ""
    least, most = percent(known[0]), percent(known[-1])
    return least if least == most else f"{least.removesuffix(' %')} to {most}"


def _by_optimizer(evidence: Evidence, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Of each optimizer of the headline's schedule, how its comparisons came out."""
    told_of: dict[str, dict[str, Any]] = {}
    for row in rows:
        name = evidence.short(row["partner"])
        if evidence.of_headline(row["arm"]) and row["basis"] == "same tries":
            counts = told_of.setdefault(
                name, {"name": name, "better": 0, "worse": 0, "same": 0, "open": 0, "all": 0}
            )
            kind = SIGNS.get(row["verdict"], ("", ""))[1]
            counts["all"] += 1
            if kind in counts:
                counts[kind] += 1
    return list(told_of.values()) if len(told_of) > 1 else []


def _at_an_end(evidence: Evidence, row: Row) -> bool:
    """Whether the learning rate that is chosen most often is the least or the greatest tried."""
    axis = evidence.axes.get((Task.of(row), row["arm"], row["grade"]))
    if axis is None or len(axis.points) < 2:
        return False
    return row["lr"] in (axis.points["lr"].min(), axis.points["lr"].max())


def _learned(evidence: Evidence) -> str:
    ended = evidence.cells["outcome"].eq(Outcome.LEARNED).sum()
    return f"{percent(float(ended) / len(evidence.cells))} of all runs learned"


def _scale(row: Row) -> float:
    """By what leads on different metrics are compared: the margin, if there is one."""
    return row["margin"] if row["margin"] > 0 else 1.0


def named(evidence: Evidence, row: Row) -> dict[str, Any]:
    """A comparison as a sentence names it."""
    places = decimals_of(evidence, Task.of(row))[1]
    known = not math.isnan(row["difference"])
    gain = signed(row["difference"], places) + without_stopping_of(evidence, row) if known else ""
    return {
        "row": row["row"],
        "arm": evidence.short(row["arm"]),
        "label": evidence.labels[Task.of(row)],
        "gain": gain,
    }


def _lead(evidence: Evidence, row: Row) -> str:
    places = decimals_of(evidence, Task.of(row))[1]
    metric = metric_words(evidence.about(Task.of(row)))
    return (
        f"{evidence.short(row['instead'])} on {evidence.labels[Task.of(row)]}, by "
        f"{fixed(row['instead_gain'], places)} {metric} over {evidence.short(row['arm'])}"
    )


def _ran(evidence: Evidence) -> list[dict[str, Any]]:
    """What was run, task by task."""
    told_of = []
    for task in evidence.tasks:
        cells, entry = evidence.of(evidence.cells, task), evidence.components["workloads"]
        told_of.append(
            {
                "label": evidence.labels[task],
                "steps": f"{int(cells['steps'].max()):,}" if cells["steps"].notna().any() else DASH,
                "batch": task.batch,
                "parameters": f"{entry.get(task.problem, {}).get('parameters', 0):,}",
            }
        )
    return told_of


def _conditions(evidence: Evidence) -> dict[str, str]:
    devices = sorted({f"{task.device}, {task.dtype}" for task in evidence.tasks})
    met = sorted(evidence.schedules, key=lambda one: one != (evidence.schedule or "constant"))
    return {"devices": listed(devices), "schedules": listed([f"`{one}`" for one in met])}
