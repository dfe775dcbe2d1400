"""The state of a process that is put back after a cell: a change of it affects no number, but
other cells would notice.
"""

from __future__ import annotations

import gc
import locale
import os
import resource
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

SIGNALS = tuple(
    getattr(signal, f"SIG{name}")
    for name in [
        "HUP",
        "INT",
        "QUIT",
        "ILL",
        "TRAP",
        "ABRT",
        "BUS",
        "FPE",
        "USR1",
        "SEGV",
        "USR2",
        "PIPE",
        "ALRM",
        "TERM",
        "CHLD",
        "CONT",
        "TSTP",
        "XCPU",
        "XFSZ",
    ]
    if hasattr(signal, f"SIG{name}")
)
LIMITS = tuple(
    getattr(resource, f"RLIMIT_{name}")
    for name in ("AS", "CORE", "CPU", "DATA", "FSIZE", "NOFILE", "STACK")
)
STREAMS = ((sys, "stdin"), (sys, "stdout"), (sys, "stderr"))
CALLED = (
    (sys, "excepthook"),
    (sys, "unraisablehook"),
    (sys, "displayhook"),
    (threading, "excepthook"),
)


@dataclass(frozen=True)
class Held:
    """One piece of that state: what it is called, how it is read, and how it is put back."""

    words: str
    read: Callable[[], Any]
    put_back: Callable[[Any], object]


def _folder() -> str | None:
    try:
        return os.getcwd()  # noqa: PTH109 - at every cell: paths are slow
    except OSError:  # it was removed
        return None


_ENVIRON: dict[bytes, bytes] = os.environ._data  # type: ignore[attr-defined]  # noqa: SLF001 - to decode it all takes long


def _environ(then: Mapping[bytes, bytes]) -> None:
    os.environ.clear()
    os.environ.update({os.fsdecode(name): os.fsdecode(value) for name, value in then.items()})


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _handlers(then: list[Any]) -> None:
    for number, handler in zip(SIGNALS, then, strict=True):
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)


def _attributes(owned: tuple[tuple[Any, str], ...], words: str) -> Held:
    def put_back(then: list[Any]) -> None:
        for (owner, name), value in zip(owned, then, strict=True):
            setattr(owner, name, value)

    return Held(words, lambda: [getattr(owner, name) for owner, name in owned], put_back)


def _collector(then: tuple[bool, tuple[int, int, int]]) -> None:
    (gc.enable if then[0] else gc.disable)()
    gc.set_threshold(*then[1])


def _limits(then: list[tuple[int, int]]) -> None:
    for limit, pair in zip(LIMITS, then, strict=True):
        resource.setrlimit(limit, pair)


def _affinity(then: set[int]) -> None:
    os.sched_setaffinity(0, then)


HELD = (
    Held("the working folder", _folder, os.chdir),
    Held("the environment variables", lambda: dict(_ENVIRON), _environ),
    Held("the mask of new files", _umask, os.umask),
    Held(
        "the handlers of signals",
        lambda: [signal.getsignal(number) for number in SIGNALS],
        _handlers,
    ),
    Held(
        "the signals that are blocked",
        lambda: signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        lambda then: signal.pthread_sigmask(signal.SIG_SETMASK, then),
    ),
    Held(
        "an alarm",
        lambda: signal.getitimer(signal.ITIMER_REAL)[0] > 0,
        lambda _: signal.setitimer(signal.ITIMER_REAL, 0),
    ),
    Held(
        "the limits of the process",
        lambda: [resource.getrlimit(limit) for limit in LIMITS],
        _limits,
    ),
    Held(
        "the locale",
        lambda: locale.setlocale(locale.LC_ALL),
        lambda then: locale.setlocale(locale.LC_ALL, then),
    ),
    Held(
        "the path of imports",
        lambda: [*sys.path],
        lambda then: sys.path.__setitem__(slice(None), then),
    ),
    _attributes(STREAMS, "the standard streams"),
    _attributes(CALLED, "the hooks of exceptions"),
    Held("the depth of recursion", sys.getrecursionlimit, sys.setrecursionlimit),
    Held("the switching of threads", sys.getswitchinterval, sys.setswitchinterval),
    Held("a tracing function", sys.gettrace, sys.settrace),
    Held("a profiling function", sys.getprofile, sys.setprofile),
    Held("the collector of garbage", lambda: (gc.isenabled(), gc.get_threshold()), _collector),
    *(
        [Held("the processors it runs on", lambda: os.sched_getaffinity(0), _affinity)]
        if hasattr(os, "sched_getaffinity")
        else []
    ),
)
# variables of libraries
COMPILERS = (b"TORCH", b"TRITON", b"INDUCTOR", b"KMP_", b"OMP_", b"CUDA_", b"CUBLAS_", b"PYTORCH_")


def strict_filters() -> list[Any]:
    """The filters that make warnings errors; all others only change what is printed, and
    libraries add some while they load.
    """
    return [one for one in warnings.filters if one[0] == "error"]
