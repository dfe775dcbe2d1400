"""The columns of ``cells`` that follow from a curve and its evaluations, for the archive that
writes them and for verify.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from clipbench import events, measures
from clipbench.events import Evaluation


def of_curve(rows: np.ndarray) -> dict[str, Any]:
    """The columns that a curve (steps × measures) gives; without steps all but ``steps`` are
    None.
    """
    losses, norms, some = rows[:, measures.LOSS], rows[:, measures.GRAD_NORM], len(rows) > 0
    return {
        "steps": len(rows),
        "initial_loss": float(losses[0]) if some else None,
        "final_loss": float(losses[-1]) if some else None,
        "best_loss": float(np.fmin.reduce(losses)) if some else None,
        "clipped_fraction": float((rows[:, measures.CHANGED] > 0).mean()) if some else None,
        "grad_norm_median": float(np.nanmedian(norms))
        if some and not np.isnan(norms).all()
        else None,
        "stationary_at": events.stationary_at(rows),
    }


def of_evaluations(
    evaluations: Iterable[Evaluation], metric: str | None, target: float | None
) -> dict[str, Any]:
    """The columns that evaluations give: what is not finite counts for none."""
    validation: list[tuple[int, float]] = []
    test: list[float] = []
    for step, split, name, value, *_ in evaluations:
        if (split, name) == ("validation", "loss"):
            validation.append((step, value))
        elif (split, name) == ("test", metric) and np.isfinite(value):
            test.append(value)
    finite = [value for _, value in validation if np.isfinite(value)]
    return {
        "metric_value": test[-1] if test else None,
        "validation_value": min(finite) if finite else None,
        "steps_to_target": steps_to_target(validation, target),
    }


def steps_to_target(validation: Iterable[tuple[int, float]], target: float | None) -> int | None:
    """The updates before the first validation loss ``(updates, value)`` that meets the target;
    None if none does.
    """
    return next(
        (step for step, value in validation if target is not None and -np.inf < value <= target),
        None,
    )


def as_stored(rows: np.ndarray, dtype: str) -> np.ndarray:
    """A curve (steps × measures) in the run's own precision: what float64 adds to ratios and
    roots of float32 sums is noise.
    """
    with np.errstate(over="ignore"):
        return rows if dtype == "float64" else rows.astype(np.float32).astype(np.float64)
