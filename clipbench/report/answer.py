"""The answer to the reader's question "should I clip?", in sentences and one table, in words that
the intervals support.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import pandas as pd

from clipbench.analysis.form import norm_over_value
from clipbench.report import hover
from clipbench.report.evidence import Evidence
from clipbench.report.headline import without_stopping
from clipbench.report.parts import Part, Verdicts
from clipbench.report.prose import paragraphs
from clipbench.report.words import (
    DASH,
    Row,
    between,
    decimals,
    fixed,
    gap_places,
    listed,
    metric_words,
    percent,
    short,
    signed,
)
from clipbench.schema import Outcome, Verdict
from clipbench.statistics import Interval
from clipbench.task import Task, Threshold

SHOWN = 8  # rows of the first table; the others are folded
SIGNS = {  # verdict → sign, and the class of its colour
    str(Verdict.BETTER): ("▲", "better"),
    str(Verdict.PERHAPS_BETTER): ("△", "better"),
    str(Verdict.WORSE): ("▼", "worse"),
    str(Verdict.PERHAPS_WORSE): ("▽", "worse"),
    str(Verdict.SAME): ("=", "same"),
    str(Verdict.UNDECIDED): ("?", "open"),
    str(Verdict.NEVER_FIRED): ("○", "none"),
    str(Verdict.INCOMPLETE): ("…", "none"),
}
UNBROKEN = "\N{NO-BREAK SPACE}"  # a cell does not break before its unit
TORCH = {  # clip → the line of torch that does it
    "norm": "torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm={})",
    "value": "torch.nn.utils.clip_grad_value_(model.parameters(), clip_value={})",
}
HEAD = (
    "problem (metric, parameters)",
    "optimizer, clip",
    "verdict",
    "set",
    "without → with",
    "gain [95 %]",
    "same at margins ≥ (δ here)",
    "tries until ahead",
    "lrs, decades [95 %]",
    "seeds lost",
    "fired; kept",
    "step cost",
    "instead",
)


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
        *_tables(evidence, rows),
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
    places = _places(evidence, Task.of(row))[1]
    known = not math.isnan(row["difference"])
    gain = signed(row["difference"], places) + without_stopping_of(evidence, row) if known else ""
    return {
        "row": row["row"],
        "arm": evidence.short(row["arm"]),
        "label": evidence.labels[Task.of(row)],
        "gain": gain,
    }


def without_stopping_of(evidence: Evidence, row: Row) -> str:
    """Whether the clip of a row is better only without early stopping."""
    gaps = evidence.of(evidence.gaps, Task.of(row))
    mine = gaps[gaps["arm"] == row["arm"]].to_dict("records")
    return without_stopping(mine[0]) if mine and row["basis"] == "same tries" else ""


def _lead(evidence: Evidence, row: Row) -> str:
    places = _places(evidence, Task.of(row))[1]
    metric = metric_words(evidence.about(Task.of(row)))
    return (
        f"{evidence.short(row['instead'])} on {evidence.labels[Task.of(row)]}, by "
        f"{fixed(row['instead_gain'], places)} {metric} over {evidence.short(row['arm'])}"
    )


def _places(evidence: Evidence, task: Task) -> tuple[int, int]:
    """Decimals for levels and for differences of a task."""
    rows = evidence.of(evidence.answers, task)
    return decimals([*rows["estimate"].dropna(), *rows["without"].dropna()]), gap_places(rows)


def _tables(evidence: Evidence, rows: Sequence[Row]) -> list[Part]:
    """The rows that are seen first, and the others."""
    name = evidence.name("tables", "answer")
    built = [_row(evidence, row) for row in rows]
    data = evidence.answers.assign(
        label=[evidence.short(arm) for arm in evidence.answers["arm"]],
        instead=[evidence.short(arm) if arm else "" for arm in evidence.answers["instead"]],
    )
    caption = (
        "Each clip against the same optimizer without it; a gain is positive if the clip is "
        "better. Grey: the margin inside which no difference matters. Lrs: how far the clip moves "
        "the learning rate at which half of the seeds are lost."
    )
    return [
        Verdicts(
            name,
            caption,
            HEAD,
            [row for row, _ in built],
            data,
            words=4,
            marks=[marks for _, marks in built],
        )
    ]


def _row(evidence: Evidence, row: Row) -> tuple[list[str], dict[str, Any]]:
    task = Task.of(row)
    about, (places, digits) = evidence.about(task), _places(evidence, Task.of(row))
    sign, colour = SIGNS.get(row["verdict"], ("·", "none"))
    bounds = Interval(row["difference"], row["low"], row["high"])
    gain = f"{signed(row['difference'], digits)} {between(bounds, digits, sign=True)}".strip()
    words = [
        f"{evidence.labels[task]} ({_metric(about)}{_size(row)})",
        evidence.short(row["arm"]),
        _verdict(evidence, row),
        setting(row),
        f"{fixed(row['without'], places)} → {fixed(row['estimate'], places)}",
        f"{gain}, n = {row['n']}" if row["n"] else DASH,
        fixed(row["smallest"], digits)
        + f" (δ {short(row['margin'])})" * (not math.isnan(row["margin"])),
        _until(evidence, row),
        _moved(row),
        f"{percent(row['lost_without']).removesuffix(' %')} → {percent(row['lost'])}",
        percent(row["fired"]) + f"; {percent(row['kept'])}" * (not math.isnan(row["kept"])),
        DASH if math.isnan(row["cost"]) else f"{signed(100 * (row['cost'] - 1), 0)} %",
        _rival(evidence, row, digits),
    ]
    return [
        one.replace(" %", f"{UNBROKEN}%").replace("n = ", f"n{UNBROKEN}={UNBROKEN}")
        for one in words
    ], {
        "row": row["row"],
        "sign": sign,
        "colour": colour,
        "hover": torch_line(evidence, row),
        "titles": hover.titles(row),
        "strip": _strip(evidence, row),
        "lead": row["instead_low"] > 0,
    }


def _metric(about: Row) -> str:
    return f"{metric_words(about)} {'↑' if about['higher_is_better'] else '↓'}"


def _size(row: Row) -> str:
    """How many parameters the model has, to two digits: ``3.7k``, ``2.1M``."""
    size = row["parameters"]
    if math.isnan(size):
        return ""
    unit, scale = next((pair for pair in (("M", 1e6), ("k", 1e3)) if size >= pair[1]), ("", 1.0))
    return f", {short(float(f'{size / scale:.2g}'))}{unit}"


def _verdict(evidence: Evidence, row: Row) -> str:
    if row["basis"] == "same tries":
        carried = "; one seed carries it" * bool(row["carried"])
        return row["verdict"] + without_stopping_of(evidence, row) + carried
    if row["verdict"]:
        return str(row["verdict"])
    side = "ahead" if row["low"] > 0 else "behind" if row["high"] < 0 else "open"
    return f"no verdict: {side}, with {_tries(row)}"


def _tries(row: Row) -> str:
    return f"{short(row['tries'])} tries against {short(row['tries_without'])}"


def setting(row: Row) -> str:
    """The settings that are chosen most often, without the clip and with it."""
    if math.isnan(row["lr"]):
        return DASH
    threshold, before = Threshold.of(row), row["lr_without"]
    lr = f"lr {short(row['lr'])}"
    if not math.isnan(before) and before != row["lr"]:
        lr = f"lr {short(before)} → {short(row['lr'])}"
    if threshold.absent:
        return lr
    also = []
    if not math.isnan(row["of_median"]):
        also.append(f"{short(row['of_median'])} × median")
    if threshold.is_percentile:
        also.append(f"p{short(threshold.percentile)}")
    return f"{lr}; at {short(threshold.value)}" + f" ({', '.join(also)})" * bool(also)


def _until(evidence: Evidence, row: Row) -> str:
    curves = evidence.of(evidence.budget, Task.of(row))
    if not (curves["arm"] == row["arm"]).any():
        return DASH
    return "never" if math.isnan(row["tries_until"]) else f"{row['tries_until']:.0f}"


def _moved(row: Row) -> str:
    """How far the clip moves the learning rate at which half of the seeds are lost, in decades; a
    bound if one of both lies beyond the axis, and unknown if both do.
    """
    if row["beyond"] == "both":
        return "beyond the axis"
    bounds = Interval(row["shift"], row["shift_low"], row["shift_high"])
    sign = {"more": "≥ ", "less": "≤ "}.get(row["beyond"], "")
    return f"{sign}{signed(bounds.estimate, 2)} {between(bounds, 2, sign=True)}".strip()


def _rival(evidence: Evidence, row: Row, digits: int) -> str:
    if not row["instead"]:
        return DASH
    bounds = Interval(row["instead_gain"], row["instead_low"], row["instead_high"])
    gain = f"{signed(bounds.estimate, digits)} {between(bounds, digits, sign=True)}".strip()
    return f"{evidence.short(row['instead'])}: {gain}"


def torch_line(evidence: Evidence, row: Row) -> str:
    """The line that does the same in a loop of one's own; empty if torch has none."""
    clip = evidence.arms.loc[evidence.arms["arm"] == row["arm"], "clip_label"].iloc[0]
    known = TORCH.get(clip, "")
    return known.format(short(row["threshold"])) if known and row["threshold"] >= 0 else ""


def _strip(evidence: Evidence, row: Row) -> dict[str, float] | None:
    """A gain on an axis from 0 to 100, zero at 50, with its interval and the margin's band."""
    mine = evidence.of(evidence.answers, Task.of(row))
    if math.isnan(row["difference"]):
        return None
    margin = row["margin"] if row["margin"] > 0 else 0.0
    bounds = mine[["low", "high", "difference"]].abs().to_numpy(dtype=float)
    largest = pd.Series(bounds.max(axis=1)).median()
    reach = max(1.2 * (largest if math.isfinite(largest) else 0.0), 1.5 * margin, 1e-12)

    def at(value: float) -> float:
        return round(50 + 50 * max(-1.0, min(1.0, value / reach)), 1)

    low, high = (
        row["difference"] if math.isnan(row[name]) else row[name] for name in ("low", "high")
    )
    return {
        "at": at(row["difference"]),
        "low": at(low),
        "high": at(high),
        "band": at(-margin),
        "width": round(at(margin) - at(-margin), 1),
    }


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
