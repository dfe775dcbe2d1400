"""Why cells failed: one entry a reason and place, its traceback kept as a text file in the
store's folder.
"""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from clipbench.engines import Record
from clipbench.engines.failures import Fault

FOLDER = "failures"
FILE = re.compile(r"[0-9a-f]{8}\.txt")


@dataclass
class Reason:
    """Why some cells failed, in words and as ``FILE, line N``; how many cells; and the file of a
    traceback if there is one.
    """

    words: str
    place: str
    cells: int = 0
    file: Path | None = None


class Failures:
    """The failures of one run, in the order in which they came."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.reasons = folder / FOLDER, dict[tuple[str, str], Reason]()

    def forget(self) -> None:
        """Remove what an earlier run left: every failed cell is tried again."""
        for path in self._files_left():
            path.unlink()
        with suppress(OSError):  # there is none, or somebody keeps something in it
            self.folder.rmdir()

    def _files_left(self) -> list[Path]:
        if self.folder.is_symlink() or not self.folder.is_dir():
            return []
        return [path for path in self.folder.iterdir() if FILE.fullmatch(path.name)]

    def note(self, record: Record) -> None:
        """Count a record that failed; the first of a reason writes its file."""
        if record.failure is None:
            return
        fault = record.fault or Fault()
        reason = self.reasons.setdefault(
            (record.failure, fault.place), Reason(record.failure, fault.place)
        )
        reason.cells += 1
        if fault.trace and reason.file is None:
            cell = record.job.cell
            first = f"{cell.id}: {cell.problem}, {cell.arm}, lr {cell.lr:g}, seed {cell.seed}"
            reason.file = self._write(f"{reason.words}\n{first}\n\n{fault.trace}")

    def _write(self, text: str) -> Path | None:
        """The file that a text was written to, whole or not at all; None if the folder is a link
        to somewhere else.
        """
        if self.folder.is_symlink():
            return None
        content = text.encode(errors="backslashreplace")
        file = self.folder / f"{hashlib.sha256(content).hexdigest()[:8]}.txt"
        temporary = self.folder / f".writing-{file.name}-{os.getpid()}"
        self.folder.mkdir(exist_ok=True)
        temporary.write_bytes(content)
        return temporary.replace(file)
