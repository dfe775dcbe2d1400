"""The section on what other thresholds would have clipped."""

from __future__ import annotations

from clipbench.analysis.whatif import PERCENTILES, THRESHOLDS, of_arms
from clipbench.report.evidence import Evidence
from clipbench.report.frames import foldable
from clipbench.report.parts import Section, Table
from clipbench.report.prose import paragraphs
from clipbench.report.words import percent, short
from clipbench.task import Task

TITLE = "What would another threshold have clipped?"


def section(evidence: Evidence) -> Section:
    """Norms of the raw gradient without a clip, and the share of the steps above thresholds."""
    rows = of_arms(evidence.chosen_curves, evidence.drawn, evidence.arms)
    if rows.empty:
        return Section("whatif", TITLE, [])
    table = Table(
        evidence.name("tables", "what-if"),
        "Without a clip, at the setting that is chosen: percentiles of the gradient's norm over "
        "the steps, and the share of the steps that a norm clip at each threshold would have "
        "clipped.",
        [
            *("problem", "optimizer", "lr", "runs"),
            *(f"{one} %" for one in PERCENTILES),
            *(f"above {one:g}" for one in THRESHOLDS),
        ],
        [
            [
                evidence.labels[Task.of(row)],
                evidence.short(row["arm"]),
                short(row["lr"]),
                f"{row['runs']:,}",
                *(short(row[f"p{one}"]) for one in PERCENTILES),
                *(percent(row[f"at_{one:g}"]) for one in THRESHOLDS),
            ]
            for row in rows.to_dict("records")
        ],
        rows,
        words=2,
    )
    spread = (rows["p99"] / rows["p50"]).replace(float("inf"), float("nan"))
    told = paragraphs(
        "whatif",
        rows=len(rows),
        runs=int(rows["runs"].max()),
        least=float(rows["p90"].min()),
        most=float(rows["p90"].max()),
        spread=float(spread.median()),
    )
    return Section("whatif", TITLE, [*told, foldable(table)])
