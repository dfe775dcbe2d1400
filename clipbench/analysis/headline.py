"""The methods at the same number of tries: what each reaches, and whether a clip is better than its
optimizer without one.

Each method has the learning rates of its optimizer, and a clip one threshold fixed in advance. What
is estimated is the expected result of somebody who tunes on three seeds (`tuning.expected`), over
all seeds on which the whole axis was run. A run is graded by its ``best`` checkpoint and by its
``last`` one; a run that diverged counts as its best checkpoint before the event, and as chance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from clipbench import selection, tuning, verdicts
from clipbench.analysis.cells import Components, arms, current, plain, table_of, workload
from clipbench.comparisons import Family, families
from clipbench.schema import Outcome, Role, Status, Verdict
from clipbench.selection import BASELINE, POINT
from clipbench.skill import LOSS
from clipbench.store import Store
from clipbench.task import ARM, FIRST_REPORT_SEED, THRESHOLD, Task, Threshold
from clipbench.verdicts import Comparison

GRADES = {"best": "best checkpoint", "last": "last step"}
GRADED = [  # what is looked at of a run
    *ARM,
    *POINT,
    *("cell", "seed", "status", "outcome", "validation_metric"),
    *("metric_value", "best_validation", "best_metric"),
    *("clipped_fraction", "kept_median", "cosine_median"),
]
TAKEN = {"fired": "clipped_fraction", "kept": "kept_median", "cosine": "cosine_median"}
FEWEST = tuning.TUNED_ON + 2  # seeds for an interval: those tuned on, one left out, one judged


class Comparisons(NamedTuple):
    """What a store says of its study's question: its ``arms`` and their ``axes``, the ``levels``
    that they reach, and the ``gaps`` between a clip and none.
    """

    arms: pd.DataFrame
    axes: dict[tuple[Task, str, str], Axis]
    levels: pd.DataFrame
    gaps: pd.DataFrame


def of_store(store: Store) -> Comparisons:
    """The comparisons of a store, by the protocol on its own pages."""
    cells, _ = current(store)
    components, protocol = store.page("components"), store.page("plan").get("protocol", {})
    compared = arms(cells, components)
    found = axes(
        cells, components, protocol, starts(evals_of_diverged(store, cells), cells, components)
    )
    grade, named = str(protocol.get("grade", "best")), protocol.get("schedule")
    return Comparisons(
        compared,
        found,
        levels(found, components),
        gaps(found, compared, components, grade, named),
    )


@dataclass(frozen=True)
class Axis:
    """The runs of one arm along its learning rates, graded one way; settings × seeds.

    ``test`` and ``validation`` are signed so that higher is better; ``lost`` is 1 where a run did
    not learn, and ``diverged`` where it diverged; ``kept`` and ``cosine`` are medians over the
    steps of a run. NaN where nothing is known.
    """

    points: pd.DataFrame
    seeds: Sequence[int]
    validation: np.ndarray
    test: np.ndarray
    succeeded: np.ndarray
    fired: np.ndarray
    kept: np.ndarray
    cosine: np.ndarray
    lost: np.ndarray
    diverged: np.ndarray
    cells: np.ndarray  # identities; empty where no run is

    @property
    def known(self) -> np.ndarray:
        """Of each seed, whether every run of the axis has its values."""
        return np.isfinite(self.validation).all(axis=0) & np.isfinite(self.test).all(axis=0)


def axes(
    cells: pd.DataFrame,
    components: Components,
    protocol: Mapping[str, Any],
    starts: Mapping[str, tuple[float, float]],
    multiple: float | None = None,
) -> dict[tuple[Task, str, str], Axis]:
    """(task, arm, grade) → its runs, of all arms that are compared at the same number of tries.

    :param starts: cell → what its untrained model had, on validation and on test.
    :param multiple: if given, clips have this multiple of the pilot's median size as threshold, in
        place of the percentile.
    """
    frame = plain(cells)
    # What was chosen beyond an axis is reported on, and is no try of everybody's.
    selected = frame[frame["role"] == Role.SELECT]
    settings = selection.same_tries(selected, float(protocol.get("percentile", 90.0)), multiple)
    found, runs = {}, dict(iter(frame[GRADED].groupby(ARM, sort=False)))
    for values, points in settings.groupby(ARM, sort=True):
        task, arm = Task(*values[:-1]), str(values[-1])
        about = workload(components, task.problem)
        count = protocol.get("seeds", {}).get(task.problem, {})
        seeds = [
            *range(int(count.get("select", 0))),
            *range(FIRST_REPORT_SEED, FIRST_REPORT_SEED + int(count.get("report", 0))),
        ]
        for grade in GRADES:
            if grade == "best" and about["reference_loss"] is None:
                continue
            found[task, arm, grade] = along(runs[values], points, seeds, about, grade, starts)
    return found


def along(
    runs: pd.DataFrame,
    points: pd.DataFrame,
    seeds: Sequence[int],
    about: Mapping[str, Any],
    grade: str,
    starts: Mapping[str, tuple[float, float]],
) -> Axis:
    """The runs of one arm on these seeds, at these settings (rows with `POINT`), graded so."""
    shape = (len(points), len(seeds))
    table = {
        name: np.full(shape, math.nan)
        for name in ("validation", "test", "succeeded", *TAKEN, "lost", "diverged")
    }
    cells = np.full(shape, "", dtype=object)
    row_of = {_point(row): number for number, row in enumerate(points.to_dict("records"))}
    column_of = {seed: number for number, seed in enumerate(seeds)}
    better, by_metric = 1 if about["higher_is_better"] else -1, about["judged_by_metric"]
    for row in runs[GRADED].to_dict("records"):
        place = row_of.get(_point(row)), column_of.get(row["seed"])
        if None in place or row["status"] == Status.FAILED:
            continue
        cells[place] = row["cell"]
        validation, test = _grades(row, about, grade, starts)
        table["validation"][place] = validation * (better if by_metric else -1)
        table["test"][place] = test * better
        for name, column in TAKEN.items():
            table[name][place] = row[column]
        table["lost"][place] = row["outcome"] != Outcome.LEARNED
        table["diverged"][place] = row["status"] == Status.DIVERGED
        if about["success"] is not None:
            table["succeeded"][place] = better * test >= better * about["success"]
    return Axis(points, seeds, **table, cells=cells)


def _point(row: Mapping[str, Any]) -> tuple[float, str, float]:
    return (row["lr"], *Threshold.of(row).setting)


def _grades(
    row: Mapping[str, Any],
    about: Mapping[str, Any],
    grade: str,
    starts: Mapping[str, tuple[float, float]],
) -> tuple[float, float]:
    """What a run is worth on validation, by which it is chosen, and on test."""
    if grade == "best":
        return row["best_validation"], row["best_metric"]
    if row["status"] != Status.DIVERGED:
        return row["validation_metric"], row["metric_value"]
    if about["chance"] is None:
        return starts.get(row["cell"], (math.nan, math.nan))
    return (about["chance"] if about["judged_by_metric"] else about["reference_loss"]), about[
        "chance"
    ]


def evals_of_diverged(store: Store, cells: pd.DataFrame) -> pd.DataFrame:
    """The evaluations of the runs that diverged, as `starts` takes them."""
    return store.read("evals", cells=list(cells.loc[cells["status"] == Status.DIVERGED, "cell"]))


def starts(
    evals: pd.DataFrame, cells: pd.DataFrame, components: Components
) -> dict[str, tuple[float, float]]:
    """Cell → what its untrained model had, on validation by what runs are chosen by and on test:
    of the runs that diverged, which count as that where no chance is known.
    """
    diverged = cells[cells["status"] == Status.DIVERGED]
    wanted = evals[(evals["step"] == 0) & evals["cell"].isin(diverged["cell"])]
    values = {
        (row.cell, row.split, row.metric): float(row.value)
        for row in wanted.itertuples(index=False)
    }
    found = {}
    for row in diverged.itertuples(index=False):
        about = workload(components, row.problem)
        judged = about["metric"] if about["judged_by_metric"] else LOSS
        found[row.cell] = (
            values.get((row.cell, "validation", judged), math.nan),
            values.get((row.cell, "test", about["metric"]), math.nan),
        )
    return found


def levels(found: Mapping[tuple[Task, str, str], Axis], components: Components) -> pd.DataFrame:
    """A row per task, arm and grade: what tuning on three seeds is expected to reach.

    ``n`` counts the seeds on which all ``tries`` learning rates ran, ``lacking`` the others;
    ``lr`` is the setting that is chosen most often, in ``share`` of the choices; ``fired`` is the
    share of steps that the clip altered, ``kept`` and ``cosine`` what it left of the gradient in
    the median step, ``succeeded`` the share of runs that met the criterion, ``lost`` of those that
    did not learn; ``lost_all`` is that over the whole axis.
    """
    rows = []
    for (task, arm, grade), axis in found.items():
        about = workload(components, task.problem)
        sign, known = 1 if about["higher_is_better"] else -1, axis.known
        row = {**task._asdict(), "arm": arm, "grade": grade, "n": int(known.sum())}
        row |= {"lacking": int((~known).sum()), "tries": len(axis.points)}
        if known.any():
            tuned = _tuned(axis, known)
            bounds = tuning.interval(
                tuned.estimate, tuning.standard_error(tuned.without), int(known.sum())
            )
            low, high = (bounds.low, bounds.high) if sign > 0 else (-bounds.high, -bounds.low)
            most = int(np.argmax(tuned.chosen))
            point = axis.points.iloc[most]
            row |= {"estimate": sign * tuned.estimate, "low": low, "high": high}
            row |= {name: float(point[name]) for name in POINT}
            row |= {
                "share": float(tuned.chosen[most]),
                **{
                    name: float(tuned.chosen @ getattr(axis, name)[:, known].mean(axis=1))
                    for name in TAKEN
                },
                "succeeded": _expected(axis, known, axis.succeeded)
                if about["success"] is not None
                else math.nan,
                "lost": _expected(axis, known, axis.lost),
                "lost_all": float(axis.lost[:, known].mean()),
            }
        rows.append(row)
    columns = [*ARM, "grade", "n", "lacking", "tries", "estimate", "low", "high"]
    return table_of(rows, [*columns, *POINT, "share", *TAKEN, "succeeded", "lost", "lost_all"])


def _tuned(axis: Axis, known: np.ndarray) -> tuning.Tuned:
    return tuning.expected(axis.validation[:, known], axis.test[:, known])


def _expected(axis: Axis, known: np.ndarray, values: np.ndarray) -> float:
    return tuning.expected(axis.validation[:, known], values[:, known]).estimate


def declared(
    arms_table: pd.DataFrame, components: Components, schedule: str | None
) -> list[Family]:
    """The families of comparisons that a study has declared.

    :param schedule: the headline's; None if all arms are of it.
    """
    functions = [
        problem
        for problem in set(arms_table["problem"])
        if workload(components, problem)["reference_loss"] is None
    ]
    clipped = arms_table[arms_table["partner"].notna()]
    return families(clipped.to_dict("records"), functions, set(arms_table["optimizer"]), schedule)


def gaps(
    found: Mapping[tuple[Task, str, str], Axis],
    arms_table: pd.DataFrame,
    components: Components,
    grade: str,
    schedule: str | None = None,
) -> pd.DataFrame:
    """A row per clip and task: its difference from the same optimizer without it, positive if the
    clip is better, and the verdict of its family.

    ``low`` and ``high`` bound 95 %, ``family_low`` and ``family_high`` what holds for all of the
    family together. ``smallest`` is the smallest margin at which "no difference" would hold,
    ``at_half`` and ``at_double`` the verdicts at half and twice the margin, ``needed`` the seeds
    that would decide. ``last`` is the difference at the last step, with its own bounds.
    """
    rows = []
    for family in declared(arms_table, components, schedule):
        pairs = [
            _Pair.of(found, components, task, arm, partner, grade)
            for task, arm, partner in family.pairs
            if any((task, arm, one) in found for one in GRADES)
        ]
        asked = [pair.comparison for pair in pairs]
        said = [
            verdicts.decide(
                [one._replace(margin=one.margin * factor) for one in asked], family.level
            )
            for factor in (1.0, 0.5, 2.0)
        ]
        level = family.level / max(1, len(asked))
        for pair, verdict, half, double in zip(pairs, *said, strict=True):
            one = pair.comparison
            bounds = tuning.interval(one.difference, one.error, one.seeds)
            wide = tuning.interval(one.difference, one.error, one.seeds, 1 - level)
            rows.append(
                {
                    **pair.row,
                    "family": family.name,
                    "level": family.level,
                    "verdict": pair.said(verdict),
                    "at_half": pair.said(half),
                    "at_double": pair.said(double),
                    "low": bounds.low,
                    "high": bounds.high,
                    "family_low": wide.low,
                    "family_high": wide.high,
                    "smallest": verdicts.smallest_margin(one, level),
                    "needed": verdicts.seeds_needed(one, level),
                }
            )
    columns = [*ARM, "partner", "grade", "family", "level", "n", "difference", "error", "low"]
    columns += ["high", "family_low", "family_high", "margin", "verdict", "smallest", "at_half"]
    columns += ["at_double", "needed", "last", "last_low", "last_high"]
    return table_of(rows, columns)


def rivals(
    found: Mapping[tuple[Task, str, str], Axis],
    methods: Mapping[str, str],
    arms_table: pd.DataFrame,
    components: Components,
    grade: str,
) -> pd.DataFrame:
    """A row per unclipped optimizer, in each task that plain SGD has as well: its difference from
    that, positive if it is better, with a 95 % interval. No verdict: the question is about clips.
    """
    rows, baseline = [], methods.get(BASELINE)
    for row in arms_table[arms_table["clip"] == "none"].to_dict("records"):
        task = Task.of(row)
        if row["arm"] == baseline or not all(
            any((task, arm, one) in found for one in GRADES) for arm in (row["arm"], baseline)
        ):
            continue
        pair = _Pair.of(found, components, task, row["arm"], str(baseline), grade)
        one = pair.comparison
        bounds = tuning.interval(one.difference, one.error, one.seeds)
        rows.append({**pair.row, "low": bounds.low, "high": bounds.high})
    columns = [*ARM, "partner", "grade", "n", "difference", "error", "low", "high"]
    return table_of(rows, columns)


@dataclass(frozen=True)
class _Pair:
    """An arm and the one it is compared with."""

    row: dict[str, Any]
    comparison: Comparison
    note: Verdict | None = None

    @classmethod
    def of(
        cls,
        found: Mapping[tuple[Task, str, str], Axis],
        components: Components,
        task: Task,
        arm: str,
        partner: str,
        grade: str,
    ) -> _Pair:
        about = workload(components, task.problem)
        margin = math.nan if about["margin"] is None else float(about["margin"])
        shown = grade if (task, arm, grade) in found else "last"
        sides = [found.get((task, one, shown)) for one in (arm, partner)]
        row = {**task._asdict(), "arm": arm, "partner": partner, "grade": shown, "margin": margin}
        last = gap_of([found.get((task, one, "last")) for one in (arm, partner)])
        bounds = tuning.interval(*last)
        row |= {"last": last[0], "last_low": bounds.low, "last_high": bounds.high}
        difference, error, seeds = gap_of(sides)
        row |= {"n": seeds, "difference": difference, "error": error}
        one = Comparison(difference, error, seeds, margin)
        untold = one._replace(error=math.nan)
        first, second = sides
        if first is None or second is None or not (first.known & second.known).all():
            return cls(row, untold, Verdict.INCOMPLETE)
        clipped = bool(first.points[THRESHOLD].notna().any(axis=None))
        if clipped and np.nanmax(first.fired, initial=0.0) == 0:
            return cls(row, untold, Verdict.NEVER_FIRED)
        return cls(row, one)

    def said(self, verdict: Verdict) -> Verdict:
        """The verdict, or why there is none."""
        return self.note or verdict


def carried(sides: Sequence[Axis | None]) -> bool:
    """Whether the difference of arm and partner is less than half of itself, or turns, without one
    of the seeds.
    """
    first, second = sides
    if first is None or second is None or list(first.seeds) != list(second.seeds):
        return False
    known = first.known & second.known
    if known.sum() < FEWEST:
        return False
    one, other = _tuned(first, known), _tuned(second, known)
    gap = one.estimate - other.estimate
    return bool(((one.without - other.without) * np.sign(gap) < abs(gap) / 2).any())


def gap_of(sides: Sequence[Axis | None]) -> tuple[float, float, int]:
    """Arm minus partner over the seeds that both know, its standard error, and the number of
    seeds.
    """
    first, second = sides
    if first is None or second is None or list(first.seeds) != list(second.seeds):
        return math.nan, math.nan, 0
    known = first.known & second.known
    if not known.any():
        return math.nan, math.nan, 0
    one, other = _tuned(first, known), _tuned(second, known)
    error = (
        tuning.standard_error(one.without - other.without) if known.sum() >= FEWEST else math.nan
    )
    return one.estimate - other.estimate, error, int(known.sum())


def behind(sides: Sequence[Axis | None]) -> set[str]:
    """The cells that a level or a difference is made of: those of the seeds that all sides know."""
    present = [side for side in sides if side is not None]
    if len(present) < len(sides):
        return set()
    known = np.logical_and.reduce([side.known for side in present])
    return {cell for side in present for cell in side.cells[:, known].flat}
