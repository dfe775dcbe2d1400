"""How a claim is found broken, and what is told of it."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipbench.errors import UsageError

TOLERANCE = 1e-10  # relative to a tensor's largest element: another order of summation is no fault


class Fault(Exception):  # noqa: N818 - a finding, not an error
    """A claim is broken; the message says how."""


class Doubt(Exception):  # noqa: N818 - a finding, not an error
    """A claim is kept, and results may still mislead; the message says how, and what to write."""


def told(error: BaseException) -> str:
    """An exception in one line."""
    said = str(error) if isinstance(error, UsageError) else f"{type(error).__name__}: {error}"
    return said.partition("\n")[0][:300]


def word(value: Any) -> str:
    """What a hook returned, in words."""
    return (
        f"a dict of {', '.join(map(repr, value)) or 'nothing'}"
        if isinstance(value, dict)
        else f"a {type(value).__name__}"
    )


@contextmanager
def under(settings: Mapping[str, Any]) -> Iterator[None]:
    """Name the settings in whatever goes wrong under them."""
    try:
        yield
    except Exception as error:
        words = ", ".join(f"{name}={value}" for name, value in settings.items())
        raise Fault(
            (str(error) if isinstance(error, Fault) else told(error))
            + (f", with {words}" if words else "")
        ) from error


def distance(left: Tensor, right: Tensor) -> float:
    """The largest difference, relative to the largest finite element of ``right``; equal
    infinities, or two NaN, are none.
    """
    if left.shape != right.shape:
        return math.inf
    left, right = left.detach().double(), right.detach().double()
    same = (left == right) | (left.isnan() & right.isnan())
    gap = torch.where(same, torch.zeros_like(left), (left - right).abs()).nan_to_num(nan=math.inf)
    largest = right.abs().nan_to_num(nan=0.0, posinf=0.0)
    if not gap.numel() or not gap.any():
        return 0.0
    return float(gap.max()) / float(largest.max()) if largest.any() else math.inf


def _random_state() -> dict[str, object]:
    """Where the three global generators stand; they are read, never drawn from."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    return {
        "torch's": torch.get_rng_state().numpy().tobytes(),
        "NumPy's": (name, np.asarray(keys).tobytes(), *rest),
        "Python's": random.getstate(),
    }


@contextmanager
def no_draw(what: str = "it", remedy: str = "") -> Iterator[None]:
    """What runs inside draws from no global random state.

    :raises Fault: it does; ``what`` names it, ``remedy`` says what to do.
    """
    before = _random_state()
    yield
    drawn = [whose for whose, state in _random_state().items() if state != before[whose]]
    if drawn:
        raise Fault(
            f"{what} drew from {' and '.join(drawn)} global random state"
            + (f"; {remedy}" if remedy else "")
        )


@contextmanager
def one_thread() -> Iterator[None]:
    """What runs inside has one thread of torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def no_fallback() -> Iterator[None]:
    """An operation that vmap runs lane by lane is an error: lanes would gain nothing."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*performance drop.*")
        yield
