"""How a run goes on, told on stderr: bars on a terminal and in a notebook, a line now and then
elsewhere.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

from tqdm import tqdm

from clipbench.errors import duration
from clipbench.schema import Status

if TYPE_CHECKING:
    from clipbench.engines import Record


INTERVAL = 30.0  # seconds between two lines if stderr shows no bars
SECOND = 1.0  # between two looks of a bar: its clock goes on though nothing was done


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """While it lasts, a terminal shows what goes on and for how long; at its end that is taken
    away. Nothing is said elsewhere.
    """
    if not _shows_bars():
        yield
        return
    line = tqdm(
        desc=f"clipbench: {what}", bar_format="{desc} {elapsed}", file=sys.stderr, leave=False
    )
    ended = threading.Event()

    def tick() -> None:
        while not ended.wait(SECOND):
            line.refresh()

    clock = threading.Thread(target=tick, daemon=True)
    clock.start()
    try:
        yield
    finally:
        ended.set()
        clock.join()
        line.close()


class Bars:
    """A watcher that draws one bar a phase, or says a line every half minute if stderr shows no
    bars.
    """

    def __init__(self) -> None:
        self.bar: tqdm[Any] | None = None
        self.name, self.cells, self.done, self.since = "", 0, 0, time.monotonic()
        self.diverged = self.failed = 0
        self.ended, self.drawing = threading.Event(), threading.Lock()
        self.speaker = threading.Thread(target=self._speak, daemon=True)

    def __enter__(self) -> Self:
        self.speaker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        if self.speaker.is_alive():
            self.speaker.join()
        self._close()

    def _speak(self) -> None:
        shows = _shows_bars()
        while not self.ended.wait(SECOND if shows else INTERVAL):
            if not shows and self.cells:
                self.note(self._line())
            with self.drawing:
                if shows and self.bar is not None:
                    self.bar.refresh()

    def _line(self) -> str:
        done, passed = self.done, time.monotonic() - self.since
        left = f", about {duration(passed / done * (self.cells - done))} left" if done else ""
        return (
            f"{self.name}: {done} of {self.cells} done, {self.diverged} diverged, {self.failed} "
            f"failed{left}."
        )

    def _close(self) -> None:
        with self.drawing:
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
                disable=not _shows_bars(),
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
        tqdm.write(f"clipbench: {sentence}", file=sys.stderr)


def _shows_bars() -> bool:
    """Whether stderr can draw a line again: a terminal can, and the output of a notebook's cell."""
    return sys.stderr.isatty() or type(sys.stderr).__module__.startswith("ipykernel")
