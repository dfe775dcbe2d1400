"""Programs of one lane as functions of this machine: traced in torch's primitives, written as C++,
compiled, and kept.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Mapping, Sequence
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

__all__ = ["SPARE", "Function", "Untranslated", "Written", "driver", "translated", "written"]

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


@dataclass(frozen=True)
class Written:
    """A function of this machine that is not compiled yet."""

    text: str
    outputs: tuple[int, ...]
    workspace: int
    note: Path | None
    """Where it is noted when it is."""

    def compiled(self) -> Function:
        """The function; nothing of torch is asked, so that any thread may wait for the compiler.

        :raises NotCompiled: there is no compiler, or it fails.
        """
        library = compiling.library(self.text, FLAGS, "program")
        _keep(
            self.note,
            {"library": library._name, "outputs": self.outputs, "workspace": self.workspace},  # noqa: SLF001 - ctypes has no public word for it
        )
        return _function(library, self.outputs, self.workspace)


def translated(function: Callable[..., Any], arguments: Sequence[Tensor]) -> Function:
    """A function of tensors as a function of this machine.

    :raises Untranslated: an operation has no translation.
    :raises NotCompiled: there is no compiler, or it fails.
    """
    found = written(function, arguments)
    return found.compiled() if isinstance(found, Written) else found


def written(
    function: Callable[..., Any],
    arguments: Sequence[Tensor],
    known: str | None = None,
    plain: bool = False,
) -> Function | Written:
    """A function of tensors as one of this machine, or as its source.

    :param known: what tells the function from all others of this version of clipbench; if it was
        translated before, it is not traced again. None if nothing does.
    :param plain: whether it must be made of loops alone.
    :raises Untranslated: an operation has no translation, or is not a loop where it must be.
    :raises NotCompiled: there is no compiler.
    """
    note = (
        None
        if known is None
        else compiling.note(f"{cache.sources()}\0{torch.__version__}\0{known}\0{plain}")
    )
    if note is not None and (found := _recalled(note)) is not None:
        return found
    graph = primitives(function, arguments, WINDOWS)
    try:
        translation = Translation(graph, OPERATIONS)
        if plain and not translation.plain:
            raise Untranslated("what is not made of loops alone")
    except Untranslated as refusal:
        _keep(note, {"untranslated": str(refusal)})
        raise
    source = translation.source("program")
    text = f"{_headers()}\n{source.text}\n"
    return Written(text, tuple(source.outputs), source.workspace, note)


def _keep(note: Path | None, told: Mapping[str, Any]) -> None:
    if note is not None:
        with suppress(OSError):
            compiling.replace(note, json.dumps(told).encode())


def _recalled(note: Path) -> Function | None:
    """The function that a note tells of, if its library is as it was.

    :raises Untranslated: the note says so.
    """
    try:
        told = json.loads(note.read_text(encoding="utf-8"))
        if "untranslated" in told:
            raise Untranslated(told["untranslated"])
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
