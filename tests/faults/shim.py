"""Fails or kills a process at the n-th call that changes a file below a folder: opening for
writing, writing, syncing, renaming.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import signal
from pathlib import Path

KINDS = ("kill", "EIO", "ENOSPC", "EFBIG", "short")
CALLS = ("fsync", "replace", "rename", "link", "unlink", "remove", "mkdir", "rmdir")


class Shim:
    """Armed in a process of its own, for good. ``at`` is the call it strikes at; without it calls
    are only counted.

    A ``short`` write puts half of its bytes on the disk before the disk is full; it strikes at
    writes alone.
    """

    def __init__(self, folder: Path, kind: str = "", at: int = -1) -> None:
        self.folder, self.kind, self.at, self.calls = str(folder.resolve()), kind, at, 0

    def arm(self) -> Shim:
        opened = io.open
        builtins.open = io.open = lambda file, mode="r", *rest, **named: self._opened(
            opened, file, mode, *rest, **named
        )
        for name in CALLS:
            setattr(os, name, self._watched(getattr(os, name), name))
        return self

    def _opened(self, really, file, mode, *rest, **named):
        if not set(mode) & set("wax+") or not self._below(file):
            return really(file, mode, *rest, **named)
        self._strike(file)
        made = really(file, mode, *rest, **named)
        return Written(made, self, file)

    def _watched(self, really, name):
        def call(*arguments, **named):
            places = [
                Path(f"/proc/self/fd/{arguments[0]}").readlink() if name == "fsync" else one
                for one in arguments[:2]
            ]
            if named.get("dir_fd") is None and any(
                isinstance(one, str | os.PathLike) and self._below(one) for one in places
            ):
                self._strike(places[0])
            return really(*arguments, **named)

        return call

    def _below(self, place) -> bool:
        return isinstance(place, str | os.PathLike) and str(Path(place).absolute()).startswith(
            self.folder
        )

    def _strike(self, place, write=None) -> None:
        number, self.calls = self.calls, self.calls + 1
        if number != self.at:
            return
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        code = getattr(errno, "ENOSPC" if self.kind == "short" else self.kind)
        if self.kind == "short" and write is not None:
            write()
        raise OSError(code, os.strerror(code), os.fspath(place))


class Written:
    """A file that is open for writing; every write is a call."""

    def __init__(self, file, shim: Shim, place) -> None:
        self._file, self._shim, self._place = file, shim, place

    def write(self, data):
        self._shim._strike(
            self._place, lambda: (self._file.write(data[: len(data) // 2]), self._file.flush())
        )
        return self._file.write(data)

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        self._file.__enter__()
        return self

    def __exit__(self, *raised):
        return self._file.__exit__(*raised)

    def __iter__(self):
        return iter(self._file)
