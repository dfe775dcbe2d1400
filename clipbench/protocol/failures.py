"""Why cells failed: one entry a reason and place, its traceback kept as a text file in the store's folder."""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from clipbench.engines import Record

FOLDER = "failures"
FILE = re.compile(r"[0-9a-f]{8}\.txt")


@dataclass
class Reason:
    """What some cells failed of: where in which file, in words; how many cells, the first of them, and where its traceback lies."""

    words: str
    place: str
    cells: int
    first: str
    file: Path


class Failures:
    """The failures of one run, the first first. What an earlier run left is removed: every failed cell is tried again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.reasons = folder / FOLDER, dict[tuple[str, str], Reason]()
        for path in self._left():
            path.unlink()
        with suppress(OSError):  # there is none, or somebody keeps something in it
            self.folder.rmdir()

    def _left(self) -> list[Path]:
        if self.folder.is_symlink() or not self.folder.is_dir():
            return []
        return [path for path in self.folder.iterdir() if FILE.fullmatch(path.name)]

    def note(self, record: Record) -> None:
        """Count a record that failed; the first of a reason writes its file."""
        if record.failure is None:
            return
        place = record.fault.place if record.fault is not None else ""
        known = self.reasons.get((record.failure, place))
        if known is not None:
            known.cells += 1
            return
        name = hashlib.sha256(f"{record.failure}\0{place}".encode(errors="replace")).hexdigest()[:8]
        reason = Reason(record.failure, place, 1, record.job.cell.id, self.folder / f"{name}.txt")
        self.reasons[record.failure, place] = reason
        self._write(reason, record)

    def _write(self, reason: Reason, record: Record) -> None:
        cell = record.job.cell
        trace = record.fault.trace if record.fault is not None else ""
        text = f"{reason.words}\n{cell.id}: {cell.problem}, {cell.arm}, lr {cell.lr:g}, seed {cell.seed}\n\n{trace}"
        self.folder.mkdir(exist_ok=True)
        temporary = self.folder / f".writing-{reason.file.name}-{os.getpid()}"
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
        temporary.replace(reason.file)
