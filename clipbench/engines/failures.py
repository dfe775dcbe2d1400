"""What an exception says of itself: its reason in one line, its position, and whether it passed
through user-defined code.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch

from clipbench.errors import UsageError

LONGEST = 500  # characters of a reason
OURS = "clipbench"
# What the package is made of, and what torch calls below it: a frame of any other module is
# user-defined code.
LIBRARIES = frozenset(
    {
        OURS,
        "torch",
        "functorch",
        "numpy",
        "scipy",
        "sklearn",
        "joblib",
        "sympy",
        "pandas",
        "pyarrow",
        "pydantic",
        "monai",
        "nilearn",
    }
)


@dataclass(frozen=True)
class Fault:
    """What is known of a failure beside its reason.

    ``place`` is ``FILE, line N``; ``trace`` the whole traceback. ``lost`` says that no setting is
    to blame: a kill, a time limit, or memory that ran out. ``spent`` says that the process must
    end: CUDA answers each later call with the same error.
    """

    place: str = ""
    trace: str = ""
    lost: bool = False
    spent: bool = False

    @classmethod
    def of(cls, error: BaseException) -> Fault:
        """The fault that an exception is."""
        memory = isinstance(
            error, MemoryError | torch.OutOfMemoryError
        ) or "can't allocate memory" in said(error)
        return cls(place(error), trace(error), lost=memory, spent=is_sticky(error))


def is_sticky(error: BaseException) -> bool:
    """Whether CUDA will answer each later call of this process with the same error: after an
    assertion on the device, say.
    """
    return isinstance(error, torch.AcceleratorError) and not isinstance(
        error, torch.OutOfMemoryError
    )


def said(error: BaseException) -> str:
    """``ValueError: no, thanks``: what was raised, in one line; of a `UsageError` its sentence
    alone.
    """
    if isinstance(error, UsageError):
        return str(error).replace("\n", " ")
    try:
        words = str(error)
    except Exception:  # noqa: BLE001 - a user-defined exception may not even have words
        words = ""
    name = type(error).__name__
    return (f"{name}: {words}" if words else name).replace("\n", " ")[:LONGEST]


def trace(error: BaseException) -> str:
    """The traceback as Python prints it."""
    try:
        return "".join(traceback.format_exception(error))
    except Exception:  # noqa: BLE001 - its words raise, or its notes
        return "".join([*traceback.format_tb(error.__traceback__), said(error)])


def place(error: BaseException) -> str:
    """``FILE, line N`` of the innermost frame that a reader can mend: of user-defined code, else
    of ours; or nothing.
    """
    frames = list(_frames(error))
    theirs = [frame for frame in frames if _is_user_code(frame[0])]
    ours = [frame for frame in frames if _package(frame[0]) == OURS]
    for frame, line in (theirs or ours or frames)[-1:]:
        return f"{Path(frame.f_code.co_filename).name}, line {line}"
    return ""


def is_from_user_code(error: BaseException) -> bool:
    """Whether user-defined code raised it, or called what raised it: a component of a plug-in,
    say.
    """
    return any(_is_user_code(frame) for frame, _ in _frames(error))


def _frames(error: BaseException) -> Iterator[tuple[FrameType, int]]:
    return traceback.walk_tb(error.__traceback__)


def _package(frame: FrameType) -> str:
    # programs that torch generates have no name
    return str(frame.f_globals.get("__name__") or "torch").partition(".")[0]


def _is_user_code(frame: FrameType) -> bool:
    package = _package(frame)
    return package not in LIBRARIES and package not in sys.stdlib_module_names
