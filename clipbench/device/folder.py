"""The folder that the command fills: whether it is ours, its state, and what another machine left
in it.

It knows nothing of steps and bounds.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clipbench.errors import UsageError
from clipbench.store.files import replace_text

STATE, PAGE, FACTS, BOUNDS = "device.json", "device.md", "facts.json", "bounds.json"
TESTS = "tests.xml"
LOGS = "logs"
WHAT = "clipbench device"  # how the state says that it is ours


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a file, atomically."""
    replace_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; empty if the file is not there, or is no JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def opened(folder: Path, device: str) -> dict[str, Any]:
    """The state that a folder holds; empty if the folder is empty or not there. Nothing is touched.

    :raises UsageError: it holds something else, or what another kind of device did.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--out: {folder} is no folder.")
    if not folder.exists() or not any(folder.iterdir()):
        return {}
    state = read_json(folder / STATE)
    if state.get("what") != WHAT or not isinstance(state.get("steps"), dict):
        raise UsageError(
            f"--out: {folder} holds files, and no {STATE} of `clipbench device`; name a new folder."
        )
    if state.get("device") != device:
        raise UsageError(
            f"--out: {folder} is of --device {state.get('device')}, and --device {device} was "
            f"asked for; name another folder."
        )
    return state


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the folder: two commands in it would undo each other.

    :raises UsageError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise UsageError(
            f"{folder}: another `clipbench device` is at work here; wait for it."
        ) from None
    finally:
        os.close(descriptor)


def set_aside(folder: Path, key: str, stays: tuple[str, ...]) -> Path:
    """The folder inside it to which all that another machine, or other versions, left is moved.

    The state is moved last: after an interruption the next call moves the rest.

    :param key: of that machine's environment.
    :param stays: paths of files that are new.
    """
    number, into = 1, folder / f"earlier-{key}"
    while (into / STATE).exists():
        number += 1
        into = folder / f"earlier-{key}-{number}"
    kept = {folder / path for path in stays}
    found = [path for path in folder.iterdir() if not path.name.startswith("earlier-")]
    logs = folder / LOGS
    moved = [path for path in found if path not in {*kept, logs, folder / STATE}]
    moved += [path for path in logs.glob("*") if path not in kept]
    for path in [*moved, folder / STATE]:
        target = into / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    return into
