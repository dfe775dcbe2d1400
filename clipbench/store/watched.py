"""What a row of a watched loop is held to: its settings, its curve and nothing of a study."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from clipbench.schema import Status


def broken(row: Any, curve: Mapping[str, np.ndarray] | None) -> Iterator[str]:
    """What is wrong with a watched row of ``cells`` and its curve.

    :param curve: its columns in the order of the steps; None if it has no step.
    """
    steps = np.arange(0) if curve is None else curve["step"]
    if not np.array_equal(steps, np.arange(row.steps or 0)):
        yield f"its curve has {len(steps)} steps, not {row.steps}"
        return
    if row.status not in (Status.COMPLETED, Status.DIVERGED) or row.outcome is not None:
        yield f"status {row.status} and outcome {row.outcome} are none of a watched loop"
    if curve is None or not len(steps):
        return
    losses, norms = (_known(curve[name]) for name in ("loss", "grad_norm"))
    if len(losses) and row.final_loss != losses[-1] and not np.isnan(losses[-1]):
        yield f"its final loss is {row.final_loss}, and its curve says {losses[-1]}"
    norms = norms[~np.isnan(norms)]
    median = float(np.median(norms)) if len(norms) else None
    if row.grad_norm_median != median:
        yield f"its median norm is {row.grad_norm_median}, and its curve says {median}"


def _known(column: np.ndarray) -> np.ndarray:
    """The values that are there; NaN is one of them."""
    return np.array([value for value in column if value is not None], dtype=float)
