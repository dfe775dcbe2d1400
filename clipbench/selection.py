"""The protocol's choices: which setting represents an arm, and which settings are compared at the
same number of tries.

An *arm* is an optimizer with a clip; a *setting* of it is a pair of learning rate and threshold.
Everything here is a function of stored rows, so that a resumed run, a report and a reader with
pandas all come to the same choice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from clipbench.cell import Cell
from clipbench.schema import UNSTABLE, Reading, Role, Status
from clipbench.task import ARM, FIRST_REPORT_SEED, TASK, THRESHOLD, Task, Threshold, arm_of
from clipbench.vocabulary import PERCENTILE, RELATIVE

POINT = ["lr", *THRESHOLD]
BASELINE = "plain SGD"
METHODS = {
    BASELINE: "sgd",
    "momentum": "momentum",
    "RMSprop": "rmsprop",
    "value clip": "sgd + value",
    "norm clip": "sgd + norm",
}
FIRED = 0.01  # a clip that fired in a smaller share of steps is the same as none
MOST = 0.5  # the share of steps above which a clip fires in most of them
PROPORTIONAL = ("sgd", "momentum", "nesterov")  # optimizers whose steps are as long as the gradient
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
    ``finite`` (mean over the stable seeds), ``clipped_fraction``, ``kept`` (mean of the runs'
    medians), ``extended``.
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
            "share": frame["kept_median"].to_numpy(dtype=float, na_value=np.nan),
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
        kept=("share", "mean"),
        extended=("extended", "any"),
    ).reset_index()
    table["error"] = (table.pop("deviation") / np.sqrt(table["seeds"])).fillna(0.0)
    return table


def choose(scores: pd.DataFrame) -> pd.DataFrame:
    """The setting of every arm: within one standard error of the best score, the one with the best
    neighbours on the grid.

    Adds ``edge`` to the chosen rows of ``score``: the axes at whose end the choice lies (``lr
    low``, ``threshold high``, …).
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
        chosen.append({**pick, "edge": ", ".join(edges(pick, rows))})
    return pd.DataFrame(chosen, columns=[*scores.columns, "edge"])


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
    choices: pd.DataFrame,
    seeds: Mapping[str, int],
    untuned: Mapping[str, Any] | None,
    arms: Iterable[str] | None = None,
) -> pd.DataFrame:
    """The setting of each arm under each reading on each report seed: a row per arm, reading and
    seed.

    ``all``: the arm's choice. ``untuned``: a fixed lr and threshold for all workloads, for the
    named ``arms``: each arm's own of ``untuned["points"]``, or one for all.

    Columns: ``ARM``, ``reading``, ``seed``, ``POINT``.

    :param choices: as `choose` makes them.
    """
    rows = []
    for choice in choices.to_dict("records"):
        group = {name: choice[name] for name in ARM}
        wanted = [(Reading.ALL, {name: choice[name] for name in POINT})]
        if untuned and (arms is None or choice["arm"] in arms):
            point = untuned.get("points", {}).get(choice["arm"], untuned)
            fixed = Threshold() if Threshold.of(choice).absent else Threshold(point["threshold"])
            wanted.append((Reading.UNTUNED, {"lr": point["lr"], **fixed.columns}))
        rows += [
            {**group, "reading": reading, "seed": FIRST_REPORT_SEED + number, **at}
            for number in range(seeds[choice["problem"]])
            for reading, at in wanted
        ]
    return pd.DataFrame(rows, columns=[*ARM, "reading", "seed", *POINT])


def settings(cells: Iterable[Cell]) -> pd.DataFrame:
    """The settings of some cells before they have run, as `same_tries` takes them."""
    rows = [
        {
            **Task.of(cell)._asdict(),
            "arm": cell.arm,
            "lr": cell.lr,
            **dict(zip(THRESHOLD, (cell.number, cell.relative, cell.percentile), strict=True)),
        }
        for cell in cells
    ]
    frame = pd.DataFrame(rows, columns=[*ARM, *POINT])
    return frame.astype(dict.fromkeys(POINT, float)).assign(extended=False)


def same_tries(
    settings: pd.DataFrame, percentile: float, multiple: float | None = None
) -> pd.DataFrame:
    """The settings that are compared at the same number of tries: of every arm the study's own
    learning rates, and of a clip one threshold, fixed before anything has run.

    It is the given percentile of the pilot's sizes, or the only one that the study has. An arm
    without such a threshold has no part, nor has a task in which no clip has one.

    :param settings: a row per setting or cell, with ``ARM``, ``POINT`` and ``extended``.
    :param multiple: if given, this multiple of the pilot's median size in place of the percentile.
    """
    wanted = (PERCENTILE, percentile) if multiple is None else (RELATIVE, multiple)
    own = settings[~settings["extended"].astype(bool)].sort_values([*ARM, *POINT])
    own = own.assign(setting=[Threshold.of(row).setting for row in own.to_dict("records")])
    own = own.drop_duplicates([*ARM, "lr", "setting"])
    parts, clipped = [own[:0]], set()
    for arm, rows in own.groupby(ARM, sort=True):
        fixed = rows
        if len(set(rows["setting"])) > 1:
            fixed = rows[[one == wanted for one in rows["setting"]]]
        if fixed[THRESHOLD].notna().any(axis=None):
            clipped.add(arm[: len(TASK)])
        parts.append(fixed)
    found = pd.concat(parts)
    met = [task in clipped for task in found[TASK].itertuples(index=False, name=None)]
    return found.loc[met, [*ARM, *POINT]].reset_index(drop=True)


def several(
    settings: pd.DataFrame, unclipped: Mapping[tuple[Any, ...], tuple[str, str]]
) -> pd.DataFrame:
    """The study's own settings of the arms that have several thresholds, what tuning one could
    choose from, and of their partners.

    :param settings: as `same_tries` takes them.
    :param unclipped: `arm_of` a clipped arm → its optimizer's registered name, and its partner.
    """
    own = settings[~settings["extended"].astype(bool)].sort_values([*ARM, *POINT])
    own = own.assign(setting=[Threshold.of(row).setting for row in own.to_dict("records")])
    many = own.groupby(ARM)["setting"].transform("nunique") > 1
    arms = [*own[ARM].itertuples(index=False, name=None)]
    clipped = {arm for arm, has in zip(arms, many, strict=True) if has} & set(unclipped)
    partners = {(*arm[:-1], unclipped[arm][1]) for arm in clipped}
    wanted = many | np.array([arm in partners for arm in arms], dtype=bool)
    return own[wanted].drop_duplicates([*ARM, "lr", "setting"])[[*ARM, *POINT]]


def lowered(
    choices: pd.DataFrame, unclipped: Mapping[tuple[Any, ...], tuple[str, str]]
) -> pd.DataFrame:
    """The learning rate that stands for a clip which fires in most steps: that of its choice, times
    the share of the gradient that the clip left. An optimizer whose steps are as long as the
    gradient does nearly the same with it, without a clip.

    Columns: ``ARM`` (of the clip), ``partner`` (the arm without it), ``lr`` to two digits.

    :param choices: as `choose` makes them.
    :param unclipped: `arm_of` a clipped arm → its optimizer's registered name, and its partner.
    """
    rows = []
    for choice in choices.to_dict("records"):
        optimizer, partner = unclipped.get(arm_of(choice), ("", ""))
        lr = choice["lr"] * choice["kept"]
        fires = optimizer in PROPORTIONAL and choice["clipped_fraction"] > MOST
        # A clip may lengthen gradients, and of an older row nothing is known.
        if fires and lr > 0 and float(f"{lr:.2g}") < choice["lr"]:
            rows.append(
                {
                    **{name: choice[name] for name in ARM},
                    "partner": partner,
                    "lr": float(f"{lr:.2g}"),
                }
            )
    return pd.DataFrame(rows, columns=[*ARM, "partner", "lr"])


def _of_same_arm(frame: pd.DataFrame, row: Mapping[str, Any]) -> pd.Series:
    mask = pd.Series(True, index=frame.index)
    for name in ARM:
        mask &= frame[name] == row[name]
    return mask
