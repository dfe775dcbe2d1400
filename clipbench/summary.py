"""The columns of ``cells`` that follow from a curve and its evaluations, for the archive that
writes them and for verify.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from clipbench import events, measures
from clipbench.events import Evaluation
from clipbench.skill import LOSS, Scale


def of_curve(rows: np.ndarray) -> dict[str, Any]:
    """The columns that a curve (steps × measures) gives; without steps all but ``steps`` are
    None.
    """
    losses, some = rows[:, measures.LOSS], len(rows) > 0
    return {
        "steps": len(rows),
        "initial_loss": float(losses[0]) if some else None,
        "final_loss": float(losses[-1]) if some else None,
        "best_loss": float(np.fmin.reduce(losses)) if some else None,
        "clipped_fraction": float((rows[:, measures.CHANGED] > 0).mean()) if some else None,
        "grad_norm_median": _median(rows[:, measures.GRAD_NORM]),
        "kept_median": _median(rows[:, measures.KEPT]),
        "cosine_median": _median(rows[:, measures.COSINE]),
        "stationary_at": events.stationary_at(rows),
    }


def _median(values: np.ndarray) -> float | None:
    known = values[~np.isnan(values)]
    return float(np.median(known)) if len(known) else None


def of_evaluations(
    evaluations: Sequence[Evaluation],
    metric: str | None,
    about: Mapping[str, Any],
    steps: int,
    diverged_at: int | None = None,
) -> dict[str, Any]:
    """The columns that evaluations give: what is not finite counts for none.

    :param metric: the workload's, by which test is graded.
    :param about: the workload, as the page of components tells of it.
    :param steps: how many the run was asked for.
    :param diverged_at: the step at which it diverged.
    """
    validation, test = _curve(evaluations, "validation", LOSS), _curve(evaluations, "test", metric)
    finite = [value for value in validation.values() if np.isfinite(value)]
    last = test.get(steps, np.nan)
    return {
        "metric_value": last if np.isfinite(last) else None,
        "validation_value": min(finite) if finite else None,
        "steps_to_target": _steps_to_target(validation.items(), about.get("target")),
        **_grades(evaluations, test, about, steps, diverged_at),
    }


def _curve(evaluations: Iterable[Evaluation], split: str, metric: str | None) -> dict[int, float]:
    """Updates → value of one metric on one split."""
    return {one.step: one.value for one in evaluations if one[1:3] == (split, metric)}


def _grades(
    evaluations: Sequence[Evaluation],
    test: Mapping[int, float],
    about: Mapping[str, Any],
    steps: int,
    diverged_at: int | None,
) -> dict[str, Any]:
    """The columns of the best checkpoint and of the last one, by the graded metric on validation.

    The best one of equals has the lower loss, or is the later. That of a run that diverged lies
    before the event. A function, whose value is its loss, has no checkpoint to choose.
    """
    scale = Scale.of(about)
    graded = _curve(evaluations, "validation", scale.metric) if scale else {}
    graded = {step: value for step, value in graded.items() if np.isfinite(value)}
    losses = _curve(evaluations, "validation", LOSS)
    sign = 1 if scale and scale.higher_is_better else -1
    before = [step for step in graded if diverged_at is None or step <= diverged_at]
    best = (
        max(before, key=lambda step: (sign * graded[step], -losses.get(step, np.inf), step))
        if before and about.get("reference_loss") is not None
        else None
    )
    reached = np.nan if best is None else test.get(best, np.nan)
    return {
        "validation_metric": graded.get(steps),
        "best_step": best,
        "best_validation": None if best is None else graded[best],
        "best_metric": reached if np.isfinite(reached) else None,
    }


def _steps_to_target(validation: Iterable[tuple[int, float]], target: float | None) -> int | None:
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
