"""Programs of one lane as functions of this machine: traced in torch's primitives, written as C++,
compiled, and kept.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipbench import cache, compiling
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

    def check(self) -> None:
        """Forget what went wrong since the last call, where C++ has no exception of its own.

        :raises IndexError: an index was out of range.
        :raises ZeroDivisionError: a whole number was divided by zero.
        """
        wrong = ctypes.c_int.in_dll(self.library, "wrong")
        found, wrong.value = wrong.value, 0
        if found == 1:
            raise IndexError("index out of range in a native lane")
        if found:
            raise ZeroDivisionError("a whole number is divided by zero in a native lane")


def translated(
    function: Callable[..., Any],
    arguments: Sequence[Tensor],
    known: str | None = None,
    plain: bool = False,
) -> Function:
    """A function of tensors as a function of this machine.

    :param known: what tells the function from all others of this version of clipbench; if it was
        translated before, it is not traced again. None if nothing does.
    :param plain: whether it must be made of loops alone.
    :raises Untranslated: an operation has no translation, or is not a loop where it must be.
    :raises NotCompiled: there is no compiler, or it fails.
    """
    note = (
        None
        if known is None
        else compiling.note(f"{cache.sources()}\0{torch.__version__}\0{known}")
    )
    if note is not None and (found := _recalled(note)) is not None:
        return found
    translation = Translation(primitives(function, arguments, WINDOWS), OPERATIONS)
    if plain and not translation.plain:
        raise Untranslated("what is not made of loops alone")
    source = translation.source("program")
    library = compiling.library(f"{_headers()}\n{source.text}\n", FLAGS, "program")
    if note is not None:
        told = {"library": library._name, "outputs": source.outputs, "workspace": source.workspace}  # noqa: SLF001 - ctypes has no public word for it
        with suppress(OSError):
            compiling.replace(note, json.dumps(told).encode())
    return _function(library, source.outputs, source.workspace)


def _recalled(note: Path) -> Function | None:
    """The function that a note tells of, if its library is as it was."""
    try:
        told = json.loads(note.read_text(encoding="utf-8"))
        library = compiling.kept(Path(told["library"]))
        return None if library is None else _function(library, told["outputs"], told["workspace"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _function(library: ctypes.CDLL, outputs: Sequence[int], workspace: int) -> Function:
    address = ctypes.cast(library["program"], ctypes.c_void_p).value or 0
    return Function(address, tuple(outputs), workspace, library)


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
    train.argtypes = [pointer, pointer, number, number, number, pointer, number, pointer, pointer]
    return train
