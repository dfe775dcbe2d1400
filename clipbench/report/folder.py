"""The folder of a report: it is put in place as a whole, and only files that the last report wrote
are removed.

It knows nothing of what the files hold.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from clipbench.errors import UsageError

LIST = "files.txt"  # the paths that the last report wrote, one on each line


def replace(folder: Path, files: Mapping[str, bytes]) -> list[Path]:
    """The paths of ``files``, path → content, which replace what the last report wrote.

    Everything else in the folder stays. A process that dies half way leaves the old report or the
    new one.

    :raises UsageError: the folder, or anything in it, is a link; or it cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(folder.parent):
            new, old = (folder.with_name(f".{folder.name}-{word}") for word in ("new", "old"))
            _recover(folder, new, old)
            _refuse_links(folder)
            listed = {**files, LIST: "".join(f"{name}\n" for name in sorted(files)).encode()}
            for name, content in listed.items():
                path = new / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            _keep_files_of_others(folder, new)
            if folder.exists():
                os.rename(folder, old)
            os.rename(new, folder)
            shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise UsageError(
            f"{error.filename or folder}: the report cannot be written here ({error.strerror})."
        ) from error
    return [folder / name for name in files]


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder around the report: two reports at a time would undo each other."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise UsageError(f"{folder}: another report is written here; wait for it.") from None
    finally:
        os.close(descriptor)


def _recover(folder: Path, new: Path, old: Path) -> None:
    """Undo what a report left behind whose process died."""
    for path in (new, old):
        if path.is_symlink():
            raise UsageError(f"{path}: this is a link; remove it, and the report can be written.")
    if old.exists() and not folder.exists():
        os.rename(old, folder)
    for path in (new, old):
        if path.exists():
            shutil.rmtree(path)


def _refuse_links(folder: Path) -> None:
    """Refuse links: to write through one, or to remove what is behind it, would change files
    elsewhere.

    :raises UsageError: the folder or anything below it is a link, or the folder is a file.
    """
    for path in (folder, *folder.rglob("*")):
        if path.is_symlink():
            raise UsageError(
                f"{path}: this is a link, and a report is written into real folders only; "
                f"remove it."
            )
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: this is a file, and the report needs a folder there.")


def _keep_files_of_others(folder: Path, new: Path) -> None:
    """Give the new folder what others put into the old one, as hard links: the old folder will
    be removed.
    """
    if not folder.exists():
        return
    listed = (
        set((folder / LIST).read_text(encoding="utf-8").splitlines())
        if (folder / LIST).is_file()
        else set()
    )
    for path in folder.rglob("*"):
        target = new / path.relative_to(folder)
        if path.is_dir() or target.exists() or path.relative_to(folder).as_posix() in listed:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(path, target)
