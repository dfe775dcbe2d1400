"""The steps of a watched loop as columns of its curve.

Numbers may lie on a device until they are asked for here, for many steps at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipbench.measures import CHANGED, COSINE, GRAD_NORM, KEPT, UPDATE_NORM
from clipbench.recording.gradients import Number

EPSILON = np.float32(1e-6)  # torch's norm clip adds it to the norm
COLUMNS = (
    *("loss", "grad_norm", "kept", "cosine", "changed", "update_norm"),
    *("lr", "threshold", "accumulated", "seconds", "clip_seconds"),
)


@dataclass(frozen=True)
class Step:
    """One step; what is None was not seen."""

    loss: Number | None
    raw: Number | None
    """Norm of the gradient before any clip."""
    clipped: Number | None
    """Norm of the gradient after all clips; None if it follows from a norm clip's threshold."""
    clip: bool
    """Whether a clip touched the gradient."""
    known: bool
    """Whether the clip is torch's norm clip of the whole gradient."""
    threshold: float | None
    lr: Number
    accumulated: int
    seconds: float | None
    clip_seconds: float | None
    raw_scale: Tensor | None
    """What the raw gradient was multiplied by."""
    scale: Tensor | None
    """What the clipped gradient was still multiplied by."""
    skipped: Number
    """Not zero if a fused optimizer skipped the step."""
    exact: np.ndarray | None
    """Its measures, if the whole gradient was compared element by element."""


def columns(steps: Sequence[Step]) -> tuple[dict[str, np.ma.MaskedArray], int]:
    """The columns of a curve, masked where a value was not seen, without the steps that were
    skipped; and how many those are.
    """
    taken = {
        name: _numbers([getattr(step, name) for step in steps])
        for name in (
            *("loss", "raw", "clipped", "lr", "threshold", "accumulated", "seconds"),
            *("clip_seconds", "raw_scale", "scale", "skipped"),
        )
    }
    scale = taken["scale"].filled(1.0)
    raw_scale = np.where(taken["raw_scale"].mask, scale, taken["raw_scale"].filled(1.0))
    raw = _divided(taken["raw"], raw_scale)
    table = {
        "loss": taken["loss"],
        "grad_norm": raw,
        **_effect(steps, taken, raw, scale),
        "update_norm": _unseen(len(steps)),
        **{name: taken[name] for name in COLUMNS[6:]},
    }
    compared = np.flatnonzero(np.array([step.exact is not None for step in steps], dtype=bool))
    exact = np.array([step.exact for step in steps if step.exact is not None])
    for name, measure in (
        ("grad_norm", GRAD_NORM),
        ("kept", KEPT),
        ("cosine", COSINE),
        ("changed", CHANGED),
        ("update_norm", UPDATE_NORM),
    ):
        if len(compared):
            divisor = scale[compared] if measure == GRAD_NORM else 1.0
            table[name][compared] = exact[:, measure] / divisor
    stayed = taken["skipped"].filled(0.0) == 0
    return {name: column[stayed] for name, column in table.items()}, int((~stayed).sum())


def shown(step: Step) -> dict[str, Number]:
    """What a tracker shows of a step, without waiting for the device: the raw gradient's norm, the
    share of it that the clips left, whether they changed it, and the threshold; NaN where that was
    not seen.
    """
    raw = math.nan if step.raw is None else step.raw
    kept: Number = 1.0
    if step.known and step.threshold is not None:
        kept = step.threshold / (raw + float(EPSILON))
        kept = kept.clamp(max=1.0) if isinstance(kept, Tensor) else min(kept, 1.0)
    elif step.clip:
        kept = math.nan if step.clipped is None else step.clipped / raw if _is_some(raw) else 1.0
    changed = kept != 1
    return {
        "grad_norm": raw,
        "kept": kept,
        "fired": changed.float() if isinstance(changed, Tensor) else float(changed),
        "threshold": math.nan if step.threshold is None else step.threshold,
    }


def _is_some(raw: Number) -> bool:
    return isinstance(raw, Tensor) or raw != 0


def _effect(
    steps: Sequence[Step],
    taken: Mapping[str, np.ma.MaskedArray],
    raw: np.ma.MaskedArray,
    scale: np.ndarray,
) -> dict[str, np.ma.MaskedArray]:
    """What the clips left of the gradients, as far as norms tell it.

    :param taken: the numbers of the steps; a clip compared its threshold with these norms.
    :param raw: the norms before any clip, and
    :param scale: what those after it are multiplied by.
    """
    known = np.array([step.known for step in steps], dtype=bool)
    none = ~np.array([step.clip for step in steps], dtype=bool)
    clipped, compared = (
        _divided(taken["clipped"], scale),
        taken["raw"].filled(np.nan).astype(np.float32),
    )
    with np.errstate(all="ignore"):
        # in float32, as torch works it out
        limit = taken["threshold"].filled(np.nan).astype(np.float32)
        share = np.minimum(limit / (compared + EPSILON), 1)
        ratio = np.where(raw.filled(1) == 0, 1.0, clipped.filled(np.nan) / raw.filled(np.nan))
    kept = np.ma.masked_array(
        np.select([none, known], [1.0, share], ratio),
        np.select([none, known], [False, raw.mask], raw.mask | clipped.mask),
    )
    whole = kept.filled(0.0) == 1
    return {
        "kept": kept,
        # a norm clip keeps the direction; of any other, norms do not tell it
        "cosine": np.ma.masked_array(np.ones(len(steps)), ~(whole | known)),
        "changed": np.ma.masked_array(np.zeros(len(steps)), ~whole),
    }


def _divided(column: np.ma.MaskedArray, by: np.ndarray) -> np.ma.MaskedArray:
    """A quotient that keeps what is not finite, which numpy would mask."""
    return np.ma.masked_array(column.data / by, column.mask)


def _numbers(values: Sequence[Any]) -> np.ma.MaskedArray:
    """Numbers of which some are absent and some lie on a device, which is waited for once."""
    mask = [value is None for value in values]
    there = [(at, value) for at, value in enumerate(values) if isinstance(value, Tensor)]
    array = np.array(
        [0.0 if value is None or isinstance(value, Tensor) else float(value) for value in values]
    )
    if there:
        first = there[0][1].device
        together = torch.stack([value.double().reshape(()).to(first) for _, value in there])
        array[[at for at, _ in there]] = together.cpu().numpy()
    return np.ma.masked_array(array, mask)


def _unseen(count: int) -> np.ma.MaskedArray:
    return np.ma.masked_array(np.zeros(count), np.ones(count, dtype=bool))
