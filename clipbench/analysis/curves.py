"""The loss curves of the chosen settings."""

from __future__ import annotations

import numpy as np
import pandas as pd

from clipbench import statistics
from clipbench.analysis.cells import Components, plain, table_of, workload
from clipbench.schema import Reading
from clipbench.task import ARM

CURVE_POINTS = 150


def curves(
    recorded: pd.DataFrame, drawn: pd.DataFrame, components: Components, points: int = CURVE_POINTS
) -> pd.DataFrame:
    """Loss curves of the chosen settings' report seeds, thinned by block medians; loss above the
    optimum if that is known.

    Columns ``ARM``, ``seed``, ``cell``, ``ended``, ``step``, ``gap``. Values that are not finite
    are kept, as ∞.
    """
    chosen = drawn[(drawn["reading"] == Reading.ALL) & drawn["cell"].notna()].drop_duplicates(
        "cell"
    )
    wanted = recorded[recorded["cell"].isin(chosen["cell"])][["cell", "step", "loss"]]
    lines = dict(iter(plain(wanted).sort_values(["cell", "step"]).groupby("cell", sort=True)))
    frames = []
    for row in chosen.sort_values([*ARM, "seed"]).to_dict("records"):
        line = lines.get(row["cell"])
        if line is None:
            continue
        optimum = workload(components, row["problem"])["optimum"]
        position, gap = statistics.block_medians(
            line["loss"].to_numpy(dtype=float) - (optimum or 0.0), points
        )
        key = {name: row[name] for name in [*ARM, "seed", "cell", "ended"]}
        frames.append(
            pd.DataFrame(
                {
                    **{name: [value] * len(gap) for name, value in key.items()},
                    "step": position,
                    "gap": gap,
                }
            )
        )
    return (
        pd.concat(frames, ignore_index=True)
        if frames
        else table_of([], [*ARM, "seed", "cell", "ended", "step", "gap"])
    )


def extremes(*curves: np.ndarray, stretches: int) -> np.ndarray:
    """The places of the first and the last point, and in each stretch of the least and the greatest
    of every curve.
    """
    size = len(curves[0])
    places = {0, size - 1}
    for stretch in np.array_split(np.arange(size), min(stretches, size)):
        for curve in curves:
            part = curve[stretch]
            if np.isfinite(part).any():
                places |= {int(stretch[np.nanargmin(part)]), int(stretch[np.nanargmax(part)])}
    return np.array(sorted(places))
