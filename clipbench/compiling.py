"""Libraries that the C++ compiler of this machine makes, kept in a cache for every process.

What is kept is named by its source, the compiler, the flags and the processor, so that a home
folder which unlike machines share serves each of them. A file that was damaged is made anew.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

from clipbench import cache

LIMIT = 120.0  # seconds that a compiler may take
KEPT_FILES, KEPT_BYTES = 2048, 2**28  # the oldest libraries go if there are more
PLAIN = ("-std=c++17", "-O3", "-shared", "-fPIC")


class NotCompiled(Exception):  # noqa: N818 - an answer, not an error
    """No library was made; the message says why, in one line."""


def library(source: str, flags: Sequence[Sequence[str]], name: str) -> ctypes.CDLL:
    """The compiled source as a library of this process.

    :param flags: sets of flags that are tried in turn, until a compiler knows all of one.
    :param name: what the library is called, a word.
    :raises NotCompiled: there is no compiler, it fails or hangs, or what it makes cannot be loaded.
    """
    compiler = _compiler()
    key = hashlib.sha256(
        "\0".join([source, repr(flags), *compiler, _version(compiler), _processor()]).encode()
    ).hexdigest()
    home = cache.folder()
    if home is None:
        return _loaded(_made(compiler, source, flags))
    kept = home / "native" / f"{name}-{key[:32]}.so"
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with _locked(kept.with_suffix(".lock")):
            if not _sound(kept):
                _keep(_made(compiler, source, flags), kept)
            return ctypes.CDLL(str(kept))
    except OSError:
        # a folder that cannot be written, or from which nothing may be loaded
        return _loaded(_made(compiler, source, flags))


def kept(path: Path) -> ctypes.CDLL | None:
    """A library that was kept under this path; None if it is not there as it was, or another
    compiler would make it now.
    """
    try:
        return ctypes.CDLL(str(path)) if _sound(path) else None
    except OSError:
        return None


def note(told: str) -> Path | None:
    """The file for what is known of a library, named by what tells it from others, the compiler and
    the processor; None if there is no place for it.

    :raises NotCompiled: there is no compiler.
    """
    home, compiler = cache.folder(), _compiler()
    if home is None:
        return None
    key = "\0".join([told, *compiler, _version(compiler), _processor()])
    return home / "native" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def _compiler() -> tuple[str, ...]:
    """The command of the compiler: what ``CXX`` names, or the first that is found.

    :raises NotCompiled: none is found, or a quote in ``CXX`` does not end.
    """
    try:
        named = tuple(shlex.split(os.environ.get("CXX", "")))
    except ValueError as error:
        raise NotCompiled(f"the variable CXX is no command: {error}") from error
    found = named or tuple(filter(shutil.which, ("c++", "g++", "clang++")))[:1]
    if not found:
        raise NotCompiled("no C++ compiler was found; the variable CXX can name one")
    return found


@lru_cache(maxsize=8)
def _version(compiler: tuple[str, ...]) -> str:
    """What the compiler says of itself.

    :raises NotCompiled: it cannot be started.
    """
    return _run([*compiler, "--version"]).stdout


@lru_cache(maxsize=1)
def _processor() -> str:
    """What this processor can do: code that was made for it may not run on another."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return line
    return f"{platform.machine()} {platform.processor()} {sys.platform}"


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(  # noqa: S603 - the user names the compiler
            command, capture_output=True, text=True, errors="replace", check=False, timeout=LIMIT
        )
    except OSError as error:
        raise NotCompiled(f"{command[0]}: it cannot be started ({error.strerror})") from error
    except subprocess.TimeoutExpired:
        raise NotCompiled(f"{command[0]}: it took more than {LIMIT:.0f} seconds") from None


def _made(compiler: Sequence[str], source: str, flags: Sequence[Sequence[str]]) -> bytes:
    """The bytes of the library.

    :raises NotCompiled: the compiler fails with every set of flags, or hangs.
    """
    try:
        with TemporaryDirectory(prefix="clipbench-") as place:
            text, made = Path(place) / "source.cpp", Path(place) / "made.so"
            text.write_text(source)
            for more in flags:
                done = _run([*compiler, *PLAIN, *more, str(text), "-o", str(made)])
                if done.returncode == 0:
                    if not made.exists():
                        raise NotCompiled(f"{compiler[0]}: it made no library")
                    return made.read_bytes()
    except OSError as error:
        raise NotCompiled(f"there is no room to compile ({error.strerror})") from error
    said = done.stderr or f"it ended with {done.returncode}"
    reason = next((line for line in said.splitlines() if "error" in line), said.strip())
    raise NotCompiled(f"{compiler[0]}: {reason.strip()[:300]}")


def _loaded(made: bytes) -> ctypes.CDLL:
    """A library that is not kept: its file is removed as soon as it is loaded."""
    try:
        with TemporaryDirectory(prefix="clipbench-") as place:
            file = Path(place) / "made.so"
            file.write_bytes(made)
            return ctypes.CDLL(str(file))
    except OSError as error:
        raise NotCompiled(f"the library cannot be loaded ({error})") from error


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time makes a library; the others wait and find it."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sound(kept: Path) -> bool:
    """Whether a library is there, as it was when it was kept."""
    try:
        made, digest = kept.read_bytes(), kept.with_suffix(".sha256").read_text().strip()
    except (OSError, UnicodeDecodeError):
        return False
    if hashlib.sha256(made).hexdigest() != digest:
        return False
    with contextlib.suppress(OSError):
        os.utime(kept)  # one that is used is not among the oldest
    return True


def _keep(made: bytes, kept: Path) -> None:
    digest = hashlib.sha256(made).hexdigest()
    for path, content in ((kept, made), (kept.with_suffix(".sha256"), digest.encode())):
        replace(path, content)
    _forget_oldest(kept.parent)


def replace(path: Path, content: bytes) -> None:
    """Write a file whole, or leave it as it is."""
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    new.write_bytes(content)
    new.replace(path)


def _forget_oldest(place: Path) -> None:
    """Keep the cache within its bounds; what another process removes at the same time is gone."""
    for path in sorted(place.glob("*.json"), key=_age)[KEPT_FILES:]:
        path.unlink(missing_ok=True)
    total = 0
    for number, path in enumerate(sorted(place.glob("*.so"), key=_age)):
        size = path.stat().st_size if path.exists() else 0
        total += size
        if number >= KEPT_FILES or total > KEPT_BYTES:
            for gone in (path, path.with_suffix(".sha256"), path.with_suffix(".lock")):
                gone.unlink(missing_ok=True)


def _age(path: Path) -> float:
    """What sorts the newest first; what is gone is the oldest."""
    try:
        return -path.stat().st_mtime
    except OSError:
        return 0.0
