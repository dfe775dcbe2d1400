"""Programs of one lane as functions of this machine: traced in torch's primitives, written as C++,
compiled, and kept.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from clipbench import compiling
from clipbench.native.operations import OPERATIONS
from clipbench.native.tracing import primitives
from clipbench.native.translation import Translation, Untranslated
from clipbench.native.windows import WINDOWS

__all__ = ["SPARE", "Function", "Untranslated", "driver", "translated"]

SPARE = 512  # bytes behind a tensor that a program may read, and never uses
HERE = Path(__file__).parent
# Every rounding is one that the source asks for, but that a product and a sum may be rounded once:
# `-ffp-contract`. What is left out are errors reported by variables and by traps, which nobody
# reads, and a pass that makes branches of what is chosen between, which no register can take.
FLAGS: tuple[tuple[str, ...], ...] = tuple(
    (*known, "-fopenmp-simd", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math")
    for known in (
        ("-march=native", "-mprefer-vector-width=512", "-fno-tree-pre"),
        ("-march=native", "-mprefer-vector-width=512"),
        ("-march=native",),
        (),
    )
)


@dataclass(frozen=True)
class Function:
    """A function of this machine, for one lane."""

    address: int
    outputs: tuple[int, ...]
    """Bytes of every result."""
    workspace: int
    """Bytes that it works in."""
    library: ctypes.CDLL
    """What must live as long."""


def translated(function: Callable[..., Any], arguments: Sequence[Tensor]) -> Function:
    """A function of tensors as a function of this machine.

    :raises Untranslated: an operation has no translation.
    :raises NotCompiled: there is no compiler, or it fails.
    """
    source = Translation(primitives(function, arguments, WINDOWS), OPERATIONS).source("program")
    library = compiling.library(f"{_headers()}\n{source.text}\n", FLAGS, "program")
    address = ctypes.cast(library["program"], ctypes.c_void_p).value or 0
    return Function(address, source.outputs, source.workspace, library)


@lru_cache(maxsize=1)
def _headers() -> str:
    return "\n".join((HERE / name).read_text() for name in ("lanes.hpp", "products.hpp"))


@lru_cache(maxsize=1)
def driver() -> Callable[..., None]:
    """``train`` of ``driver.cpp``."""
    library = compiling.library((HERE / "driver.cpp").read_text(), FLAGS, "driver")
    train = library["train"]
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    train.restype = None
    train.argtypes = [pointer, pointer, number, number, pointer, number, pointer, pointer]
    return train
