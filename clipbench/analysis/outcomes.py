"""How runs ended, and their values, in either phase; results of the report phase, and their paired
differences.

Shared by the questions that compare. It knows none of them, and neither figures nor pages.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from clipbench import selection, statistics
from clipbench.analysis.cells import Components, plain, table_of, workload
from clipbench.schema import Outcome, Reading, Role, Status, Term
from clipbench.selection import FIRED, POINT
from clipbench.statistics import Interval
from clipbench.task import ARM, TASK, Threshold, arm_of

MISSING = "missing"  # what is wanted and was not run
UNKNOWN = (Status.FAILED, MISSING)
COUNTS = (*Outcome, *UNKNOWN)  # how a wanted run may have ended


class Note(Term):
    """Why a comparison has no difference to give."""

    NEVER_FIRED = "never fired", "the clip altered next to no gradient: it is the same as none"
    INCOMPLETE = "incomplete", "a seed failed or is missing"
    NO_VALUE = "no value", "every seed ran, and one has no metric"


def selection_runs(cells: pd.DataFrame) -> pd.DataFrame:
    """The selection cells with ``ended``: an outcome, or ``failed``."""
    frame = plain(cells[cells["role"] == Role.SELECT])
    return frame.assign(
        ended=np.where(
            frame["status"] == Status.FAILED, Status.FAILED, frame["outcome"].astype(object)
        )
    )


def draws(cells: pd.DataFrame, protocol: Mapping[str, Any]) -> pd.DataFrame:
    """A row per task, arm, reading and report seed: the setting that stands for the arm, and how
    its run ended.

    ``ended`` is an outcome, ``failed`` or ``missing``; ``value`` is NaN for the last two, for a
    diverged run, and for any other run without a metric.
    """
    return _ended(_report_draws(cells, protocol), cells)


def lower_lr(
    cells: pd.DataFrame, choices: pd.DataFrame, arms_table: pd.DataFrame, drawn: pd.DataFrame
) -> pd.DataFrame:
    """Rows like `draws`: for each clip that fires in most steps its optimizer without it, at the
    learning rate of `selection.lowered`, on the report seeds of the clip. ``arm`` is the clip's,
    and ``partner`` the arm that ran.
    """
    unclipped = {
        arm_of(row): (row["optimizer"], row["partner"])
        for row in arms_table[arms_table["partner"].notna()].to_dict("records")
    }
    chosen = drawn[drawn["reading"] == Reading.ALL][[*ARM, "seed"]]
    asked = selection.lowered(choices, unclipped).merge(chosen, on=ARM)
    asked = asked.assign(**{"reading": str(Reading.ALL), "edge": "", **Threshold().columns})
    ran = asked.rename(columns={"arm": "clipped", "partner": "arm"})
    types = {"batch": np.int64, "seed": np.int64, **dict.fromkeys(POINT, float)}
    ended = _ended(ran.astype(types), cells)
    return ended.rename(columns={"arm": "partner", "clipped": "arm"})


def _ended(asked: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """The asked runs with how they ended; those that are not stored are ``missing``."""
    keys = [*ARM, "seed", "lr", "relative", "percentile", "absolute"]
    runs = plain(cells[cells["role"] == Role.REPORT])
    # A multiple or a percentile identifies the setting by itself: a cell that failed early has no
    # resolved threshold.
    for frame in (asked, runs):
        plain_number = frame["relative"].isna() & frame["percentile"].isna()
        frame["absolute"] = frame["threshold"].where(plain_number).astype(float)
    taken = [
        *(
            "cell",
            "status",
            "outcome",
            "reason",
            "diverged_at",
            "steps",
            "metric_value",
            "validation_value",
        ),
        *("steps_to_target", "clipped_fraction", "grad_norm_median", "engine", "environment"),
    ]
    merged = asked.merge(runs[[*keys, *taken]], on=keys, how="left", sort=False).drop(
        columns="absolute"
    )
    absent, broken = merged["cell"].isna(), (merged["status"] == Status.FAILED).fillna(False)
    merged["ended"] = np.where(
        absent, MISSING, np.where(broken, Status.FAILED, merged["outcome"].astype(object))
    )
    merged["value"] = (
        merged["metric_value"].astype(float).where(merged["ended"] != Outcome.DIVERGED)
    )
    return merged


def _report_draws(cells: pd.DataFrame, protocol: Mapping[str, Any]) -> pd.DataFrame:
    """What the report phase asks for: a row per task, arm, reading and seed, with the setting
    and its ``edge``.
    """
    seeds = dict.fromkeys(cells["problem"].unique(), 0)
    seeds |= {
        problem: int(phases["report"]) for problem, phases in protocol.get("seeds", {}).items()
    }
    headline = list(selection.methods(protocol.get("headline", {})).values())
    choices = selection.choose(selection.score(cells))
    untuned = protocol.get("untuned")
    asked = selection.readings(
        choices, seeds, untuned, untuned.get("arms", headline) if untuned else headline
    )
    asked = asked.astype({"batch": np.int64, "seed": np.int64, **dict.fromkeys(POINT, float)})
    return asked.merge(choices[[*ARM, "edge"]], on=ARM, how="left", sort=False)


def results(drawn: pd.DataFrame, components: Components) -> pd.DataFrame:
    """A row per task, arm and reading: how its seeds ended, and its metric with an interval.

    ``statistic`` says what ``estimate`` is: ``mean``; ``median`` if a seed diverged, which counts
    as the worst value; ``share`` of successes if the outcome is all or nothing; ``incomplete`` if a
    seed failed or is missing, or ran without diverging and yet has no metric (``no_value`` counts
    those): no interval then.
    """
    rows = []
    for values, seeds in drawn.groupby([*ARM, "reading"], sort=True):
        key = dict(zip([*ARM, "reading"], values, strict=True))
        about = workload(components, key["problem"])
        ended = seeds["ended"].value_counts()
        statistic, interval, successes = _estimate(seeds, about)
        fired = seeds["clipped_fraction"].astype(float)
        target = seeds["steps_to_target"].astype(float)
        known = ~seeds["ended"].isin(UNKNOWN)
        one = seeds.iloc[0]  # all seeds of a reading have one setting
        rows.append(
            {
                **key,
                "n": len(seeds),
                **{name: int(ended.get(name, 0)) for name in COUNTS},
                "statistic": statistic,
                "estimate": interval.estimate,
                "low": interval.low,
                "high": interval.high,
                "successes": successes,
                "clipped_fraction": float(fired.mean()),
                "never_fired": _never_fired(seeds),
                "lr": one["lr"],
                "threshold": one["threshold"],
                "relative": one["relative"],
                "percentile": one["percentile"],
                "edge": (seeds["edge"].iloc[0] or "") if key["reading"] == Reading.ALL else "",
                "no_value": int(without_value(seeds, about).sum()),
                "steps_to_target": statistics.median_interval(
                    target[known].fillna(math.inf)
                ).estimate,
                "reached": int(target.notna().sum()),
            }
        )
    columns = [
        *ARM,
        "reading",
        "n",
        *COUNTS,
        "statistic",
        "estimate",
        "low",
        "high",
        "successes",
        "clipped_fraction",
        "never_fired",
    ]
    columns += [*POINT, "edge", "no_value", "steps_to_target", "reached"]
    return table_of(rows, columns)


def _estimate(seeds: pd.DataFrame, about: Mapping[str, Any]) -> tuple[str, Interval, float]:
    values = worst_filled(seeds, about)
    known = ~np.isnan(values)
    complete = bool(known.all())
    if about["success"] is not None:
        successes = int(succeeded(seeds, about).sum())
        share = statistics.share_interval(successes, int(known.sum()))
        return (
            ("share", share, successes)
            if complete
            else ("incomplete", Interval(share.estimate, np.nan, np.nan), successes)
        )
    if not complete:
        return (
            "incomplete",
            Interval(statistics.median_interval(values[known]).estimate, np.nan, np.nan),
            math.nan,
        )
    if np.isfinite(values).all():
        return "mean", statistics.mean_interval(values), math.nan
    return "median", statistics.median_interval(values), math.nan


def worst_filled(
    seeds: pd.DataFrame, about: Mapping[str, Any]
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The metric of every seed: the worst possible one if the run diverged, NaN if nothing is
    known.

    Nothing is known of a run that failed or is missing, nor of one that did not diverge and yet has
    no metric. A metric that overflowed towards the worse side is known; an infinitely good one
    counts as unknown.
    """
    worst = -math.inf if about["higher_is_better"] else math.inf
    values = seeds["value"].to_numpy(dtype=float)
    unknown = seeds["ended"].isin(UNKNOWN).to_numpy(dtype=bool) | (values == -worst)
    return np.where(
        unknown,
        np.nan,
        np.where((seeds["ended"] == Outcome.DIVERGED).to_numpy(dtype=bool), worst, values),
    )


def without_value(
    seeds: pd.DataFrame, about: Mapping[str, Any]
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which seeds ran, did not diverge, and have no metric: unknown, not bad."""
    return np.isnan(worst_filled(seeds, about)) & ~seeds["ended"].isin(UNKNOWN).to_numpy(dtype=bool)


def succeeded(seeds: pd.DataFrame, about: Mapping[str, Any]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which seeds met the workload's criterion of success; a run without a value did not."""
    values = worst_filled(seeds, about)
    met = values >= about["success"] if about["higher_is_better"] else values <= about["success"]
    return np.asarray(met & ~np.isnan(values), dtype=bool)


def _never_fired(seeds: pd.DataFrame) -> bool:
    """Whether a clip altered under 1 % of the steps, and less than one step a run.

    The second condition is for short runs: one step of 150 is under 1 %, and may be the step that
    matters.
    """
    fired, steps = seeds["clipped_fraction"].astype(float), seeds["steps"].astype(float)
    known = seeds["threshold"].notna().any() and fired.notna().any()
    return bool(known and fired.mean() < FIRED and (fired * steps).mean() < 1)


def compare(drawn: pd.DataFrame, pairs: pd.DataFrame, components: Components) -> pd.DataFrame:
    """Paired differences, arm minus baseline, on the same report seeds; positive is better,
    whatever the metric's direction.

    ``pairs`` has ``ARM`` and ``baseline``. ``note`` says why there is no difference to give, a
    `Note`.
    """
    sides = dict(iter(drawn.groupby([*ARM, "reading"], sort=True)))
    rows = []
    for pair in pairs.to_dict("records"):
        task, about = [pair[name] for name in TASK], workload(components, pair["problem"])
        for reading in Reading:
            arm, baseline = (
                sides.get((*task, pair["arm"], reading)),
                sides.get((*task, pair["baseline"], reading)),
            )
            if arm is None or baseline is None:
                continue
            labels = {
                **{name: pair[name] for name in ARM},
                "baseline": pair["baseline"],
                "reading": reading,
            }
            rows.append({**labels, **_difference(arm, baseline, about)})
    columns = [
        *ARM,
        "baseline",
        "reading",
        "n",
        "statistic",
        "estimate",
        "low",
        "high",
        "p",
        "note",
    ]
    return table_of(rows, columns)


def _difference(
    arm: pd.DataFrame, baseline: pd.DataFrame, about: Mapping[str, Any]
) -> dict[str, Any]:
    shared = np.intersect1d(arm["seed"], baseline["seed"])
    first, second = (
        side[side["seed"].isin(shared)].sort_values("seed") for side in (arm, baseline)
    )
    nothing = {
        "n": len(shared),
        "statistic": "",
        "estimate": np.nan,
        "low": np.nan,
        "high": np.nan,
        "p": np.nan,
    }
    a, b = worst_filled(first, about), worst_filled(second, about)
    if np.isnan(a).any() or np.isnan(b).any() or len(shared) < len(arm):
        gone = any(side["ended"].isin(UNKNOWN).any() for side in (first, second))
        return {
            **nothing,
            "note": Note.INCOMPLETE if gone or len(shared) < len(arm) else Note.NO_VALUE,
        }
    if _never_fired(first):
        return {**nothing, "p": 1.0, "note": Note.NEVER_FIRED}
    if about["success"] is not None:
        won, lost = succeeded(first, about), succeeded(second, about)
        interval = statistics.share_difference(int(won.sum()), int(lost.sum()), len(shared))
        return {
            **nothing,
            "statistic": "share",
            **interval._asdict(),
            "p": statistics.discordant_p(won, lost),
            "note": "",
        }
    gaps = statistics.differences(a, b) * (1 if about["higher_is_better"] else -1)
    interval = statistics.paired_difference(gaps, np.zeros_like(gaps))
    statistic = "mean" if np.isfinite(gaps).all() else "median"
    return {
        **nothing,
        "statistic": statistic,
        **interval._asdict(),
        "p": statistics.paired_p(gaps),
        "note": "",
    }
