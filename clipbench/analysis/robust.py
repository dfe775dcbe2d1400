"""How hot a learning rate the methods survive: where half of the seeds are lost, with a clip and
without, and how much an ill-chosen learning rate costs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from clipbench.analysis.cells import Components, table_of, workload
from clipbench.analysis.headline import Axis, declared
from clipbench.statistics import CONFIDENCE
from clipbench.task import ARM, Task

RESAMPLED = 2000  # draws of the seeds, for an interval


def robust(
    found: Mapping[tuple[Task, str, str], Axis],
    arms_table: pd.DataFrame,
    components: Components,
) -> pd.DataFrame:
    """A row per task and clip, beside the same optimizer without it.

    ``half`` is the learning rate at which half of the seeds are lost (none of diverged, collapsed
    and stalled runs has learned), between two of the axis on a scale of decades; ``below`` and
    ``above`` say that it lies outside the axis, whose end then stands for it. ``shift`` is how far
    the clip moves it, in decades, with an interval over seeds drawn again. ``sensitivity`` is how
    much less than the best learning rate the others reach, on average over the axis, at the last
    step; what is worse than chance counts as chance. The names with ``partner_`` are those without
    the clip.
    """
    rows = []
    for family in declared(arms_table, components, None):
        for task, arm, partner in family.pairs:
            sides = [found.get((task, one, "last")) for one in (arm, partner)]
            if sides[0] is None or sides[1] is None:
                continue
            first, second = sides[0], sides[1]
            known = np.isfinite(first.lost).all(axis=0) & np.isfinite(second.lost).all(axis=0)
            if list(first.seeds) != list(second.seeds) or not known.any():
                continue
            about = workload(components, task.problem)
            chance = math.nan if about["chance"] is None else float(about["chance"])
            least = chance if about["higher_is_better"] else -chance
            rows.append(
                {
                    **task._asdict(),
                    "arm": arm,
                    "partner": partner,
                    "n": int(known.sum()),
                    **_side(first, known, least, ""),
                    **_side(second, known, least, "partner_"),
                    **_shift(first, second, known),
                }
            )
    columns = [*ARM, "partner", "n"]
    for prefix in ("", "partner_"):
        columns += [f"{prefix}{name}" for name in ("half", "below", "above", "sensitivity")]
    return table_of(rows, [*columns, "shift", "low", "high"])


def _side(axis: Axis, known: np.ndarray, least: float, prefix: str) -> dict[str, Any]:
    lrs, lost = axis.points["lr"].to_numpy(dtype=float), axis.lost[:, known]
    (half,), (below,), (above,) = half_lost(lrs, lost.mean(axis=1)[None])
    # what is worse than chance counts as chance; a NaN, of a function, is no bound
    level = np.fmax(axis.test[:, known], least).mean(axis=1)
    return {
        f"{prefix}half": half,
        f"{prefix}below": bool(below),
        f"{prefix}above": bool(above),
        f"{prefix}sensitivity": float(level.max() - level.mean()),
    }


def half_lost(lrs: np.ndarray, lost: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The learning rate at which the share of lost seeds reaches a half, upwards from where it is
    least (the hottest of these), and whether it lies below or above the axis.

    :param lrs: the axis, from the least on; its ends stand for what lies beyond them.
    :param lost: shares, draws × learning rates.
    """
    decades, size = np.log10(lrs), len(lrs)
    least = size - 1 - np.argmin(lost[:, ::-1], axis=1)
    below = lost[np.arange(len(lost)), least] >= 0.5
    beyond = (lost >= 0.5) & (np.arange(size) > least[:, None])
    above = ~beyond.any(axis=1) & ~below
    after = np.maximum(np.argmax(beyond, axis=1), min(1, size - 1))
    before = np.maximum(after - 1, 0)
    one, other = (lost[np.arange(len(lost)), at] for at in (before, after))
    with np.errstate(divide="ignore", invalid="ignore"):
        way = np.where(other > one, (0.5 - one) / (other - one), 0.0)
    place = decades[before] + way * (decades[after] - decades[before])
    place = np.where(below, decades[0], np.where(above, decades[-1], place))
    return 10**place, below, above


def _shift(first: Axis, second: Axis, known: np.ndarray) -> dict[str, float]:
    """How far the clip moves the learning rate, in decades; seeds are drawn for both together."""
    count = int(known.sum())
    draws = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLED)
    halves = [
        [
            np.log10(half_lost(axis.points["lr"].to_numpy(dtype=float), shares)[0])
            for shares in (
                axis.lost[:, known].mean(axis=1)[None],
                draws @ axis.lost[:, known].T / count,
            )
        ]
        for axis in (first, second)
    ]
    seen, drawn = (halves[0][at] - halves[1][at] for at in range(2))
    tails = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, [tails, 1 - tails]) if count > 1 else (math.nan, math.nan)
    return {"shift": float(seen[0]), "low": float(low), "high": float(high)}
