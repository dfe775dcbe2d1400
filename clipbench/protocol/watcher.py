"""Who follows a run: the command line draws progress bars from it, a test listens, nobody has to."""

from __future__ import annotations

from typing import Protocol

from clipbench.engines import Record


class Watcher(Protocol):
    """What a caller may follow; the command line draws progress bars from it."""

    def phase(self, name: str, cells: int) -> None:
        """A phase begins with so many cells to run."""

    def record(self, record: Record) -> None:
        """A cell has ended."""

    def tick(self) -> None:
        """A step of a phase without cells is done."""

    def note(self, sentence: str) -> None:
        """Something worth a line."""


class Silent:
    """Follows nothing."""

    def phase(self, name: str, cells: int) -> None:
        """Say nothing."""

    def record(self, record: Record) -> None:
        """Say nothing."""

    def tick(self) -> None:
        """Say nothing."""

    def note(self, sentence: str) -> None:
        """Say nothing."""
