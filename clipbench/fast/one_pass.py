"""Kernels that torch does not have, made by the C++ compiler of this machine: clip and SGD's
step in one pass over memory.
"""

from __future__ import annotations

import ctypes
import math
import sys
import warnings
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from clipbench import compiling

SOURCE = Path(__file__).with_suffix(".cpp")
# Tried in turn. torch brings the OpenMP that g++ links to, and both share its threads; Apple's
# compiler has none, but walks a sum in vectors all the same if it is told to.
FLAGS: tuple[tuple[str, ...], ...] = tuple(
    ("-ffp-contract=off", *known)
    for known in (
        ("-march=native", "-fopenmp"),
        ("-march=native", "-fopenmp-simd"),
        ("-fopenmp-simd",),
        (),
    )
)

Row: TypeAlias = "array[int]"  # sizes or addresses, as C takes them


def sizes(tensors: Iterable[Tensor]) -> Row:
    """The number of elements of each tensor."""
    return array("q", map(Tensor.numel, tensors))


def addresses(tensors: Iterable[Tensor]) -> Row:
    """The address of each tensor's first element; it holds until a tensor gets other memory."""
    return array("Q", map(Tensor.data_ptr, tensors))


@dataclass(frozen=True)
class Kernels:
    """The compiled functions for one dtype. Tensors are on the CPU and dense, those of one
    parameter alike in their strides.
    """

    dtype: torch.dtype
    c_norm: Callable[..., float]
    c_clamp: Callable[..., None]
    c_step: Callable[..., None]

    def norm(self, sizes: Row, grads: Row) -> Tensor:
        """The 2-norm over all gradients, of shape ``()``; infinite if torch's is."""
        norm = self.c_norm(len(sizes), _start(sizes), _start(grads), torch.get_num_threads())
        return torch.tensor(norm, dtype=self.dtype, device="cpu")

    def clamp(self, sizes: Row, grads: Row, limit: float) -> None:
        """Clamp in place."""
        self.c_clamp(len(sizes), _start(sizes), _start(grads), limit, torch.get_num_threads())

    def step(
        self,
        group: dict[str, Any],
        sizes: Row,
        params: Row,
        grads: Row,
        buffers: Row,
        coefficient: float = 1.0,
        limit: float = math.inf,
    ) -> None:
        """SGD by ``coefficient`` times the gradients clamped to ``limit``, which are read and not
        written.

        :param group: the settings, as :class:`torch.optim.SGD` has them.
        :param buffers: of the momentum; empty if there is none.
        """
        scale = -coefficient if group["maximize"] else coefficient
        settings = (
            limit,
            group["lr"],
            group["momentum"],
            1 - group["dampening"],
            group["weight_decay"],
            scale,
            group["nesterov"],
        )
        self.c_step(
            len(sizes),
            *map(_start, (sizes, params, grads, buffers)),
            *settings,
            torch.get_num_threads(),
        )


def _start(row: Row) -> int | None:
    return row.buffer_info()[0] if row else None


@lru_cache(maxsize=1)
def kernels() -> dict[torch.dtype, Kernels]:
    """Dtype → its kernels. If no compiler makes them, none in this process, and there is one
    warning.
    """
    try:
        library = compiling.library(SOURCE.read_text(encoding="utf-8"), FLAGS, "one_pass")
        return {
            dtype: _declared_kernels(library, dtype) for dtype in (torch.float32, torch.float64)
        }
    # the second of a library that is something else
    except (compiling.NotCompiled, AttributeError) as error:
        warnings.warn(
            f"clipbench.fast cannot compile its kernels ({error}): torch's are used instead.",
            stacklevel=_outside(),
        )
        return {}


def _outside() -> int:
    """The number of calls up to the user's code, so that a warning can name the line there."""
    level, frame = 0, sys._getframe()  # noqa: SLF001 - as documented
    while frame.f_back is not None and frame.f_globals["__name__"].startswith("clipbench.fast"):
        level, frame = level + 1, frame.f_back
    return level


def _declared_kernels(library: ctypes.CDLL, dtype: torch.dtype) -> Kernels:
    """The library's functions for a dtype, with the types of their arguments."""
    number, pointer, real, flag, threads = (
        ctypes.c_int64,
        ctypes.c_void_p,
        ctypes.c_double,
        ctypes.c_bool,
        ctypes.c_int,
    )
    name = str(dtype).removeprefix("torch.")
    norm, clamp, step = library[f"norm_{name}"], library[f"clamp_{name}"], library[f"step_{name}"]
    clamp.restype, clamp.argtypes = None, [number, pointer, pointer, real, threads]
    norm.restype, norm.argtypes = real, [number, pointer, pointer, threads]
    step.restype, step.argtypes = None, [number, *[pointer] * 4, *[real] * 6, flag, threads]
    return Kernels(dtype, norm, clamp, step)
