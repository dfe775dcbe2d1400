"""What a cell may leave behind in its process: open files, threads, and processes of its own."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from contextlib import suppress
from pathlib import Path

MANY = 64  # files that may stay open for reading: a data set that is mapped
FILES = "/proc/self/fd"
# what CUDA opens as it wakes up
OF_DRIVERS = ("/dev/nvidia", "anon_inode:", "socket:", "pipe:", "/proc/", "/memfd:")
PR_SET_CHILD_SUBREAPER = 36


def open_files() -> dict[str, str]:
    """Descriptor → what it leads to; empty if the system does not tell."""
    files = {}
    with suppress(FileNotFoundError):
        for name in os.listdir(FILES):  # noqa: PTH208 - at every cell: paths are slow
            with suppress(FileNotFoundError):  # the one that read the list
                files[name] = os.readlink(f"{FILES}/{name}")  # noqa: PTH115
    return files


def only_read(name: str, target: str) -> bool:
    """Whether a descriptor is of a file in a folder, opened for reading only."""
    try:
        flags = (
            Path(f"/proc/self/fdinfo/{name}")
            .read_text(encoding="ascii")
            .partition("flags:")[2]
            .split()[0]
        )
    except (OSError, IndexError):
        return False
    return Path(target).is_file() and int(flags, 8) & os.O_ACCMODE == os.O_RDONLY


def has_children() -> bool:
    """Whether the process has any, in one call of the system."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def children_of(process: int | str = "self") -> set[int]:
    """The processes that a process has started and that are not gone."""
    children: set[int] = set()
    for file in Path(f"/proc/{process}/task").glob("*/children"):
        with suppress(OSError):
            children.update(map(int, file.read_text(encoding="ascii").split()))
    return children


def end_child(process: int) -> bool:
    """Whether a child was still running; it is ended, with all that it has started."""
    offspring = children_of(process)
    ended, _ = os.waitpid(process, os.WNOHANG)
    if not ended:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    for one in offspring:  # which are now ours, or those of whoever takes orphans in
        with suppress(OSError):
            os.kill(one, signal.SIGKILL)
    return not ended


def adopt() -> None:
    """Become the parent of what a child leaves behind, if the system allows it: it could not be
    found otherwise.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def threads() -> set[threading.Thread]:
    """Python's threads, without those that only pass through Python, as CUDA's do."""
    passing = threading._DummyThread  # noqa: SLF001 - there is no public word for it
    return {thread for thread in threading.enumerate() if not isinstance(thread, passing)}
