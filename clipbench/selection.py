"""The protocol's choices, from the cells of the selection phase: which setting represents an arm,
and at which budget.

An *arm* is an optimizer with a clip; a *setting* of it is a pair of learning rate and threshold.
Everything here is a function of stored rows, so that a resumed run, a report and a reader with
pandas all come to the same choice.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from clipbench.schema import UNSTABLE, Reading, Role, Status
from clipbench.task import ARM, TASK, THRESHOLD, Threshold
from clipbench.vocabulary import PERCENTILE

POINT = ["lr", *THRESHOLD]
FIRST_REPORT_SEED = 1000
BASELINE = "plain SGD"
METHODS = {
    BASELINE: "sgd",
    "momentum": "momentum",
    "RMSprop": "rmsprop",
    "value clip": "sgd + value",
    "norm clip": "sgd + norm",
}
FIRED = 0.01  # a clip that fired in a smaller share of steps is the same as none
GOLDEN = (math.sqrt(5) - 1) / 2
HALF_DECADE = math.sqrt(10)


def methods(headline: Mapping[str, str]) -> dict[str, str]:
    """The named methods of a protocol's page, method → arm, in the order of `METHODS`: a JSON
    page knows no order.
    """
    rank = {name: number for number, name in enumerate(METHODS)}
    return dict(sorted(headline.items(), key=lambda item: (rank.get(item[0], len(rank)), item[0])))


def planned(cells: pd.DataFrame, plan: Mapping[str, Iterable[str]]) -> pd.DataFrame:
    """The cells a plan asks for (phase → ids), and no others; ``extended`` are those beyond its own
    selection grid.

    The stored row says what asked first: an edited study may ask for a cell that an extension had
    added before.
    """
    asked = cells[cells["cell"].isin({cell for ids in plan.values() for cell in ids})]
    own = asked["cell"].isin(set(plan.get("select", ())))
    return asked.assign(extended=(asked["role"] == Role.SELECT) & ~own)


def score(cells: pd.DataFrame) -> pd.DataFrame:
    """One row per setting: the mean best validation loss over the selection seeds, ∞ if a seed was
    unstable or failed.

    Columns: ``ARM``, ``POINT``, ``score``, ``error`` (standard error), ``seeds``, ``unstable``,
    ``finite`` (mean over the stable seeds), ``clipped_fraction``, ``extended``.
    """
    frame = cells[cells["role"] == Role.SELECT]
    value = frame["validation_value"].to_numpy(dtype=float, na_value=np.nan)
    spoiled = (frame["outcome"].isin(UNSTABLE) | (frame["status"] == Status.FAILED)).to_numpy(
        dtype=bool
    ) | ~np.isfinite(value)
    plain = pd.DataFrame(
        {
            **{name: frame[name].to_numpy(dtype=object) for name in ARM},
            **{name: frame[name].to_numpy(dtype=float, na_value=np.nan) for name in POINT},
            "value": np.where(spoiled, np.inf, value),
            "kept": np.where(spoiled, np.nan, value),
            "unstable": spoiled,
            "clipped_fraction": frame["clipped_fraction"].to_numpy(dtype=float, na_value=np.nan),
            "extended": frame["extended"].to_numpy(dtype=bool),
        }
    )
    groups = plain.groupby([*ARM, *POINT], dropna=False, sort=True)
    table = groups.agg(
        score=("value", "mean"),
        finite=("kept", "mean"),
        deviation=("kept", "std"),
        seeds=("value", "size"),
        unstable=("unstable", "sum"),
        clipped_fraction=("clipped_fraction", "mean"),
        extended=("extended", "any"),
    ).reset_index()
    table["error"] = (table.pop("deviation") / np.sqrt(table["seeds"])).fillna(0.0)
    return table


def choose(scores: pd.DataFrame) -> pd.DataFrame:
    """The setting of every arm: within one standard error of the best score, the one with the best
    neighbours on the grid.

    Adds to the chosen rows of ``score``: ``edge``, the axes at whose end the choice lies (``lr
    low``, ``threshold high``, …), and ``settings``, how many the arm tried.
    """
    chosen = []
    for _, arm in scores.groupby(ARM, sort=True):
        rows = arm.to_dict("records")
        rows.sort(key=_rank)
        best = rows[0]
        near = (
            [row for row in rows if row["score"] <= best["score"] + best["error"]]
            if math.isfinite(best["score"])
            else [best]
        )
        pick = min(near, key=lambda row: (*_neighbourhood(row, rows), *_rank(row)))
        chosen.append({**pick, "edge": ", ".join(edges(pick, rows)), "settings": len(rows)})
    return pd.DataFrame(chosen, columns=[*scores.columns, "edge", "settings"])


def _rank(row: Mapping[str, Any]) -> tuple[float, float, float, float]:
    """Best first; settings with unstable seeds last, those with the fewest of them first."""
    finite = row["finite"] if math.isfinite(row["finite"]) else math.inf
    score = row["score"] if math.isfinite(row["score"]) else finite
    return (row["unstable"] / row["seeds"], score, row["lr"], Threshold.of(row).key[0])


def _neighbourhood(row: Mapping[str, Any], rows: list[dict[str, Any]]) -> tuple[float, float]:
    """Share of the grid neighbours that are unstable, and the mean score of the others."""
    scores = [other["score"] for other in rows if _adjacent(row, other, rows)]
    finite = [value for value in scores if math.isfinite(value)]
    return (
        (1 - len(finite) / len(scores), sum(finite) / len(finite) if finite else math.inf)
        if scores
        else (0.0, 0.0)
    )


def _adjacent(row: Mapping[str, Any], other: Mapping[str, Any], rows: list[dict[str, Any]]) -> bool:
    steps = []
    for axis in ("lr", "threshold"):
        values = _axis(rows, axis)
        if values:
            steps.append(abs(values.index(row[axis]) - values.index(other[axis])))
    return sum(steps) == 1


def _axis(rows: Iterable[Mapping[str, Any]], name: str) -> list[float]:
    return sorted({row[name] for row in rows if not math.isnan(row[name])})


def edges(row: Mapping[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    """The ends of axes at which a choice lies: a better setting may lie beyond them.

    An axis of one value has no ends, and a threshold too large to fire has nothing beyond it.
    """
    sides = []
    for axis in ("lr", "threshold"):
        values = _axis(rows, axis)
        if len(values) > 1 and row[axis] == values[0]:
            sides.append(f"{axis} low")
        if (
            len(values) > 1
            and row[axis] == values[-1]
            and (axis == "lr" or row["clipped_fraction"] >= FIRED)
        ):
            sides.append(f"{axis} high")
    return sides


def extend(scores: pd.DataFrame) -> pd.DataFrame:
    """New settings for arms whose choice lies at an edge of the study's own axes: two half-decades
    beyond it, once.

    The axis of thresholds is that of the choice: of numbers, multiples or percentiles, and beyond
    a percentile nothing is tried.

    Columns: ``ARM`` and ``POINT``; what the study does not use is NaN.
    """
    base = scores[~scores["extended"]]
    new = []
    for choice in choose(base).to_dict("records"):
        word = Threshold.of(choice).word
        rows = [
            row
            for row in base[_of_same_arm(base, choice)].to_dict("records")
            if Threshold.of(row).word == word
        ]
        threshold_column = word or "threshold"
        lrs, points = _axis(rows, "lr"), _axis(rows, threshold_column)
        for edge in edges(choice, rows):
            axis, _, end = edge.partition(" ")
            if axis == "threshold" and word == PERCENTILE:
                continue
            values = lrs if axis == "lr" else points
            outermost, factor = (
                (values[0], 1 / HALF_DECADE) if end == "low" else (values[-1], HALF_DECADE)
            )
            if outermost > 0:  # no decade begins at zero
                values += [snap(outermost * factor), snap(outermost * factor * factor)]
        known = {(row["lr"], row[threshold_column] if points else None) for row in rows}
        for lr in lrs:
            for point in points or [math.nan]:
                if (lr, point if points else None) in known:
                    continue
                new.append(
                    {
                        **{name: choice[name] for name in ARM},
                        **Threshold().columns,
                        "lr": lr,
                        threshold_column: point,
                    }
                )
    return pd.DataFrame(new, columns=[*ARM, *POINT])


def snap(value: float) -> float:
    """A half-decade as people write it: 9.49 is 10, 0.316 is 0.3; other values to two digits."""
    for mantissa in (1, 3):
        exponent = round(math.log10(value / mantissa))
        if abs(math.log10(value / mantissa) - exponent) < 0.03:
            return float(f"{mantissa}e{exponent}")
    return float(f"{value:.2g}")


def readings(
    scores: pd.DataFrame,
    seeds: Mapping[str, int],
    untuned: Mapping[str, float] | None,
    arms: Iterable[str] | None = None,
) -> pd.DataFrame:
    """The setting of each arm under each reading on each report seed: a row per arm, reading and
    seed.

    ``all``: the arm's choice. ``equal``: the choice at the budget of the smallest arm, k settings:
    each seed draws, by a low-discrepancy sequence, which setting the best of k random ones would
    have been, so that the mean over the seeds estimates the expected best of k. ``untuned``: one
    fixed lr and threshold for all workloads, for the named ``arms``.

    Columns: ``ARM``, ``reading``, ``seed``, ``lr``, ``threshold``, ``relative``, ``budget``
    (settings tried).
    """
    rows = []
    chosen = choose(scores)
    for task, arms_of_task in chosen.groupby(TASK, sort=True):
        budget = int(arms_of_task["settings"].min())
        for choice in arms_of_task.to_dict("records"):
            group = {name: choice[name] for name in ARM}
            settings = ranked(scores[_of_same_arm(scores, choice)], choice)
            for number in range(seeds[task[0]]):
                seed = FIRST_REPORT_SEED + number
                drawn = settings[best_of(budget, len(settings), lottery(group, number))]
                rows.append(
                    {
                        **group,
                        "reading": Reading.ALL,
                        "seed": seed,
                        **_point(choice),
                        "budget": len(settings),
                    }
                )
                rows.append(
                    {
                        **group,
                        "reading": Reading.EQUAL,
                        "seed": seed,
                        **_point(drawn),
                        "budget": budget,
                    }
                )
                if untuned and (arms is None or choice["arm"] in arms):
                    threshold = (
                        Threshold()
                        if Threshold.of(choice).absent
                        else Threshold(untuned["threshold"])
                    )
                    point = {"lr": untuned["lr"], **threshold.columns}
                    rows.append(
                        {**group, "reading": Reading.UNTUNED, "seed": seed, **point, "budget": 0}
                    )
    return pd.DataFrame(rows, columns=[*ARM, "reading", "seed", *POINT, "budget"])


def ranked(settings: pd.DataFrame, choice: Mapping[str, Any]) -> list[dict[str, Any]]:
    """An arm's settings, its choice first, then by score."""
    rows = sorted(settings.to_dict("records"), key=_rank)
    first = [row for row in rows if _key(row) == _key(choice)]
    return first + [row for row in rows if _key(row) != _key(choice)]


def best_of(budget: int, settings: int, draw: float) -> int:
    """The rank (0 is best) of the best of ``budget`` settings drawn without replacement from
    ``settings``, at quantile ``draw``.

    ``P(rank = i) = C(settings − 1 − i, budget − 1) / C(settings, budget)``.
    """
    total, reached = math.comb(settings, budget), 0
    for rank in range(settings - budget + 1):
        reached += math.comb(settings - 1 - rank, budget - 1)
        if draw * total < reached:
            return rank
    return settings - budget


def lottery(group: Mapping[str, Any], number: int) -> float:
    """The ``number``-th point of a golden-ratio sequence in [0, 1); every arm has its own start,
    and the sequence has no end.
    """
    digest = hashlib.sha256("\0".join(str(group[name]) for name in ARM).encode()).digest()
    return (int.from_bytes(digest[:6], "big") / 2**48 + number * GOLDEN) % 1.0


def _of_same_arm(frame: pd.DataFrame, row: Mapping[str, Any]) -> pd.Series:
    mask = pd.Series(True, index=frame.index)
    for name in ARM:
        mask &= frame[name] == row[name]
    return mask


def _key(row: Mapping[str, Any]) -> tuple[float, ...]:
    return (row["lr"], Threshold.of(row).key[0])


def _point(row: Mapping[str, Any]) -> dict[str, float]:
    return {name: row[name] for name in POINT}
