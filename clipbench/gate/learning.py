"""The learning part of the gate: a study is run anew, and its cells are compared with the committed
results of earlier code.

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
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from clipbench import execute, protocol, registry, statistics
from clipbench.cell import identity
from clipbench.errors import UsageError
from clipbench.gate.limits import Limits
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
from clipbench.protocol import pages
from clipbench.protocol.watcher import Watcher
from clipbench.schema import RULES, UNSTABLE, Status
from clipbench.store import Store
from clipbench.study import Study
from clipbench.task import ARM
from clipbench.tolerance import TOLERANCE, apart

Row = dict[str, Any]

LEVEL = 0.05  # of the whole family
FEWEST_PAIRS = 6  # pairs that differ: fewer cannot reach the level, however much they agree
FIRED = 0.01  # the least difference that counts in the share of steps in which a clip fires
SETTING = (*ARM, "relative", "lr")  # what the seeds of one test share
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


class Unusable(Exception):  # noqa: N818 - an answer, not an error
    """A baseline says nothing here, for this reason; ``details`` are values for the reason's
    sentence.
    """

    def __init__(self, reason: Reason, **details: Any) -> None:
        super().__init__(reason)
        self.reason, self.details = reason, details


@dataclass(frozen=True)
class Run:
    """The cells of one store by identity (that of `paired`), and what its pages say of the
    machines and the components.
    """

    cells: dict[str, Row]
    environments: dict[str, Any]
    components: dict[str, Any]


def findings(limits: Limits, workers: int | None, watcher: Watcher) -> Iterator[Finding]:
    """A finding for each study of the page."""
    for learning in limits.learnings:
        folder, page = limits.baselines / learning.baseline, limits.studies[learning.study]
        name = f"{page.name}, {learning.engine}"
        try:
            before, engines = _baseline(folder, page)
        except Unusable as unusable:
            command = {"folder": folder, "study": learning.study, "engine": learning.engine}
            yield Finding(
                "learning", name, INCONCLUSIVE, unusable.reason, details=command | unusable.details
            )
            continue
        now = _trained_anew(page, learning.engine, engines, workers, watcher)
        if lost := {paired(cell.canonical) for cell in protocol.runnable(page).cells} - set(
            now.cells
        ):
            yield Finding("learning", name, REGRESSION, Reason.NOT_RUN, details={"lost": len(lost)})
            continue
        yield compare(name, before, now, learning.metric)


def _baseline(folder: Path, page: Study) -> tuple[Run, dict[str, Any]]:
    """The committed cells, and the stored choices of their engines.

    :raises Unusable: there are none, or they are of another study, schema, machine or device.
    """
    if not (folder / "study.toml").is_file():
        raise Unusable(Reason.NO_BASELINE)
    store = Store(folder)
    try:
        run = run_of(store)
        calibration = store.page("calibration")
    # all but the first: settings of cells that are no such document
    except (UsageError, KeyError, ValueError, TypeError) as error:
        raise Unusable(Reason.UNREADABLE, error=_short(error)) from None
    if store.bad:
        file, why = min(store.bad.items())
        raise Unusable(Reason.DAMAGED, files=len(store.bad), file=file, error=why)
    if store.name != page.name:
        raise Unusable(Reason.OTHER_STUDY, there=store.name, here=page.name)
    asked = protocol.runnable(page)
    here = execute.environment(
        "cuda" if any(cell.device == "cuda" for cell in asked.cells) else "cpu"
    )
    for environment in run.environments.values():
        for what in ("machine", "system", "cuda"):
            if environment.get(what) != here.get(what):
                raise Unusable(
                    Reason.OTHER_MACHINE,
                    what=what,
                    there=environment.get(what),
                    here=here.get(what),
                )
    if versions := _other_versions(run.components, pages.components(asked.cells)):
        raise Unusable(Reason.OTHER_VERSIONS, versions=versions)
    rules = {
        int(_number(row["rules"])) if _value_or_none(row["rules"]) else 1
        for row in run.cells.values()
    }
    if rules != {RULES}:
        raise Unusable(Reason.OTHER_RULES, there=min(rules), here=RULES)
    if {paired(cell.canonical) for cell in asked.cells} - set(run.cells):
        devices = {row["device"] for row in run.cells.values()}
        if {cell.device for cell in asked.cells} - devices:
            raise Unusable(Reason.OTHER_DEVICE, there=", ".join(sorted(devices)))
        raise Unusable(Reason.OTHER_PAGE)
    return run, calibration.get("engines", {})


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def _other_versions(before: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """The components that both runs have in different versions, as ``(label, version before,
    version now)``.

    Plug-ins are left out: their version is the hash of their file, and an edit of it is what the
    gate judges.
    """
    return [
        (label, before[kind][label]["version"], one["version"])
        for kind, known in now.items()
        for label, one in known.items()
        if label in before.get(kind, {})
        and before[kind][label]["version"] != one["version"]
        and not (
            isinstance(one["version"], str) and isinstance(before[kind][label]["version"], str)
        )
    ]


def _trained_anew(
    page: Study, engine: str, engines: dict[str, Any], workers: int | None, watcher: Watcher
) -> Run:
    """The study, run anew in a folder that is thrown away. The engines are chosen as they were
    for the baseline.
    """
    with tempfile.TemporaryDirectory() as folder:
        store = Store.create(Path(folder) / page.name, page.name, page.text)
        store.write_page("calibration", {"engines": engines})
        with store.claim():
            protocol.run(
                page,
                store,
                protocol.Options(engine=engine, workers=workers, throughput=False),
                watcher,
            )
        return run_of(store)


def run_of(store: Store) -> Run:
    """The run in a store; each cell also has its evaluations' losses, and its curve if that was
    kept.

    If an edited plug-in has made a cell twice, the later one is taken.
    """
    rows: dict[str, Row] = {
        row["cell"]: row for row in store.read("cells").sort_values("created").to_dict("records")
    }
    evals, curves = store.read("evals"), store.read("curves")
    losses = evals[evals["metric"] == "loss"].sort_values(["cell", "split", "step"])
    for name, frame, column in (
        ("evaluations", losses, "value"),
        ("curve", curves.sort_values(["cell", "step"]), "loss"),
    ):
        for cell, some in frame.groupby("cell"):
            if cell in rows:
                rows[cell][name] = some[column].to_numpy(float, na_value=np.nan)
    cells = {paired(row["settings"]): row for row in rows.values()}
    return Run(cells, store.page("environment").get("environments", {}), store.page("components"))


def paired(canonical: str) -> str:
    """The identity of a cell without the versions of plug-ins, which are hashes of files: the
    edited file is what is judged.
    """
    document = json.loads(canonical)
    parts = {kind: document[kind] for kind in registry.KINDS}
    opened = {
        kind: component | {"version": ""}
        for kind, component in parts.items()
        if isinstance(component["version"], str)
    }
    return identity(
        json.dumps(document | opened, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    )


# ---------------------------------------------------------------------------------------- comparing


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

    if failed := [
        cell
        for cell in common
        if now.cells[cell]["status"] == Status.FAILED != before.cells[cell]["status"]
    ]:
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
    if any(_value_or_none(then[name]) != _value_or_none(here[name]) for name in WORDS):
        return MOVED
    pairs = {
        name: (np.array([_number(then[name])]), np.array([_number(here[name])])) for name in NUMBERS
    }
    pairs |= {name: (then[name], here[name]) for name in ARRAYS if name in then and name in here}
    if all(np.array_equal(old, new, equal_nan=True) for old, new in pairs.values()):
        return SAME
    tolerance = TOLERANCE[str(here["dtype"])]
    metric = pairs.pop("metric_value")
    near = all(apart(old, new) <= tolerance for old, new in pairs.values())
    return NEAR if near and apart(*metric, relative=False) <= margin else MOVED


def _value_or_none(value: Any) -> Any:
    return None if value is None or value != value or str(value) == "<NA>" else value  # noqa: PLR0124 - NaN alone differs from itself


def _number(value: Any) -> float:
    return np.nan if _value_or_none(value) is None else float(value)


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
        (_number(before.cells[cell]["initial_loss"]), _number(now.cells[cell]["initial_loss"]))
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
            tuple(_value_or_none(before.cells[cell][name]) for name in SETTING), []
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
    values = np.array([_number(row["metric_value"]) for row in rows])
    return np.where(np.isnan(values), -np.inf, sign * values)


def _updates_to_target(rows: Sequence[Row]) -> np.ndarray:
    values = np.array([_number(row["steps_to_target"]) for row in rows])
    return np.where(np.isnan(values), np.inf, values)


def _clipped_shares(rows: Sequence[Row]) -> np.ndarray:
    return np.array([_number(row["clipped_fraction"]) for row in rows])


def _unstable(rows: Sequence[Row]) -> np.ndarray:
    return np.array([row["status"] == Status.FAILED or row["outcome"] in UNSTABLE for row in rows])


def _median_difference(gaps: np.ndarray) -> float:
    """The median of the pairs that differ: it has the sign that the ranks favour; a mean may
    have the other.
    """
    return statistics.median_interval(gaps[gaps != 0]).estimate
