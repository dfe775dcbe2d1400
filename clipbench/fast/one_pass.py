"""Kernels that torch does not have, made by the C++ compiler of this machine: clip and SGD's
step in one pass over memory.
"""

from __future__ import annotations

import ctypes
import math
import os
import shlex
import shutil
import subprocess
import sys
import warnings
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import torch
from torch import Tensor

SOURCE = Path(__file__).with_suffix(".cpp")
# Tried in turn. torch brings the OpenMP that g++ links to, and both share its threads; Apple's
# compiler has none, but walks a sum in vectors all the same if it is told to.
FLAGS: tuple[list[str], ...] = (
    ["-march=native", "-fopenmp"],
    ["-march=native", "-fopenmp-simd"],
    ["-fopenmp-simd"],
    [],
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
        library = _built()
        return {
            dtype: _declared_kernels(library, dtype) for dtype in (torch.float32, torch.float64)
        }
    # the second of odd quotes in CXX, the third of a library that is something else
    except (OSError, ValueError, AttributeError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", "") or str(error)
        reason = next((line for line in said.splitlines() if "error" in line), said).strip()
        warnings.warn(
            f"clipbench.fast cannot compile its kernels ({reason}): torch's are used instead.",
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


def _built() -> ctypes.CDLL:
    """The compiled source as a library of this process; the library's file is removed again.

    :raises OSError: there is no compiler, or what it made cannot be loaded.
    :raises ValueError: ``CXX`` has a quote that does not end.
    :raises subprocess.SubprocessError: the compiler fails.
    """
    compiler = os.environ.get("CXX", "").strip() or next(
        filter(shutil.which, ("c++", "g++", "clang++")), None
    )
    if compiler is None:
        raise FileNotFoundError("no C++ compiler was found; the variable CXX can name one")
    with TemporaryDirectory(prefix="clipbench-") as folder:
        made = Path(folder) / "one_pass.so"
        flags = ["-std=c++17", "-O3", "-ffp-contract=off", "-shared", "-fPIC"]
        command = [*shlex.split(compiler), *flags, str(SOURCE), "-o", str(made)]
        for more in FLAGS:
            done = subprocess.run(  # noqa: S603 - the user names the compiler
                [*command, *more], capture_output=True, text=True, errors="replace", check=False
            )
            if done.returncode == 0:
                break
        done.check_returncode()
        return ctypes.CDLL(str(made))
