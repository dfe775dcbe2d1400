"""Progress on stderr."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Self

import click
from tqdm import tqdm

if TYPE_CHECKING:
    from clipbench.engines import Record


class Bars:
    """Progress on stderr, one bar a phase; silent where stderr is no terminal."""

    def __init__(self) -> None:
        self.bar: tqdm[Any] | None = None
        self.diverged = self.failed = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def phase(self, name: str, cells: int) -> None:
        self._close()
        if cells:
            self.bar = tqdm(
                total=cells, desc=f"{name:<10}", unit="cell", file=sys.stderr, disable=not sys.stderr.isatty(), mininterval=0.5
            )

    def record(self, record: Record) -> None:
        self.failed += record.failure is not None
        self.diverged += record.verdict is not None and record.verdict.status == "diverged"
        if self.bar is not None:
            self.bar.set_postfix(diverged=self.diverged, failed=self.failed, refresh=False)
            self.bar.update()

    def tick(self) -> None:
        if self.bar is not None:
            self.bar.update()

    def note(self, sentence: str) -> None:
        click.echo(f"clipbench: {sentence}", err=True)
