"""How far apart two runs of a cell may be if the same bits cannot be asked for: on another
processor, by another engine.
"""

from __future__ import annotations

import numpy as np

# Relative to the largest value. In bfloat16 a product is 2^-8 off, and engines round at different
# places: calm runs of wdbc and digits were up to .03 apart after 200 steps. A product in TF32 is
# 2^-11 off, an eighth of that; no run of it was measured.
TOLERANCE = {"float32": 1e-3, "tf32": 1e-2, "float64": 1e-8, "bfloat16-mixed": 5e-2}
TINY = np.finfo(float).tiny


def apart(before: np.ndarray, now: np.ndarray, relative: bool = True) -> float:
    """The largest difference between two arrays, as a share of the largest value before; ∞ if not
    the same values are finite.

    :param relative: False for the difference itself.
    """
    if len(before) != len(now) or not np.array_equal(np.isfinite(before), np.isfinite(now)):
        return np.inf
    both = np.isfinite(before)
    if not both.any():
        return 0.0
    largest = np.abs(before[both]).max() if relative else 1.0
    return float(np.abs(before - now)[both].max() / max(largest, TINY))


def along(before: np.ndarray, now: np.ndarray) -> np.ndarray:
    """The difference between two curves at each step, as a share of the largest value before up to
    that step; ∞ if only one of them is finite there, or has ended.

    A later value does not count: a loss that rises would hide how far the first ones were apart.
    """
    shared = min(len(before), len(now))
    share = np.full(max(len(before), len(now)), np.inf)
    one, other = before[:shared], now[:shared]
    finite = np.isfinite(one), np.isfinite(other)
    largest = np.maximum.accumulate(np.where(finite[0], np.abs(one), 0.0))
    both = finite[0] & finite[1]
    with np.errstate(over="ignore"):  # of two that are nearly as large as a float can be: ∞
        gap = np.abs(np.subtract(one, other, where=both, out=np.zeros(shared)))
        shares = gap / np.maximum(largest, TINY)
    share[:shared] = np.where(finite[0] == finite[1], shares, np.inf)
    return share
