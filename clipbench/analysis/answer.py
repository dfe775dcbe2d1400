"""The answer in one table: a row per clip of the study and task, with its verdict and setting, what
it gains, costs and risks, and what else would do better.

A row is one comparison at the same number of tries. A clip that has no threshold fixed in advance
has one as well, from the settings that were chosen: without a verdict, since it had more tries.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from clipbench import statistics, tuning
from clipbench.analysis.budget import ahead
from clipbench.analysis.cells import Components, table_of, workload
from clipbench.analysis.headline import Axis, carried, gap_of
from clipbench.schema import Reading, Verdict
from clipbench.selection import POINT
from clipbench.task import ARM, Task, Threshold

MEDIAN = "median size in the pilot"
ORDER = {
    str(verdict): place
    for place, verdict in enumerate(
        (
            *(Verdict.BETTER, Verdict.PERHAPS_BETTER, Verdict.WORSE, Verdict.PERHAPS_WORSE),
            *(Verdict.SAME, Verdict.UNDECIDED, Verdict.NEVER_FIRED, Verdict.INCOMPLETE),
        )
    )
}
COMPARED = ["verdict", "n", "difference", "low", "high", "family_low", "family_high", "margin"]
COMPARED += ["smallest", "needed", "family"]
COLUMNS = [*ARM, "partner", "grade", "parameters", "basis", *COMPARED, "estimate", "without"]
COLUMNS += ["lr", "lr_without", *POINT[1:], "of_median", "tries", "tries_without", "tries_until"]
COLUMNS += [
    "shift",
    "shift_low",
    "shift_high",
    "beyond",
    "carried",
    "lost",
    "lost_without",
    "fired",
    "kept",
    "cosine",
]
COLUMNS += ["share", "share_without", "lost_low", "lost_high", "lost_without_low"]
COLUMNS += ["lost_without_high", "fired_low", "fired_high", "cost_blocks"]
COLUMNS += ["cost", "cost_low", "cost_high", "instead", "instead_gain", "instead_low"]
COLUMNS += ["instead_high"]


def answers(
    found: Mapping[tuple[Task, str, str], Axis],
    frames: Mapping[str, pd.DataFrame],
    components: Components,
    pilots: Mapping[str, Mapping[str, float]],
) -> pd.DataFrame:
    """A row per clip and task, those that decide first.

    ``basis`` is ``same tries`` or ``tuned``. ``lr`` and the threshold are chosen most often,
    ``lr_without`` without the clip; ``of_median`` is the threshold as a multiple of the pilot's
    median size. ``lost`` is the expected share of seeds that do not learn, ``tries_until`` the
    number of tries from which on a tuned threshold is ahead, ``shift`` the decades by which the
    clip moves the learning rate at which half of the seeds are lost; ``beyond`` says that it is
    ``more`` or ``less`` than that, for one of both lies beyond the axis, or that ``both`` do.
    ``carried`` says that a difference beyond the margin is less than half without one of the seeds.
    ``share`` is that of the choices which fall on ``lr``; ``fired_low`` and ``fired_high`` are the
    least and the most of a seed there; ``lost`` has Wilson's interval over ``n`` seeds. ``cost`` is
    the ratio of step times over ``cost_blocks``, on several machines the largest. ``instead`` is
    the best arm without a clip on another optimizer or schedule, and ``instead_gain`` its
    difference from the clip, positive if that arm is better; it is the best of several, so that its
    interval flatters it.

    :param frames: ``arms``, ``levels``, ``gaps``, ``robust``, ``budget``, ``costs`` as the
        questions have them, ``results`` and ``compared`` of the settings that were chosen.
    """
    keyed = {name: _by_arm(frames[name]) for name in ("robust", "costs")}
    rows = [_of_gap(row, found, frames, components) for row in frames["gaps"].to_dict("records")]
    judged = {(Task.of(row), row["arm"]) for row in rows if row["verdict"] != Verdict.INCOMPLETE}
    tuned = _tuned(frames, components)
    rows = [
        row for row in rows if (key := (Task.of(row), row["arm"])) in judged or key not in tuned
    ]
    rows += [row for key, row in tuned.items() if key not in judged]
    curves = dict(iter(frames["budget"].groupby(ARM, sort=False)))
    for row in rows:
        key = tuple(row[name] for name in ARM)
        moved, paid = keyed["robust"].get(key, {}), keyed["costs"].get(key, {})
        row |= {
            "parameters": components.get("workloads", {})
            .get(row["problem"], {})
            .get("parameters", math.nan),
            "of_median": of_median(row, pilots, frames["arms"], components),
            "tries_until": ahead(curves[key]) if key in curves else math.nan,
            "shift": moved.get("shift", math.nan),
            "shift_low": moved.get("low", math.nan),
            "shift_high": moved.get("high", math.nan),
            "beyond": _beyond(moved),
            "cost": paid.get("ratio", math.nan),
            "cost_low": paid.get("low", math.nan),
            "cost_high": paid.get("high", math.nan),
            "cost_blocks": paid.get("blocks", math.nan),
            **_lost_bounds(row),
        }
    rows.sort(key=lambda row: ORDER.get(row["verdict"], len(ORDER)))
    return table_of(rows, COLUMNS)


def _beyond(moved: Mapping[str, Any]) -> str:
    """What the ends of the axis hide of a shift."""
    mine, other = (
        (moved.get(f"{side}above", False), moved.get(f"{side}below", False))
        for side in ("", "partner_")
    )
    if any(mine) and any(other):
        return "both"
    if mine[0] or other[1]:
        return "more"
    return "less" if mine[1] or other[0] else ""


def _by_arm(frame: pd.DataFrame) -> dict[tuple[Any, ...], dict[str, Any]]:
    return {tuple(row[name] for name in ARM): row for row in frame.to_dict("records")}


def _of_gap(
    row: dict[str, Any],
    found: Mapping[tuple[Task, str, str], Axis],
    frames: Mapping[str, pd.DataFrame],
    components: Components,
) -> dict[str, Any]:
    """A comparison at the same number of tries, with what both arms reach."""
    task, levels = Task.of(row), _levels(frames["levels"], row)
    mine, other = levels.get(row["arm"], {}), levels.get(row["partner"], {})
    one = {name: row[name] for name in (*ARM, "partner", "grade", *COMPARED)}
    one |= {"basis": "same tries", "verdict": str(row["verdict"])}
    sides = [
        found.get((task, str(row[one_of]), str(row["grade"]))) for one_of in ("arm", "partner")
    ]
    one["carried"] = row["margin"] < abs(row["difference"]) and carried(sides)
    one |= {name: mine.get(name, math.nan) for name in (*POINT, "estimate", "tries", "lost")}
    one |= {name: mine.get(name, math.nan) for name in ("fired", "kept", "cosine")}
    beside = ("lr", "tries", "lost", "share")
    one |= {f"{name}_without": other.get(name, math.nan) for name in beside} | {
        "without": other.get("estimate", math.nan)
    }
    one |= {"share": mine.get("share", math.nan), **_fired_range(sides[0], one["lr"])}
    return one | _instead(row, task, levels, found, frames["arms"], components)


def _fired_range(axis: Axis | None, lr: float) -> dict[str, float]:
    """The least and the most that a clip fired in a run at one learning rate."""
    runs = (
        np.empty(0)
        if axis is None
        else axis.fired[axis.points["lr"].to_numpy(dtype=float) == lr][:, axis.known]
    )
    runs = runs[np.isfinite(runs)]
    ends = (runs.min(), runs.max()) if runs.size else (math.nan, math.nan)
    return dict(zip(("fired_low", "fired_high"), map(float, ends), strict=True))


def _lost_bounds(row: Mapping[str, Any]) -> dict[str, float]:
    """What the number of seeds allows of the shares that are lost."""
    found = dict[str, float]()
    for name in ("lost", "lost_without"):
        known = row["n"] > 0 and not math.isnan(row[name])
        bounds = (
            statistics.share_interval(min(1.0, row[name]) * row["n"], int(row["n"]))
            if known
            else statistics.NOTHING
        )
        found |= {f"{name}_low": bounds.low, f"{name}_high": bounds.high}
    return found


def _levels(levels: pd.DataFrame, row: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Arm → what it reaches in the row's task, by the row's grade."""
    mine = levels
    for name in (*Task._fields, "grade"):
        mine = mine[mine[name] == row[name]]
    return {one["arm"]: one for one in mine.to_dict("records")}


def _instead(
    row: Mapping[str, Any],
    task: Task,
    levels: Mapping[str, Mapping[str, Any]],
    found: Mapping[tuple[Task, str, str], Axis],
    arms: pd.DataFrame,
    components: Components,
) -> dict[str, Any]:
    """The best arm without a clip that is not the partner, beside the clip."""
    sign = 1 if workload(components, task.problem)["higher_is_better"] else -1
    unclipped = set(arms.loc[arms["clip"] == "none", "arm"]) - {row["partner"]}
    known = {
        arm: sign * level["estimate"]
        for arm, level in levels.items()
        if arm in unclipped and not math.isnan(level["estimate"])
    }
    if not known:
        return {"instead": ""} | dict.fromkeys(COLUMNS[-3:], math.nan)
    best = max(known, key=lambda arm: (known[arm], arm))
    sides = [found.get((task, arm, str(row["grade"]))) for arm in (best, str(row["arm"]))]
    gap, error, seeds = gap_of(sides)
    bounds = tuning.interval(gap, error, seeds)
    return {
        "instead": best,
        "instead_gain": gap,
        "instead_low": bounds.low,
        "instead_high": bounds.high,
    }


def _tuned(
    frames: Mapping[str, pd.DataFrame], components: Components
) -> dict[tuple[Task, str], dict[str, Any]]:
    """(Task, arm) → the comparison of the settings that were chosen, on report seeds."""
    chosen = frames["results"]
    chosen = _by_arm(chosen[chosen["reading"] == Reading.ALL])
    compared, tries = frames["compared"], _by_arm(frames["tries"])
    rows = {}
    for row in compared[compared["reading"] == Reading.ALL].to_dict("records"):
        key = tuple(row[name] for name in ARM)
        partner = (*key[:-1], row["baseline"])
        mine, other = chosen.get(key), chosen.get(partner)
        if mine is None or other is None:
            continue
        margin = workload(components, row["problem"])["margin"]
        one = {name: row[name] for name in ARM} | dict.fromkeys(COLUMNS[-4:], math.nan)
        one |= dict.fromkeys(COMPARED, math.nan) | {"partner": row["baseline"]}
        one |= {"carried": False}
        one |= {"grade": "last", "basis": "tuned", "verdict": row["note"] or "", "family": ""}
        one |= {"difference": row["estimate"], "low": row["low"], "high": row["high"]}
        one |= {"n": row["n"], "margin": math.nan if margin is None else float(margin)}
        one |= {name: mine[name] for name in POINT} | {"estimate": mine["estimate"]}
        one |= {"without": other["estimate"], "lr_without": other["lr"], "instead": ""}
        one |= {"lost": _lost(mine), "lost_without": _lost(other)}
        one |= {"tries": tries.get(key, {}).get("tries", math.nan)}
        one |= {"tries_without": tries.get(partner, {}).get("tries", math.nan)}
        one |= {"fired": mine["clipped_fraction"], "kept": math.nan, "cosine": math.nan}
        one |= dict.fromkeys(("share", "share_without", "fired_low", "fired_high"), math.nan)
        rows[Task.of(row), row["arm"]] = one
    return rows


def _lost(row: Mapping[str, Any]) -> float:
    """The share of the finished seeds that did not learn."""
    ended = row["n"] - row["failed"] - row["missing"]
    return 1 - row["learned"] / ended if ended else math.nan


def of_median(
    row: Mapping[str, Any],
    pilots: Mapping[str, Mapping[str, float]],
    arms: pd.DataFrame,
    components: Components,
) -> float:
    """The threshold as a multiple of the pilot's median size, if that is stored."""
    threshold = Threshold.of(row)
    if threshold.absent or threshold.is_relative:
        return threshold.relative
    version = components.get("workloads", {}).get(row["problem"], {}).get("version")
    sizes = pilots.get(f"{Task.of(row).label}, version {version}", {})
    label = arms.loc[arms["arm"] == row["arm"], "clip_label"].iloc[0]
    clip = components.get("clips", {}).get(label, {}).get("version")
    size = sizes.get(f"{label}, version {clip}", math.nan)
    return threshold.value / size
