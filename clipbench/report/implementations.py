"""The part of the section on cost that `clipbench throughput` fills: what to use at which model
size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from clipbench.analysis.implementations import DEFAULT, MACHINE, implementations, quickest
from clipbench.figures.implementations import draw
from clipbench.report.evidence import Evidence
from clipbench.report.frames import timed_picture
from clipbench.report.parts import Heading, List, Part, Picture, Table, Text
from clipbench.report.words import (
    DASH,
    between,
    decimals,
    fixed,
    listed,
    number_of_bytes,
    percent,
    plural,
    seconds,
    short,
)
from clipbench.statistics import Interval

# part → in words
WHAT = {"update": "Clip and step alone, on given gradients", "step": "Whole training step"}
UNBEATEN, UNCLEAR = "torch's default, which nothing beats,", "too few valid blocks to tell"
COUNTED = ("kernels", "synchronisations")
LARGE = 10**6  # parameters: below, calls take the time, and not memory


def subsection(evidence: Evidence) -> list[Part]:
    """Sentences, a figure and tables for every machine, thread count and part; empty if there
    are only a run's own timings.
    """
    table = implementations(evidence.throughput)
    if table.empty:
        return []
    best = quickest(table)
    parts: list[Part] = [
        Heading("Which implementation to use"),
        Text(
            "The same clip and step, written in different ways: `origin` is a loop by hand, "
            "`torch` what torch does where nothing is asked, `loop` and `foreach` its functions "
            "tensor by tensor and all at once, `fused` the optimizer's fused step, which takes a "
            "norm clip as `grad_scale`, `fast` a call of `clipbench.fast`, `fast-compiled` the "
            "same by kernels of its own, `flat` torch's default over one flat tensor, and "
            "`compiled` one program over it. All leave the same weights. Blocks ran side by side "
            "in a shuffled order; ratios are medians of those of a round, with their "
            "order-statistic intervals. The floor is the least that must be read and written, at "
            "the rate of a sum (on CUDA a copy) over as much memory in the same round."
        ),
    ]
    for values, timings in table.groupby(MACHINE, dropna=False, sort=True):
        machine = dict(zip(MACHINE, values, strict=True))
        for part, what in WHAT.items():
            mine = timings[timings["part"] == part]
            if mine.empty:
                continue
            here = best.merge(mine[[*MACHINE, "part"]].drop_duplicates(), on=[*MACHINE, "part"])
            label = ", ".join(filter(None, [what, _where(evidence, machine, table)]))
            parts.append(Heading(label))
            if part == "update" and len(here):
                parts.append(List([Text(_sentence(size, rows)) for size, rows in _by_size(here)]))
            if np.isfinite(mine["relative"]).any():
                parts.append(_picture(evidence, label, mine))
            parts.append(_table(evidence, label, mine, here))
    return parts


def _where(evidence: Evidence, machine: Mapping[str, Any], table: pd.DataFrame) -> str:
    """Threads; device, dtype and machine if there are several."""
    words = (
        ["one thread" if machine["threads"] == 1 else f"{int(machine['threads'])} threads"]
        if machine["device"] == "cpu"
        else []
    )
    words += [
        str(machine[name])
        for name in ("device", "dtype")
        if len(set(table[name])) > 1 or machine[name] == "cuda"
    ]
    if len(set(table["environment"])) > 1:
        words.append(evidence.machine(str(machine["environment"])))
    return ", ".join(words)


def _by_size(best: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The rows of each size, from the fewest parameters to the most."""
    keys = ["parameters", "tensors", "size"]
    return [(str(key[-1]), rows) for key, rows in best.groupby(keys, sort=True)]


def _sentence(size: str, rows: pd.DataFrame) -> str:
    """What to use at one size, clip by clip."""
    said = []
    for clip, mine in rows.groupby("clip", sort=False):
        by: dict[str, list[str]] = {}
        for row in mine.to_dict("records"):
            use, gain = _use(row)
            by.setdefault(use, []).append(row["optimizer"] + gain)
        uses = [
            f"{use} with {listed(by[use])}"
            for use in sorted(by, key=lambda use: (use in (UNBEATEN, UNCLEAR), use))
        ]
        said.append(f"For {clip}, {'; '.join(uses)}.")
    return f"**{size}**: {' '.join(said)}"


def _use(row: Mapping[str, Any]) -> tuple[str, str]:
    """What to use with one optimizer and clip, and what of torch's default's time it takes."""
    if row["implementation"] == DEFAULT or row["best_relative_high"] >= 1:
        return UNBEATEN, ""
    if math.isnan(row["best_relative_high"]):
        return UNCLEAR, ""
    return f"`{row['implementation']}`", f" (×{short(row['best_relative'])})"


def _picture(evidence: Evidence, label: str, mine: pd.DataFrame) -> Picture:
    caption = (
        f"{label}: time of each implementation over that of torch's default for the same "
        f"optimizer and clip."
    )
    note = " Bars are 95 % intervals of the median."
    return timed_picture(evidence, draw, mine, caption, "implementations", label, note=note)


def _table(evidence: Evidence, label: str, mine: pd.DataFrame, best: pd.DataFrame) -> Table:
    """The quickest implementation beside torch's default; the CSV has all of them."""
    counted = mine["kernels"].notna().any()
    rows = [
        [
            size if number == 0 else "",
            row["optimizer"],
            row["clip"],
            seconds(row["default_seconds_50"]),
            _ratio(row, "default_ratio"),
            row["implementation"],
            "1" if row["implementation"] == DEFAULT else _ratio(row, "best_relative"),
            _ratio(row, "best_ratio"),
            _shares(row),
            f"{row['best_samples_per_second']:,.0f}"
            if math.isfinite(row["best_samples_per_second"])
            else DASH,
            number_of_bytes(row["best_peak_bytes"]),
            *(
                f"{short(row[f'default_{name}'])} → {short(row[f'best_{name}'])}"
                for name in COUNTED
                if counted
            ),
        ]
        for size, group in _by_size(best)
        for number, row in enumerate(group.to_dict("records"))
    ]
    head = [
        "size",
        "optimizer",
        "clip",
        "torch's default",
        "over no clip",
        "quickest",
        "over torch's default",
        "over no clip",
    ]
    head += ["share of the floor", "samples/s", "peak memory", *(COUNTED if counted else ())]
    left = plural(int(mine["invalid"].sum()), "invalid block")
    caption = (
        f"{label}: the quickest implementation beside torch's default; the CSV has every "
        f"implementation. {left} left out."
    )
    return Table(
        evidence.name("tables", "implementations", label),
        caption,
        head,
        rows,
        mine.reset_index(drop=True),
        words=3,
    )


def _shares(row: Mapping[str, Any]) -> str:
    """The share of the floor that torch's default reaches, and the quickest, where memory is
    what takes the time.
    """
    if row["parameters"] < LARGE or not math.isfinite(row["best_share"]):
        return DASH
    return f"{percent(row['default_share'])} → {percent(row['best_share'])}"


def _ratio(row: Mapping[str, Any], name: str) -> str:
    interval = Interval(row[name], row[f"{name}_low"], row[f"{name}_high"])
    places = max(2, decimals([interval.estimate]) - 1)
    return f"{fixed(interval.estimate, places)} {between(interval, places)}".strip()
