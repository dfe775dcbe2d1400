"""The answer to the reader's question "should I clip?", in sentences and one table, in words that
the intervals support.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from clipbench import selection
from clipbench.analysis.cells import plain
from clipbench.analysis.form import norm_over_value
from clipbench.figures.style import given
from clipbench.report.answer_table import decimals_of, table, without_stopping_of
from clipbench.report.conclusion import NAMED, concluded
from clipbench.report.evidence import Evidence
from clipbench.report.parts import Part
from clipbench.report.problems import WHAT
from clipbench.report.prose import paragraphs
from clipbench.report.words import (
    DASH,
    Row,
    fixed,
    listed,
    percent,
    seconds,
    short,
    signed,
)
from clipbench.schema import Outcome, Role, Verdict
from clipbench.task import TASK, THRESHOLD, Task, Threshold

FALLS = -0.5  # a rank correlation below this is called a fall


def told(evidence: Evidence) -> Sequence[Part]:
    """The reader's question, answered from the numbers: a sentence for each part of it, a table,
    and what was run.
    """
    nothing = _nothing(evidence)
    if nothing:
        return paragraphs("nothing", why=nothing)
    rows = rows_of(evidence)
    return [
        *paragraphs("conclusion", **concluded(evidence, rows)),
        *paragraphs("answer", **_numbers(evidence, rows), **_cost(evidence)),
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
    lower, others = evidence.lower, evidence.other_thresholds
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
        "others": len(others),
        "others_at": "strict" if others["grid"].any() else "clips",
        "acted": _range([row["fired"] for row in rows]),
        "edges": sum(_at_an_end(evidence, row) for row in rows),
        "budget": len(budget) and int(evidence.budget.groupby(["problem", "arm"]).ngroups),
        "budget_ahead": sum(not math.isnan(row["tries_until"]) for row in rows),
        "rivals": len(rivals),
        "rivals_ahead": sum(row["instead_low"] > 0 for row in rivals),
        "lower": len(lower),
        "lower_better": int((lower["low"] > 0).sum()),
        "lower_worse": int((lower["high"] < 0).sum()),
        "acted_seldom": all(row["fired"] <= selection.MOST for row in rows),
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


def _at_an_end(evidence: Evidence, row: Row) -> bool:
    """Whether the learning rate that is chosen most often is the least or the greatest tried."""
    axis = evidence.axes.get((Task.of(row), row["arm"], row["grade"]))
    if axis is None or len(axis.points) < 2:
        return False
    return row["lr"] in (axis.points["lr"].min(), axis.points["lr"].max())


def _learned(evidence: Evidence) -> str:
    ended = evidence.cells["outcome"].eq(Outcome.LEARNED).sum()
    return f"{percent(float(ended) / len(evidence.cells))} of all runs learned"


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


def _cost(evidence: Evidence) -> dict[str, Any]:
    """What a step costs more with a clip, in percent, and where least and most: ``ends`` names
    both if they are of two problems.
    """
    keys = [*TASK, "environment", "optimizer"]
    costs = evidence.costs
    bare = costs.loc[costs["clip"] == "none", [*keys, "step_50"]].drop_duplicates(keys)
    timed = costs[costs["ratio"].notna()].merge(bare, on=keys, how="left", suffixes=("", "_bare"))
    timed = timed.sort_values("ratio", kind="stable")
    ends = (
        [_timed(evidence, row) for row in timed.iloc[[0, -1]].to_dict("records")]
        if len(timed)
        else []
    )
    told = [fixed(100 * (ratio - 1), 0) for ratio in timed["ratio"]]
    return {
        "cheapest": told[0] if told else "",
        "dearest": told[-1] if told else "",
        "ends": ends if timed["problem"].nunique() > 1 and ends[0] != ends[1] else [],
        "longer_less": timed["problem"].nunique() > 1
        and bool(timed["ratio"].corr(timed["step_50_bare"], method="spearman") < FALLS),
        "machines": timed["environment"].nunique(),
    }


def _timed(evidence: Evidence, row: Row) -> str:
    """A timed problem with its size, and how long a step of it takes without a clip."""
    label = evidence.labels.get(Task.of(row), str(row["problem"]))
    about = evidence.components.get("workloads", {}).get(row["problem"], {})
    size = f"{about['parameters']:,} parameters, " if about.get("parameters") else ""
    return f"{label} ({size}{seconds(row['step_50_bare'])} a step)"


def _ran(evidence: Evidence) -> list[dict[str, Any]]:
    """What was run, task by task."""
    told_of = []
    for task in evidence.tasks:
        cells = evidence.of(evidence.cells, task)
        entry = evidence.components["workloads"].get(task.problem, {})
        told_of.append(
            {
                "label": evidence.labels[task],
                "what": WHAT.get(entry.get("name", ""), ""),
                "steps": f"{int(cells['steps'].max()):,}" if cells["steps"].notna().any() else DASH,
                "batch": task.batch,
                "parameters": f"{entry.get('parameters', 0):,}",
            }
        )
    return told_of


def _conditions(evidence: Evidence) -> dict[str, str]:
    devices = sorted({f"{task.device}, {task.dtype}" for task in evidence.tasks})
    met = sorted(evidence.schedules, key=lambda one: one != (evidence.schedule or "constant"))
    return {"devices": listed(devices), "schedules": listed([f"`{one}`" for one in met])}
