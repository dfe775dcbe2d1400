"""Worker processes of this machine: long-lived, each with a pipe and one piece of work at a
time.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.context import ForkServerContext, SpawnContext
from types import ModuleType, TracebackType
from typing import Any, Self, cast

from clipbench import forkserver
from clipbench.cores import cores
from clipbench.errors import UsageError
from clipbench.execute.cards import CUDA, ONE_CARD, Cards
from clipbench.execute.executor import (
    Broken,
    Call,
    Died,
    Done,
    End,
    Left,
    Portion,
    Raised,
    Returned,
    Setting,
    Work,
)
from clipbench.execute.machine import environment
from clipbench.execute.offered import Request
from clipbench.execute.worker import Answer, answers, carried_out, heed_the_supervisor, prepare
from clipbench.execute.world import World

# seconds a process that has sent its result may take to end: torch's compiler has helpers of its
# own to end
FAREWELL = 5.0
CRASHES = (
    signal.SIGSEGV,
    signal.SIGABRT,
    signal.SIGBUS,
    signal.SIGFPE,
    signal.SIGILL,
    signal.SIGTRAP,
    signal.SIGSYS,
)


def context(device: str) -> ForkServerContext | SpawnContext:
    """The way in which workers start: from a server with torch loaded, or afresh if CUDA is used
    (it does not survive a fork).
    """
    if device == "cuda":
        return multiprocessing.get_context("spawn")
    return forkserver.server()


def serve(pipe: connection.Connection, setting: Setting, stop: Any) -> None:
    """A worker's life: receive a shard, send its records, until the pipe says None or the
    supervisor is gone.
    """
    heed_the_supervisor()
    try:
        prepare(setting)
    except UsageError as error:
        pipe.send(error)
        return
    world, process = World(), os.getpid()
    pipe.send(environment(setting.device))  # ready
    while (shard := pipe.recv()) is not None:
        for answer in answers(shard, world):
            if os.getpid() != process:
                os._exit(0)  # a copy of the worker, which a component has made by a fork
            _send(pipe, answer)
            if stop.is_set() or answer.retires:
                return


def _send(pipe: connection.Connection, answer: Answer) -> None:
    """Say it, or end: a component may have closed the pipe."""
    try:
        pipe.send(answer)
    except OSError:
        os._exit(1)


def serve_once(pipe: connection.Connection, setting: Setting, call: Call) -> None:
    """The life of a process that is there for one call."""
    heed_the_supervisor()
    pipe.send(carried_out(call, setting))


class Local:
    """An executor whose work runs in processes of this machine; at the end of its ``with`` block
    none is left.

    Workers stay from one shard to the next; each call has a process of its own.
    """

    seconds = 0.05
    patience = 600.0

    def __init__(self, slots: int, cards: Cards = ONE_CARD) -> None:
        self.slots, self.cards = slots, cards
        self.crew: list[Worker] = []
        self.queue: deque[tuple[int, Work, Setting]] = deque()
        self.tickets = itertools.count()
        self.stopped = False
        self.stillborn = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for worker in self.crew:
            worker.dismiss()
        for worker in self.crew:
            worker.end()
        self.crew = []

    def submit(self, work: Work, setting: Setting) -> int:
        ticket = next(self.tickets)
        self.queue.append((ticket, work, setting))
        return ticket

    def results(self, timeout: float) -> list[Portion]:
        portions = self._hand_out()
        for pipe in connection.wait(
            [worker.pipe for worker in self.crew], timeout=0 if portions else timeout
        ):
            portions += self._hear(next(worker for worker in self.crew if worker.pipe is pipe))
        return portions + self._hand_out()

    def cancel(self, ticket: int) -> None:
        self.queue = deque(one for one in self.queue if one[0] != ticket)
        for worker in [one for one in self.crew if one.ticket == ticket]:
            self._remove(worker)

    def stop(self) -> None:
        self.stopped = True
        self.queue.clear()
        for worker in self.crew:
            worker.stop.set()

    def _hand_out(self) -> list[Portion]:
        """An empty portion for each piece of work that is begun here: all that can be, the
        oldest first.
        """
        begun, waiting = [], deque[tuple[int, Work, Setting]]()
        for ticket, work, setting in self.queue:
            worker = self._hire(setting, work) if isinstance(work, Call) else self._ready(setting)
            if worker is None:
                waiting.append((ticket, work, setting))
                continue
            worker.take(ticket, work)
            begun.append(worker.portion(end=None))
        self.queue = waiting
        return begun

    def _ready(self, setting: Setting) -> Worker | None:
        """An idle worker for a shard; None if none is ready: then one is started if a slot is
        free.
        """
        alike = [one for one in self.crew if one.idle and one.setting == setting]
        ready = next((one for one in alike if one.ready), None)
        if ready is None and len(alike) < sum(
            not isinstance(work, Call) for _, work, _ in self.queue
        ):
            self._hire(setting)
        return ready

    def _hire(self, setting: Setting, call: Call | None = None) -> Worker | None:
        """A new process, or None if all slots are taken; an idle worker that is set up otherwise
        makes room.
        """
        if len(self.crew) >= self.slots:
            spare = (one for one in self.crew if one.idle and one.ready)
            other = next((one for one in spare if call is not None or one.setting != setting), None)
            if other is None:
                return None
            other.dismiss()
            other.end()
            self.crew.remove(other)
        taken = {one.number for one in self.crew}
        number = next(number for number in itertools.count() if number not in taken)
        self.crew.append(Worker(number, setting, call))
        return self.crew[-1]

    def _remove(self, worker: Worker) -> None:
        worker.process.kill()
        worker.process.join()
        self.crew.remove(worker)

    def _hear(self, worker: Worker) -> list[Portion]:
        """The portions that follow from one message of a worker: none or one."""
        try:
            said = worker.pipe.recv()
        except (EOFError, OSError):  # the second if it was killed while it sent
            return self._bury(worker)
        if isinstance(said, UsageError):
            raise said
        if isinstance(said, Returned | Raised):
            self.crew.remove(worker)
            worker.end()
            return [worker.portion(end=said)]
        if not isinstance(said, Answer):
            worker.environment = said
            self.stillborn = False
            return []
        portion = worker.took(said)
        if said.retires:
            self._remove(worker)
        return [portion]

    def _bury(self, worker: Worker) -> list[Portion]:
        """The portion that tells of a worker that is gone with the work in its hand; none if it had
        no work.

        :raises UsageError: it ended before it was ready, and either no signal killed it, or it was
            the second in a row.
        """
        death = Death.of(worker.process)
        self.crew.remove(worker)
        if worker.ticket is not None:
            return [worker.portion(end=Died(str(death), death.lost, death.killed))]
        if not worker.ready and not self.stopped:
            if self.stillborn or not death.killed:
                raise UsageError(f"{death} before its first cell; a `use` file may have ended it.")
            self.stillborn = True
        return []


def local(request: Request) -> Local:
    """Processes of this machine: one a core, and one a CUDA device, unless more are asked for."""
    request.known("local", ())
    devices = len(request.cards.indices) if request.device == CUDA else 0
    return Local(request.workers or max(cores(), devices), request.cards)


@contextmanager
def _main_module_hidden() -> Iterator[None]:
    """A process that starts here does not import the main module of this one: a script that is not
    written for it would be run once more in every worker.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


class Worker:
    """One process, the pipe to it, and the ticket of the work in its hand."""

    def __init__(self, number: int, setting: Setting, call: Call | None) -> None:
        server = context(setting.device)
        self.number, self.setting, self.call = number, setting, call
        self.environment: dict[str, Any] | None = None  # its machine, once it is ready
        self.ticket: int | None = None
        self.cells = 0  # of its shard, that have not ended
        self.stop = server.Event()
        self.pipe, end = server.Pipe()
        target = (
            (serve, (end, setting, self.stop))
            if call is None
            else (serve_once, (end, setting, call))
        )
        self.process = server.Process(
            target=target[0], args=target[1], name=f"clipbench-{number}", daemon=True
        )
        with _main_module_hidden():
            self.process.start()
        end.close()

    @property
    def ready(self) -> bool:
        """Whether it has been prepared; always true for the worker of a call, which begins at
        once.
        """
        return self.call is not None or self.environment is not None

    @property
    def idle(self) -> bool:
        return self.ticket is None and self.call is None

    def take(self, ticket: int, work: Work) -> None:
        """Put work into its hand."""
        self.ticket = ticket
        if not isinstance(work, Call):
            self.cells = len(work.jobs)
            with suppress(BrokenPipeError):  # it died just now: its end of the pipe says so next
                self.pipe.send(work)

    def took(self, answer: Answer) -> Portion:
        """The portion that an answer makes; if it ends the shard, the worker is idle again."""
        if isinstance(answer.said, Broken):
            portion = self.portion(notes=answer.notes, end=answer.said)
        else:
            self.cells -= len(answer.said)
            end = Done() if not self.cells else Left() if answer.retires else None
            portion = self.portion(records=answer.said, notes=answer.notes, end=end)
        if portion.end is not None:
            self.ticket = None
        return portion

    def portion(
        self, *, end: End | None, records: Any = (), notes: tuple[str, ...] = ()
    ) -> Portion:
        return Portion(cast("int", self.ticket), records, notes, self.environment, self.number, end)

    def dismiss(self) -> None:
        """Tell an idle worker to end by itself; one with work in its hand is ended."""
        if self.idle and self.ready:
            with suppress(BrokenPipeError):
                self.pipe.send(None)
        else:
            self.process.kill()

    def end(self) -> None:
        """Wait for it to be gone, and see to it if that takes too long."""
        self.process.join(FAREWELL)
        self.process.kill()
        self.process.join()


@dataclass(frozen=True)
class Death:
    """How a process ended: its exit code, which below zero is a signal."""

    code: int

    @classmethod
    def of(cls, process: Any) -> Death:
        process.join()
        return cls(process.exitcode or 0)

    @property
    def killed(self) -> bool:
        """Whether a signal ended it."""
        return self.code < 0

    @property
    def lost(self) -> bool:
        """Whether somebody else ended it: by a signal, and not one of a crash."""
        return self.killed and signal.Signals(-self.code) not in CRASHES

    def __str__(self) -> str:
        if self.killed:
            return f"the worker was killed by {signal.Signals(-self.code).name}"
        return f"the worker exited with code {self.code}"
