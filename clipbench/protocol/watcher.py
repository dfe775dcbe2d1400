"""`Watcher`, what a caller may follow a run with: the command line draws progress bars, a test
listens.
"""

from __future__ import annotations

from typing import Protocol

from clipbench.engines import Record


class Watcher(Protocol):
    """Is told how a run goes on."""

    def phase(self, name: str, cells: int) -> None:
        """A phase begins with so many cells to run."""

    def record(self, record: Record) -> None:
        """A cell has ended."""

    def tick(self) -> None:
        """A step of a phase without cells is done."""

    def note(self, sentence: str) -> None:
        """Something worth a line."""


class Silent:
    """A watcher that ignores everything."""

    def phase(self, name: str, cells: int) -> None:
        """Say nothing."""

    def record(self, record: Record) -> None:
        """Say nothing."""

    def tick(self) -> None:
        """Say nothing."""

    def note(self, sentence: str) -> None:
        """Say nothing."""
