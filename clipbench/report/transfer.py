"""The section on thresholds carried from one condition to another."""

from __future__ import annotations

import math

import pandas as pd

from clipbench.analysis.transfer import bases, carried, pairs
from clipbench.report.evidence import Evidence
from clipbench.report.parts import Part, Section, Table, Text
from clipbench.report.words import (
    Row,
    between,
    decimals,
    fixed,
    gap_places,
    interval_of,
    percent,
    plural,
    short,
    signed,
)

BASIS_WORDS = {"absolute": "number", "relative": "multiple"}


def section(evidence: Evidence) -> Section:
    """What a threshold chosen under one condition loses under another, as a number and as a
    multiple.
    """
    losses = carried(evidence.cells)
    title = "Does a threshold hold elsewhere?"
    if losses.empty:
        return Section("transfer", title, [])
    compared = bases(losses)
    parts: list[Part] = [
        Text(
            "A threshold that was chosen under one condition is used under another, and compared "
            "with the one chosen there. As a **number** it stays what it is; as a **multiple** "
            "of the median size of the pilot's gradient it is another number there. Conditions "
            "differ in the workload's settings or the batch size, and each threshold has the "
            "learning rate that suits it best. All choices for a seed are made on the other "
            "selection seeds, so that no threshold is judged by the runs that chose it. A loss is "
            "the best validation loss of a run, and infinite if the run was unstable. Intervals "
            "are 95 %; the seeds share most of their choices, and the arms most of their problems, "
            "so that they are narrow rather than wide."
        ),
        _bases_table(evidence, compared),
    ]
    parts += [
        _pairs_table(evidence, workload, rows)
        for workload, rows in pairs(losses).groupby("workload", sort=True)
    ]
    return Section("transfer", title, parts)


def _bases_table(evidence: Evidence, compared: pd.DataFrame) -> Table:
    places, digits = decimals([*compared["absolute"], *compared["relative"]]), gap_places(compared)
    rows = [
        [
            str(row["workload"]),
            str(row["arm"]),
            f"{plural(int(row['pairs']), 'pair')} × {int(row['n'])}",
            *(fixed(row[basis], places) for basis in BASIS_WORDS),
            _share(row["unstable"], row["carries"]),
            _share(row["relative_unstable"], row["carries"]),
            _gap(row, digits),
        ]
        for row in compared.to_dict("records")
    ]
    head = [
        "workload",
        "arm",
        "conditions × seeds",
        "lost as a number",
        "lost as a multiple",
    ]
    head += ["unstable as a number", "unstable as a multiple", "the multiple loses less by"]
    caption = (
        "Number against multiple. Lost: validation loss with the carried threshold, above that "
        "with the one chosen where it is used, in the median of the pairs of conditions that "
        "both have and of the seeds. Unstable: carries whose run was unstable where the one with "
        "its own threshold was not. The last column is paired, seed by seed."
    )
    return Table(evidence.name("tables", "transfer"), caption, head, rows, compared, words=2)


def _pairs_table(evidence: Evidence, workload: str, compared: pd.DataFrame) -> Table:
    digits = gap_places(compared)
    rows = [
        [
            str(row["arm"]),
            BASIS_WORDS[row["basis"]],
            f"{row['source']}, batch {row['source_batch']}",
            f"{row['problem']}, batch {row['batch']}",
            _threshold(row, "carried"),
            _threshold(row, "own"),
            percent(row["agreed"]),
            f"{int(row['unstable'])}, {int(row['own_unstable'])} of {int(row['n'])}",
            _gap(row, digits),
        ]
        for row in compared.to_dict("records")
    ]
    head = [
        "arm",
        "threshold as a",
        "chosen at",
        "used at",
        "carried",
        "chosen there",
        "the same",
        "unstable",
        "loses",
    ]
    caption = (
        f"{workload}: every pair of tasks. Thresholds are those chosen most often, a multiple "
        "with ×; the same: on how many seeds. Unstable: seeds whose run was, with the carried "
        "threshold and with the one chosen there. Loses: validation loss above that of the "
        "threshold chosen there, a paired mean, or median where a run was unstable; below zero "
        "the carried one is better."
    )
    return Table(
        evidence.name("tables", "transfer", workload), caption, head, rows, compared, words=4
    )


def _threshold(row: Row, name: str) -> str:
    return short(row[name]) + ("×" if row["basis"] == "relative" else "")


def _share(count: float, total: float) -> str:
    return f"{int(count)} of {int(total)}"


def _gap(row: Row, places: int) -> str:
    """A paired difference with what bounds it has."""
    if row["statistic"] == "incomplete":
        return "incomplete"
    interval = interval_of(row)
    words = signed(interval.estimate, places)
    if math.isnan(interval.estimate):
        return "half the seeds lose without bound, half gain"
    if not interval.bounded:
        words += (
            " (all seeds alike)"
            if row["statistic"] == "mean"
            else " (too few seeds for an interval)"
        )
    else:
        words += f" {between(interval, places, sign=True)}"
    return f"median {words}" if row["statistic"] == "median" else words
