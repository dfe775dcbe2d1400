"""The section on how to read the page: the protocol in plain words."""

from __future__ import annotations

from typing import Any

import pandas as pd

from clipbench import selection
from clipbench.analysis.cells import workload
from clipbench.report.evidence import Evidence, flat
from clipbench.report.parts import List, Part, Section, Table, Text
from clipbench.report.words import DASH, listed, metric_note, percent, short
from clipbench.statistics import share_interval


def section(evidence: Evidence) -> Section:
    """The protocol in plain words."""
    protocol = evidence.plan.get("protocol", {})
    phases = sorted(
        {
            (int(seeds["select"]), int(seeds["report"]))
            for seeds in protocol.get("seeds", {}).values()
        }
    )
    seeds = (
        listed([f"{select} selection and {report} report seeds" for select, report in phases])
        or "the seeds that are stored"
    )
    n = max((report for _, report in phases), default=0)
    items = [*_tuning(seeds, protocol.get("untuned")), *_reading(n)]
    return Section(
        "methods",
        "How to read this",
        [List([Text(item) for item in items]), *_workload_table(evidence)],
    )


def _tuning(seeds: str, untuned: dict[str, Any] | None) -> list[str]:
    """How settings are chosen and compared."""
    items = [
        (
            "**The same number of tries.** The headline's settings (every learning rate of an "
            "optimizer, and of a clip one threshold fixed in advance) run on all seeds. No seed "
            "that chooses a setting is one that judges it, and no setting was chosen on the cells "
            f"that are compared. Here: {seeds}."
        ),
        (
            "**Tuned thresholds.** Every other setting of the grid runs on selection seeds; the "
            "setting with the best validation loss (over a run's evaluations, mean over seeds; an "
            "unstable or failed seed counts as ∞) is chosen, and among those within one standard "
            "error of it the one with the best neighbours on the grid. The choice then runs on "
            "report seeds, and is judged on the test split after the last step."
        ),
        (
            "**Same luck.** Initial weights, batch order, noise and data splits depend on the "
            "workload and the seed only, so that every method meets the same, and differences "
            "are paired seed by seed."
        ),
    ]
    if untuned:
        items.append(_untuned(untuned))
    return items


def _untuned(untuned: dict[str, Any]) -> str:
    """The settings that nobody tuned."""
    if "points" not in untuned:
        return (
            f"**Untuned.** Learning rate {short(untuned['lr'])} and, if there is a clip, threshold "
            f"{short(untuned['threshold'])}, whatever the workload."
        )
    told = [
        f"{name} {short(given)}" if isinstance(untuned[kind], dict) else f"all {short(given)}"
        for kind in ("lr", "threshold")
        for name, given in (
            untuned[kind].items() if isinstance(untuned[kind], dict) else [("", untuned[kind])]
        )
    ]
    count = len(untuned["lr"]) if isinstance(untuned["lr"], dict) else 1
    return (
        "**Defaults.** Settings that nobody tuned, as the study's page gives them, whatever the "
        f"workload: learning rates ({listed(told[:count])}) and thresholds "
        f"({listed(told[count:])})."
    )


def _reading(n: int) -> list[str]:
    """What the words and numbers of the page mean."""
    return [
        (
            "**Chosen at an edge.** A choice at the end of its axis extends that axis by two "
            "half-decades, once; a choice still named as lying at an edge may be bettered beyond "
            "it."
        ),
        (
            f"**Never fired.** A clip that altered fewer than {percent(selection.FIRED)} of "
            "steps, and less than one step a run, is reported as doing nothing; a difference "
            "then is one of learning rates, not of clipping."
        ),
        (
            "**Intervals** of the headline are those of a jackknife over seeds. Elsewhere means "
            "have Student's t interval over seeds. Where a seed diverged it has no value: the "
            "result is then the median with such seeds as the worst possible outcome, and the "
            "order-statistic interval. All-or-nothing outcomes are success rates with Wilson's "
            "interval, their differences with Newcombe's. Seeds that failed or are missing, or "
            "have no metric though they did not diverge, are unknown: no interval is given then, "
            "nor where all seeds are alike: without a spread there is nothing to infer from, and "
            "the difference is not testable. Where seeds redraw the splits of one data set, an "
            "interval of a level is one over splits of that data set."
        ),
        (
            "**∞ steps to target** means that fewer than half of the seeds ever met the "
            "workload's target validation loss; in brackets, how many did."
        ),
        (
            f"**Limits.** {_limit(n)} If a method loses one run in twenty, twenty seeds show no "
            "such run in one case of three, and then no interval and no verdict knows of it. A "
            "learning rate called stable was so on the selection seeds only."
        ),
    ]


def _limit(n: int) -> str:
    if not n:
        return "There are no report seeds."
    return (
        f"{n} report seeds see large effects only: 0 of {n} diverged still allows a rate of "
        f"{percent(share_interval(0, n).high)}."
    )


def _workload_table(evidence: Evidence) -> list[Part]:
    entries = evidence.components.get("workloads", {})
    problems = [task[0] for task in evidence.tasks]
    rows = []
    for problem in sorted(set(problems) & set(entries)):
        about = workload(evidence.components, problem)
        rows.append(
            [
                problem,
                str(about.get("about", "")),
                metric_note(about),
                *(
                    DASH if about[name] is None else short(float(about[name]))
                    for name in ("reference_loss", "target", "optimum")
                ),
            ]
        )
    if not rows:
        return []
    head = [
        "workload",
        "what it is",
        "judged by",
        "constant prediction's loss",
        "target",
        "optimum",
    ]
    frame = pd.DataFrame(
        [
            {"problem": problem, **flat(entries[problem])}
            for problem in sorted(set(problems) & set(entries))
        ]
    )
    return [
        Table(evidence.name("tables", "workloads"), "The workloads.", head, rows, frame, words=3)
    ]
