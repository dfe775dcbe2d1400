"""How far apart two runs of a cell may be if the same bits cannot be asked for: on another
processor, by another engine.
"""

from __future__ import annotations

import numpy as np

# Relative to the largest value. In bfloat16 a product is 2^-8 off, and engines round at different
# places: calm runs of wdbc and digits were up to .03 apart after 200 steps. A product in TF32 is
# 2^-11 off, an eighth of that; no run of it was measured.
TOLERANCE = {"float32": 1e-3, "tf32": 1e-2, "float64": 1e-8, "bfloat16-mixed": 5e-2}


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
    return float(np.abs(before - now)[both].max() / max(largest, np.finfo(float).tiny))
