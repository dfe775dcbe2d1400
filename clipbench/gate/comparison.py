"""Two runs of a study, one by earlier code: which numbers moved, and whether a result is worse.

Cells of the same identity have the same weights, batches and noise. So only what the code has
changed may differ:

1. On the platform that made the baseline every number must have the same bits; on others it must be
   within a tolerance.
2. A number that moved is reported, and is no regression by itself: a sum in another order moves the
   last bits, and if training is chaotic the last bits decide everything. They make a run better as
   often as worse.
3. So if cells of a setting moved, its seeds are tested, in pairs: the metric, the updates to the
   target, how many runs were unstable, and the share of steps in which the clip fired, in both
   directions. All tests of a baseline are one family, corrected by Holm. A significantly worse
   result is a regression. The tests are exact ones on signs and ranks: a mean and its spread say
   nothing if all seeds are worse by the same amount, or one is far off.
4. What passes the tests may still be wrong: a clip with another threshold may learn better. Last
   bits move stable runs within the tolerance, and only few of a setting beyond it. So on the
   platform of the baseline, at the same versions, a setting most of whose stable runs moved is a
   regression, for somebody changed numbers and raised no version; of fewer than six seeds, one run
   is enough. An edited plug-in, whose version is the hash of its file, is only tested. If seeds are
   too few for a test, or the platform is another one, a few seeds that moved are inconclusive.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from clipbench import registry, statistics
from clipbench.gate.verdict import (
    INCONCLUSIVE,
    MOVED,
    NEAR,
    PASS,
    REGRESSION,
    SAME,
    Finding,
    Reason,
    State,
    Verdict,
)
from clipbench.schema import UNSTABLE, Status
from clipbench.task import ARM
from clipbench.tolerance import TOLERANCE, apart

Row = dict[str, Any]

LEVEL = 0.05  # of the whole family
FEWEST_PAIRS = 6  # pairs that differ: fewer cannot reach the level, however much they agree
FIRED = 0.01  # the least difference that counts in the share of steps in which a clip fires
SETTING = (*ARM, "relative", "percentile", "lr")  # what the seeds of one test share
NUMBERS = (
    *(
        "threshold",
        "initial_loss",
        "final_loss",
        "best_loss",
        "metric_value",
        "validation_value",
        "grad_norm_median",
    ),
    *("steps_to_target", "steps"),
)
ARRAYS = ("evaluations", "curve")
WORDS = ("status", "outcome")


@dataclass(frozen=True)
class Run:
    """The cells of one store by identity (that of `learning.paired`), and what its pages say of the
    machines and the components.
    """

    cells: dict[str, Row]
    environments: dict[str, Any]
    components: dict[str, Any]


def compare(name: str, before: Run, now: Run, margin: float) -> Finding:
    """The finding on one study, from its cells before and now.

    :param margin: the least difference of a seed's metric that counts, in the metric's own units.
    """
    common = [cell for cell in before.cells if cell in now.cells]
    states = {cell: _state(before.cells[cell], now.cells[cell], margin) for cell in common}
    counts = {str(state): sum(one == state for one in states.values()) for state in State}
    in_one = len(set(before.cells) ^ set(now.cells))
    moved = {cell for cell, state in states.items() if state == MOVED}
    settings = [cells for cells in _settings(before, common) if moved & set(cells)]
    tests = [test for cells in settings for test in _tests(before, now, cells, margin)]
    corrected = statistics.holm([test.p for test in tests])
    worse = [
        replace(test, p=float(p))
        for test, p in zip(tests, corrected, strict=True)
        if p < LEVEL and test.worse > 0
    ]
    better = sum(
        bool(p < LEVEL and test.worse < 0) for test, p in zip(tests, corrected, strict=True)
    )
    tested = int(np.sum(~np.isnan(corrected)))
    numbers = {
        "cells": len(common),
        "in_one_of_the_two_only": in_one,
        **counts,
        "tests": tested,
        "better": better,
        "worse": [
            {
                "setting": test.setting,
                "measure": test.measure,
                "by": test.worse if np.isfinite(test.worse) else str(test.worse),
                "p": test.p,
            }
            for test in worse
        ],
    }
    platform = _same_platform(before, now)

    def finding(verdict: Verdict, reason: Reason, **details: Any) -> Finding:
        return Finding(
            "learning", name, verdict, reason, numbers, {"same_platform": platform, **details}
        )

    if failed := _newly_failed(before, now, common):
        row = now.cells[failed[0]]
        first = {"problem": row["problem"], "arm": row["arm"], "error": row["reason"]}
        return finding(REGRESSION, Reason.FAILED, failed=len(failed), **first)
    if in_one and counts[SAME] == len(common):
        return finding(REGRESSION, Reason.OTHER_CELLS)
    if worse:
        if platform or _began_alike(before, now, common):
            return finding(REGRESSION, Reason.WORSE)
        return finding(INCONCLUSIVE, Reason.BEGAN_OTHERWISE)
    verdict, reason, details = _verdict_on_moved(before, now, settings, moved, tested, platform)
    return finding(verdict, reason, **details)


def _newly_failed(before: Run, now: Run, cells: Sequence[str]) -> list[str]:
    return [
        cell
        for cell in cells
        if now.cells[cell]["status"] == Status.FAILED != before.cells[cell]["status"]
    ]


def _verdict_on_moved(
    before: Run,
    now: Run,
    settings: Sequence[Sequence[str]],
    moved: set[str],
    tested: int,
    platform: bool,
) -> tuple[Verdict, Reason, dict[str, Any]]:
    """A verdict on stable runs that moved, though not significantly for the worse; its reason, and
    values for its sentence.

    Unstable runs are left out: the last bits decide everything in them, so that it says nothing if
    they move.
    """
    unsaid: list[str] = []
    open_: list[str] = []
    seeds = 0
    for cells in settings:
        stable = [cell for cell in cells if before.cells[cell]["outcome"] not in UNSTABLE]
        shifted = sorted(moved.intersection(stable))
        few = len(cells) < FEWEST_PAIRS
        most = len(stable) >= FEWEST_PAIRS and 2 * len(shifted) > len(stable)
        if (
            (few or most)
            and platform
            and all(_counts_versions(now.cells[cell]) for cell in shifted)
        ):
            unsaid += shifted
        elif shifted and least_p(len(cells)) * max(1, tested) >= LEVEL:
            open_ += shifted
            seeds = min(seeds or len(cells), len(cells))
    if not (unsaid or open_):
        return PASS, Reason.NO_WORSE, {}
    row = before.cells[min(unsaid or open_)]
    told = {
        "stable": len(unsaid or open_),
        "problem": row["problem"],
        "arm": row["arm"],
        "lr": row["lr"],
    }
    if unsaid:
        return REGRESSION, Reason.UNDECLARED, told
    return INCONCLUSIVE, Reason.TOO_FEW_SEEDS, told | {"seeds": seeds}


def _state(then: Row, here: Row, margin: float) -> State:
    """Whether a cell's numbers have the same bits, are within a tolerance, or moved."""
    if any(value_or_none(then[name]) != value_or_none(here[name]) for name in WORDS):
        return MOVED
    pairs = {
        name: (np.array([number(then[name])]), np.array([number(here[name])])) for name in NUMBERS
    }
    pairs |= {name: (then[name], here[name]) for name in ARRAYS if name in then and name in here}
    if all(np.array_equal(old, new, equal_nan=True) for old, new in pairs.values()):
        return SAME
    tolerance = TOLERANCE[str(here["dtype"])]
    metric = pairs.pop("metric_value")
    near = all(apart(old, new) <= tolerance for old, new in pairs.values())
    return NEAR if near and apart(*metric, relative=False) <= margin else MOVED


def value_or_none(value: Any) -> Any:
    """A stored value; None if it is NaN or missing."""
    return None if value is None or value != value or str(value) == "<NA>" else value  # noqa: PLR0124 - NaN alone differs from itself


def number(value: Any) -> float:
    """A stored number; NaN if there is none."""
    return np.nan if value_or_none(value) is None else float(value)


def _same_platform(before: Run, now: Run) -> bool:
    """Whether the same bits can be asked for: one processor, one torch, one thread, on the CPU,
    by the same engine.
    """

    def platforms(run: Run) -> set[Any]:
        machines = {
            key: (page.get("processor"), page.get("libraries", {}).get("torch"))
            for key, page in run.environments.items()
        }
        return {
            (machines.get(row["environment"]), row["threads"], row["device"], row["engine"])
            for row in run.cells.values()
        }

    both = platforms(before) | platforms(now)
    return len({machine for machine, *_ in both}) == 1 and all(
        (threads, device) == (1, "cpu") for _, threads, device, _ in both
    )


def _began_alike(before: Run, now: Run, cells: Sequence[str]) -> bool:
    """Whether the first loss of every cell is that of the baseline: the same data, weights and
    first batch.
    """
    pairs = (
        (number(before.cells[cell]["initial_loss"]), number(now.cells[cell]["initial_loss"]))
        for cell in cells
    )
    return all(
        apart(np.array([old]), np.array([new])) <= TOLERANCE["float32"] for old, new in pairs
    )


@dataclass(frozen=True)
class Test:
    """One paired test over the seeds of one setting; ``worse`` is the estimated difference,
    positive if it is for the worse.
    """

    setting: str
    measure: str
    worse: float
    p: float


def _settings(before: Run, common: Sequence[str]) -> list[list[str]]:
    """The cells of each setting: its seeds."""
    cells: dict[tuple[Any, ...], list[str]] = {}
    for cell in common:
        cells.setdefault(
            tuple(value_or_none(before.cells[cell][name]) for name in SETTING), []
        ).append(cell)
    return list(cells.values())


def _tests(before: Run, now: Run, cells: Sequence[str], margin: float) -> Iterator[Test]:
    """The tests of a setting; p is NaN, and counts as no test, if so few pairs differ that it
    could not reach the level.
    """
    row = before.cells[cells[0]]
    setting = f"{row['problem']}, {row['arm']}, lr {row['lr']:g}"
    old, new = [before.cells[cell] for cell in cells], [now.cells[cell] for cell in cells]
    sign = 1.0 if before.components["workloads"][row["problem"]]["higher_is_better"] else -1.0
    gaps = statistics.differences(_quality(old, sign), _quality(new, sign))
    gaps[np.abs(gaps) <= margin] = 0.0  # rounding has a direction, too: it must not count
    later = statistics.differences(_updates_to_target(new), _updates_to_target(old))
    unstable = _unstable(new).astype(float) - _unstable(old)
    fires = np.zeros(len(cells))
    if all(map(_counts_versions, new)):
        fires = statistics.differences(_clipped_shares(new), _clipped_shares(old))
    fires[~(np.abs(fires) > FIRED)] = 0.0
    for measure, differences, worse in (
        (f"{row['metric']} is worse", gaps, _median_difference(gaps)),
        ("updates to the target are more", later, _median_difference(later)),
        ("unstable runs are more", unstable, float(unstable.sum())),
        ("the clip fires in other steps", fires, abs(_median_difference(fires))),
    ):
        testable = np.count_nonzero(differences) >= FEWEST_PAIRS
        yield Test(
            setting, measure, worse, statistics.signed_rank_p(differences) if testable else np.nan
        )


def least_p(pairs: int) -> float:
    """The least two-sided p that so many pairs can give, if all have one sign."""
    return 2.0 ** (1 - pairs)


def _counts_versions(row: Row) -> bool:
    """Whether the versions of a cell's components are numbers; a plug-in's is the hash of its
    file, and any edit changes it.
    """
    settings = json.loads(row["settings"])
    return all(isinstance(settings[kind]["version"], int) for kind in registry.KINDS)


def _quality(rows: Sequence[Row], sign: float) -> np.ndarray:
    """The metric of each run, higher if better; −∞ for a run without one."""
    values = np.array([number(row["metric_value"]) for row in rows])
    return np.where(np.isnan(values), -np.inf, sign * values)


def _updates_to_target(rows: Sequence[Row]) -> np.ndarray:
    values = np.array([number(row["steps_to_target"]) for row in rows])
    return np.where(np.isnan(values), np.inf, values)


def _clipped_shares(rows: Sequence[Row]) -> np.ndarray:
    return np.array([number(row["clipped_fraction"]) for row in rows])


def _unstable(rows: Sequence[Row]) -> np.ndarray:
    return np.array([row["status"] == Status.FAILED or row["outcome"] in UNSTABLE for row in rows])


def _median_difference(gaps: np.ndarray) -> float:
    """The median of the pairs that differ: it has the sign that the ranks favour; a mean may
    have the other.
    """
    return statistics.median_interval(gaps[gaps != 0]).estimate
