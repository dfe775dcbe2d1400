"""Whether a threshold chosen under one condition holds under another: as a number, and as a
multiple of the pilot's gradient.

A condition is a task: a workload's settings and a batch size. Everything is of the selection phase,
on the grid that the study itself asks for, so that two conditions have the same thresholds. Between
learning rates nothing is compared: the pilot knows none of them, so that a multiple is one and the
same number at all of them.

The settings compared on a seed are chosen without it, under both conditions: a threshold chosen as
the best on some seeds looks better on these than it is, and everything else worse.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from clipbench import selection, statistics
from clipbench.analysis.cells import plain, table_of
from clipbench.schema import UNSTABLE, Role, Status
from clipbench.task import ARM

BASES = ("absolute", "relative")
# an arm on whatever task of a workload: within it a threshold is carried
FAMILY = ["workload", "device", "dtype", "arm"]
PAIR = [*FAMILY, "basis", "source", "source_batch", "problem", "batch"]
PROBLEM, BATCH = ARM.index("problem"), ARM.index("batch")
FEWEST_THRESHOLDS = 2  # thresholds from which to choose

Key = tuple[Any, ...]


def carried(cells: pd.DataFrame) -> pd.DataFrame:
    """A row per pair of conditions and seed: the loss, under one condition, of the threshold chosen
    under the other.

    Columns: ``FAMILY``; ``basis`` (``absolute`` or ``relative``); where the threshold was chosen,
    ``source`` (a problem) and ``source_batch``; where it is used, ``problem`` and ``batch``;
    ``seed``; ``carried`` and ``own``, the two thresholds as the study wrote them; ``loss`` and
    ``own_loss``, their best validation loss on the seed: ∞ of an unstable run, NaN of a failed one.
    Each threshold has the learning rate that suits it best there, so that it alone is carried.

    Only arms with several thresholds of both bases are here; a choice that the other condition did
    not try is left out.
    """
    frame = _grid(cells)
    rows = []
    for basis in BASES:
        mine = frame[frame["basis"] == basis]
        for seed in sorted(mine["seed"].unique()):
            rows += list(_on(seed, mine))
    return table_of(rows, [*PAIR, "seed", "carried", "own", "loss", "own_loss"])


def _grid(cells: pd.DataFrame) -> pd.DataFrame:
    """The clipped selection cells of the study's own grid, with ``basis``, and with
    ``threshold`` as the study wrote it.
    """
    own = (
        (cells["role"] == Role.SELECT) & ~cells["extended"].astype(bool) & (cells["clip"] != "none")
    ) & cells["percentile"].isna()
    frame = plain(cells[own])
    relative, value = frame["relative"].notna(), frame["validation_value"].astype(float)
    spoiled = frame["outcome"].isin(UNSTABLE) | ~np.isfinite(value)
    frame = frame.assign(
        basis=np.where(relative, "relative", "absolute"),
        threshold=frame["relative"].where(relative, frame["threshold"]),
        # one multiple is another number under every condition, and no number at all of a failed
        # cell
        relative=math.nan,
        loss=value.mask(spoiled, np.inf).mask(frame["status"] == Status.FAILED, np.nan),
    )
    several = frame.groupby([*ARM, "basis"])["threshold"].nunique().ge(FEWEST_THRESHOLDS)
    both = several.groupby(ARM).sum().eq(len(BASES))
    return frame[pd.MultiIndex.from_frame(frame[ARM]).isin(both.index[both])]


def _on(seed: int, frame: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """The rows of one seed and basis: choices from all other seeds, losses from this one."""
    scores, here = selection.score(frame[frame["seed"] != seed]), frame[frame["seed"] == seed]
    loss = {_key(row, "lr", "threshold"): row["loss"] for row in here.to_dict("records")}
    best = {_key(row): row["threshold"] for row in _chosen(scores)}
    lr = {
        _key(row, "threshold"): row["lr"]
        for _, one in scores.groupby("threshold")
        for row in _chosen(one)
    }

    for family, tasks in here.drop_duplicates(ARM).groupby(FAMILY, sort=True):
        groups = [group for group in _groups(tasks) if group in best]
        for source, target in itertools.permutations(groups, 2):
            taken, own = best[source], best[target]
            if (*target, taken) not in lr:
                continue
            losses = [
                loss.get((*target, lr[*target, threshold], threshold), math.nan)
                for threshold in (taken, own)
            ]
            yield {
                **dict(zip(FAMILY, family, strict=True)),
                "basis": frame["basis"].iloc[0],
                "source": source[PROBLEM],
                "source_batch": source[BATCH],
                "problem": target[PROBLEM],
                "batch": target[BATCH],
                "seed": seed,
                "carried": taken,
                "own": own,
                "loss": losses[0],
                "own_loss": losses[1],
            }


def _chosen(scores: pd.DataFrame) -> list[dict[str, Any]]:
    return selection.choose(scores).to_dict("records")


def _groups(tasks: pd.DataFrame) -> list[Key]:
    return [tuple(row) for row in tasks[ARM].sort_values(ARM).itertuples(index=False)]


def _key(row: Mapping[str, Any], *more: str) -> Key:
    return tuple(row[name] for name in (*ARM, *more))


def pairs(rows: pd.DataFrame) -> pd.DataFrame:
    """A row per pair of conditions: what the carried threshold loses, its mean over the seeds with
    its interval.

    ``statistic`` is ``mean``, ``median`` if a seed was unstable (it counts as ∞), or ``incomplete``
    if one has no value: no interval then. ``carried`` and ``own`` are the thresholds most often
    chosen; ``agreed`` is the share of seeds on which they are the same. The seeds are paired; their
    choices share all seeds but two, so that intervals are narrow rather than wide.
    """
    summaries = []
    for pair, seeds in rows.groupby(PAIR, sort=True):
        gaps = statistics.differences(seeds["loss"], seeds["own_loss"])
        summaries.append(
            {
                **dict(zip(PAIR, pair, strict=True)),
                "n": len(seeds),
                "carried": _usual(seeds["carried"]),
                "own": _usual(seeds["own"]),
                "agreed": float((seeds["carried"] == seeds["own"]).mean()),
                "unstable": int(np.isinf(seeds["loss"]).sum()),
                "own_unstable": int(np.isinf(seeds["own_loss"]).sum()),
                "own_loss": float(seeds["own_loss"].median()),
                **_estimate_of(gaps),
            }
        )
    columns = [
        "n",
        "carried",
        "own",
        "agreed",
        "unstable",
        "own_unstable",
        "own_loss",
        "statistic",
        "estimate",
        "low",
        "high",
    ]
    return table_of(summaries, [*PAIR, *columns])


def _usual(values: pd.Series) -> float:
    return float(values.mode().min())


def _estimate_of(gaps: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, Any]:
    if np.isnan(gaps).any():
        known = gaps[~np.isnan(gaps)]
        return {
            "statistic": "incomplete",
            **statistics.median_interval(known)._asdict(),
            "low": math.nan,
            "high": math.nan,
        }
    statistic = "mean" if np.isfinite(gaps).all() else "median"
    return {
        "statistic": statistic,
        **statistics.paired_difference(gaps, np.zeros_like(gaps))._asdict(),
    }


def bases(rows: pd.DataFrame) -> pd.DataFrame:
    """Absolute against relative: a row per workload and arm.

    For each seed the median of what the carried threshold loses is taken over all pairs that both
    bases have; ``absolute`` and ``relative`` are the medians of these over the seeds. ``unstable``
    and ``relative_unstable`` count those of the ``carries`` (pairs × seeds) whose run was unstable
    although that of the target's own threshold was not. ``estimate`` is the paired difference
    absolute − relative with its interval: positive if the multiple carries better.
    """
    keyed = [name for name in PAIR if name != "basis"]
    rows = rows.assign(
        gap=statistics.differences(rows["loss"], rows["own_loss"]), spoiled=_is_unstable(rows)
    )
    sides = {basis: rows[rows["basis"] == basis] for basis in BASES}
    columns = [*keyed, "seed", "gap", "spoiled"]
    both = sides["absolute"][columns].merge(
        sides["relative"][columns], on=[*keyed, "seed"], suffixes=("_absolute", "_relative")
    )
    summaries = []
    for family, group in both.groupby(FAMILY, sort=True):
        seeds = group.groupby("seed")[["gap_absolute", "gap_relative"]].agg(_median)
        absolute, relative = (seeds[f"gap_{basis}"].to_numpy(dtype=float) for basis in BASES)
        gaps = statistics.differences(absolute, relative)
        summaries.append(
            {
                **dict(zip(FAMILY, family, strict=True)),
                "n": len(seeds),
                "pairs": len(group.drop_duplicates(keyed)),
                "carries": len(group),
                "absolute": _median(absolute),
                "relative": _median(relative),
                "unstable": int(group["spoiled_absolute"].sum()),
                "relative_unstable": int(group["spoiled_relative"].sum()),
                **_estimate_of(gaps),
            }
        )
    columns = [
        "n",
        "pairs",
        "carries",
        "absolute",
        "relative",
        "unstable",
        "relative_unstable",
        "statistic",
        "estimate",
        "low",
        "high",
    ]
    return table_of(summaries, [*FAMILY, *columns])


def _median(values: ArrayLike) -> float:
    """The median of some values; NaN if one of them is NaN: nothing is concluded without it."""
    sample = np.asarray(values, dtype=float)
    return math.nan if np.isnan(sample).any() else statistics.median_interval(sample).estimate


def _is_unstable(rows: pd.DataFrame) -> pd.Series:
    return np.isinf(rows["loss"].astype(float)) & ~np.isinf(rows["own_loss"].astype(float))
