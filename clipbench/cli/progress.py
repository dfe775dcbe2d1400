"""Progress on stderr."""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Self

import click
from tqdm import tqdm

from clipbench.cli.words import duration
from clipbench.schema import Status

if TYPE_CHECKING:
    from clipbench.engines import Record


INTERVAL = 30.0  # seconds between two lines if stderr is no terminal


class Bars:
    """Progress on stderr: one bar a phase, or a line every half minute if stderr is no terminal."""

    def __init__(self) -> None:
        self.bar: tqdm[Any] | None = None
        self.name, self.cells, self.done, self.since = "", 0, 0, time.monotonic()
        self.diverged = self.failed = 0
        self.ended = threading.Event()
        self.speaker = threading.Thread(target=self._speak, daemon=True)

    def __enter__(self) -> Self:
        if not sys.stderr.isatty():
            self.speaker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        if self.speaker.is_alive():
            self.speaker.join()
        self._close()

    def _speak(self) -> None:
        while not self.ended.wait(INTERVAL):
            if self.cells:
                click.echo(f"clipbench: {self._line()}", err=True)

    def _line(self) -> str:
        done, passed = self.done, time.monotonic() - self.since
        left = f", about {duration(passed / done * (self.cells - done))} left" if done else ""
        return (
            f"{self.name}: {done} of {self.cells} done, {self.diverged} diverged, {self.failed} "
            f"failed{left}."
        )

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def phase(self, name: str, cells: int) -> None:
        self._close()
        self.name, self.cells, self.done, self.since = name, cells, 0, time.monotonic()
        if cells:
            self.bar = tqdm(
                total=cells,
                desc=f"{name:<10}",
                unit="cell",
                file=sys.stderr,
                disable=not sys.stderr.isatty(),
                mininterval=0.5,
            )

    def record(self, record: Record) -> None:
        self.failed += record.failure is not None
        self.diverged += record.verdict is not None and record.verdict.status == Status.DIVERGED
        self.done += 1
        if self.bar is not None:
            self.bar.set_postfix(diverged=self.diverged, failed=self.failed, refresh=False)
            self.bar.update()

    def tick(self) -> None:
        self.done += 1
        if self.bar is not None:
            self.bar.update()

    def note(self, sentence: str) -> None:
        click.echo(f"clipbench: {sentence}", err=True)
