"""Figures drawn by several processes. What a page looks like does not depend on who drew it.

It must not know what the figures show.
"""

from __future__ import annotations

import gc
import multiprocessing
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pickle import PickleError
from threading import Thread
from typing import Any, Self

from clipbench.figures.style import Look, looking, render
from clipbench.report.parts import Picture

Made = dict[str, bytes]


class Drawers:
    """Processes that draw beside this one; without any this one draws all."""

    def __init__(self, look: Look, count: int) -> None:
        """They load what they need from now on, which takes each of them two seconds; if the
        machine has no room for all, there are fewer.
        """
        spawn = multiprocessing.get_context("spawn")  # threads of Arrow do not survive a fork
        self._pipes: list[Connection] = []
        self._processes = []
        for _ in range(count):
            here, there = spawn.Pipe()
            process = spawn.Process(target=_serve, args=(there, look), daemon=True)
            with there:
                try:
                    process.start()
                except OSError:
                    here.close()
                    break
            self._pipes.append(here)
            self._processes.append(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            pipe.close()
            process.terminate()
            process.join()

    def files(self, pictures: Sequence[Picture], forms: Sequence[str]) -> Iterator[Made]:
        """What `Picture.files` gives for each picture, in their order.

        A picture that a process does not give back is drawn here: what is wrong with it is raised
        where it is without processes.
        """
        if not self._pipes:
            yield from (picture.files(forms) for picture in pictures)
            return
        made = dict[int, Made | None]()
        todo = deque(range(len(pictures)))
        others = [
            Thread(target=_lead, args=(pipe, pictures, forms, todo, made), daemon=True)
            for pipe in self._pipes
        ]
        for thread in others:
            thread.start()
        while todo:
            with suppress(IndexError):  # another one took the last
                number = todo.popleft()
                with suppress(Exception):  # told in its turn
                    made[number] = pictures[number].files(forms)
        for thread in others:
            thread.join()
        for number, picture in enumerate(pictures):
            files = made.pop(number, None)
            yield picture.files(forms) if files is None else picture.keep(files)


def _lead(
    pipe: Connection,
    pictures: Sequence[Picture],
    forms: Sequence[str],
    todo: deque[int],
    made: dict[int, Made | None],
) -> None:
    """Have one process draw as long as there is something to draw, and it lives."""
    with suppress(IndexError, EOFError, OSError):
        while True:
            number = todo.popleft()
            try:
                pipe.send((pictures[number].draw, forms))
            except (AttributeError, TypeError, ValueError, ImportError, PickleError):
                continue  # not to be sent: it is drawn here
            made[number] = pipe.recv()


def _serve(pipe: Connection, look: Look) -> None:
    """A process's life: draw what comes, until nobody is at the other end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other end hears it, and goes
    with suppress(EOFError, OSError), looking(look), rarely_collecting():
        while True:
            draw, forms = pipe.recv()
            answer: Any = None
            with suppress(Exception):  # it is raised where the picture is drawn again
                answer = render(draw(), forms)
            pipe.send(answer)


@contextmanager
def rarely_collecting() -> Iterator[None]:
    """Look for unreachable objects after every 50,000th new one: figures and frames are hundreds of
    thousands that live on, and to walk them at Python's own pace takes a tenth of a report's time.
    """
    usual = gc.get_threshold()
    gc.set_threshold(50_000, *usual[1:])
    try:
        yield
    finally:
        gc.set_threshold(*usual)
