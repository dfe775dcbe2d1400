"""Workers: long-lived processes of one thread that train what they are handed."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path
from typing import Any

import torch

from clipbench import registry
from clipbench.engines import Record
from clipbench.engines.failures import Fault, is_strangers, place, said, trace
from clipbench.engines.program import NoLanes
from clipbench.engines.rates import LOOP
from clipbench.errors import UsageError
from clipbench.execute.shards import Shard, has_stranger
from clipbench.execute.world import Change, World

NOTHING = Fault()
Used = tuple[Path, str]  # a stranger's file, and the hash it had when the study was read
LIMIT = 600.0  # seconds a shard, a cell of one for the loop, or a call may take where nothing longer was predicted
FAREWELL = 5.0  # seconds a process that has sent its result may take to end: torch's compiler has helpers of its own to end
CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS)
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)


def prepare(threads: int, use: Sequence[Used] = ()) -> None:
    """What every process that trains does first, before any tensor is made.

    Denormals are flushed: decaying moments and dead networks fill memory with them, and arithmetic on them is many times slower.

    :raises UsageError: a file of ``use`` is not what it was when the study was read.
    """
    _keep_memory()
    torch.set_flush_denormal(True)
    torch.set_num_threads(threads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the supervisor has said it of a broken entry point
        registry.load_packaged()
    for path, digest in use:
        registry.load_file(path, digest=digest)


def _keep_memory() -> None:
    """Tell glibc to keep what is freed: by default every tensor of some size is new pages, which took half of a step's time."""
    with suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def context(device: str) -> ForkServerContext | SpawnContext:
    """How workers start: from a server with torch loaded, or afresh where CUDA is used (it does not survive a fork)."""
    if device == "cuda":
        return multiprocessing.get_context("spawn")
    server = multiprocessing.get_context("forkserver")
    # The first optimizer built in a process imports torch._dynamo, the first data set sklearn.datasets: 2 s together.
    server.set_forkserver_preload(["torch._dynamo", "sklearn.datasets", "clipbench.execute", *registry.PACKAGED])
    return server


@dataclass(frozen=True)
class Broken:
    """Why a worker could not run a shard; ``loop`` says that the loop may run it."""

    reason: str
    loop: bool = False
    fault: Fault = NOTHING


@dataclass(frozen=True)
class Answer:
    """What a worker says of its shard: records of its first cells, or why there are none; what had to be put back after them.

    ``retired``: it takes no other cell, and waits for its end: its process is no longer what it was.
    """

    said: list[Record] | Broken
    notes: tuple[str, ...] = ()
    retired: bool = False


def work(pipe: connection.Connection, use: Sequence[Used], threads: int, stop: Any) -> None:
    """A worker's life: receive a shard, send its records, until the pipe says None or the supervisor is gone."""
    _heed_the_supervisor()
    try:
        prepare(threads, use)
    except UsageError as error:
        pipe.send(error)
        return
    world, process = World(), os.getpid()
    pipe.send(None)  # ready
    while (shard := pipe.recv()) is not None:
        for answer in _answers(shard, world):
            if os.getpid() != process:
                os._exit(0)  # a copy of the worker, which a component has made by a fork
            _send(pipe, answer)
            if stop.is_set() or answer.retired:
                return


def _send(pipe: connection.Connection, answer: Answer) -> None:
    """Say it, or end: a component may have closed the pipe."""
    try:
        pipe.send(answer)
    except OSError:
        os._exit(1)


def _answers(shard: Shard, world: World) -> Iterator[Answer]:
    """A shard's answers; after each the process is compared with what it was before its first cell."""
    runs, strange = shard.run(), any(has_stranger(job.cell) for job in shard.jobs)
    while (said := _attempt(runs, shard)) is not None:
        change = world.compare(names=strange, by_compiler=shard.compiled)
        if change.numbers:
            said = _spoiled(said, shard, change)
        faults = [said.fault] if isinstance(said, Broken) else [record.fault for record in said if record.fault]
        retired = bool(change.numbers or change.lasting or any(fault.spent for fault in faults))
        yield Answer(said, change.notes, retired)
        if retired or isinstance(said, Broken):
            return


def _attempt(runs: Iterator[list[Record]], shard: Shard) -> list[Record] | Broken | None:
    try:
        return next(runs, None)
    except NoLanes as refusal:
        return Broken(str(refusal), loop=True)
    except torch.OutOfMemoryError as error:
        return Broken(f"out of memory on {shard.jobs[0].cell.device}", fault=Fault.of(error))
    except BaseException as error:  # noqa: BLE001 - a stranger's component may raise anything; the matrix goes on
        return Broken(said(error), fault=Fault.of(error))


def _spoiled(found: list[Record] | Broken, shard: Shard, change: Change) -> list[Record] | Broken:
    """In place of what came of cells that changed their process: that they did."""
    reason = f"it changed {', '.join(change.numbers)} of the process it shares with other cells"
    if isinstance(found, Broken):
        return Broken(f"{reason}, and then: {found.reason}", fault=found.fault)
    if shard.engine != LOOP:
        return Broken(reason)
    return [
        Record(
            record.job,
            threshold=record.threshold,
            failure=reason if record.failure is None else f"{reason}, and then: {record.failure}",
            fault=record.fault or Fault(),
            threads=record.threads,
            seconds=record.seconds,
        )
        for record in found
    ]


def _heed_the_supervisor() -> None:
    """Leave it to the supervisor what an interrupt means, and end when it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A cluster sends it to every process at once. It is heard and not ignored, which what a worker starts would inherit.
    signal.signal(signal.SIGTERM, lambda *_: None)
    _follow()


def _follow() -> None:
    """End this process when its supervisor is gone, however that went."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


class Worker:
    """One worker process, the shard in its hand, and the pipe to it."""

    def __init__(self, number: int, use: Sequence[Used], threads: int, device: str, stop: Any) -> None:
        server = context(device)
        self.number, self.ready = number, False
        self.shard: Shard | None = None
        self.since = time.monotonic()  # when it was handed a shard, or last heard of
        self.pipe, end = server.Pipe()
        self.process = server.Process(target=work, args=(end, tuple(use), threads, stop), name=f"clipbench-{number}", daemon=True)
        self.process.start()
        end.close()

    def give(self, shard: Shard) -> None:
        """Put a shard into the worker's hand."""
        self.shard, self.since = shard, time.monotonic()
        with suppress(BrokenPipeError):  # it died just now: its end of the pipe says so next
            self.pipe.send(shard)

    def took(self, records: int) -> None:
        """So many cells of the shard have ended."""
        left = self.shard.without(records) if self.shard is not None else None
        self.shard, self.since = (left if left is not None and left.jobs else None), time.monotonic()

    def dismiss(self) -> None:
        """Tell an idle worker to end by itself; one with a shard in its hand is ended."""
        if self.ready and self.shard is None:
            with suppress(BrokenPipeError):
                self.pipe.send(None)
        else:
            self.process.kill()

    def end(self) -> None:
        """Wait for it to be gone, and see to it where that takes too long."""
        self.process.join(FAREWELL)
        self.process.kill()
        self.process.join()

    def death(self) -> Death:
        """How the process ended."""
        self.process.join()
        return Death(self.process.exitcode or 0)


@dataclass(frozen=True)
class Death:
    """How a process ended: its exit code, which below zero is a signal; None where it took too long."""

    code: int | None

    @property
    def killed(self) -> bool:
        """Whether a signal ended it."""
        return self.code is not None and self.code < 0

    @property
    def lost(self) -> bool:
        """Whether somebody else did: no crash of its own."""
        return self.killed and signal.Signals(-(self.code or 0)) not in CRASHES

    def __str__(self) -> str:
        if self.killed:
            return f"the worker was killed by {signal.Signals(-(self.code or 0)).name}"
        return f"the worker exited with code {self.code}"


_called: set[Any] = set()  # the processes of calls under way


class Bug(Exception):  # noqa: N818 - what it is called
    """A mistake of ours in another process; its traceback comes as a note."""


def call(
    function: Callable[..., Any],
    arguments: Sequence[Any],
    use: Sequence[Used],
    device: str,
    *,
    what: str = "the work of a worker",
    limit: float = LIMIT,
    threads: int = 1,
) -> Any:
    """``function(*arguments)`` in a fresh worker, alone: a pilot, a timing, a replay. A worker that is killed has a second try.

    :param what: how a user would call it, such as ``the pilot of "wdbc"``.
    :param limit: seconds it may take.
    :param threads: torch threads it has.
    :raises UsageError: what the function raised as such; that a stranger's code raised, where; that it was killed or took too long.
    :raises OSError: what the function raised as such.
    :raises Bug: anything else that it raised.
    """
    answers: list[Any] = []
    for _ in range(2):
        death = _called_once((function, tuple(arguments), tuple(use), threads), device, limit, answers)
        if answers or not death.killed:
            break
    if answers:
        return _taken(answers[0], what)
    if death.code is None:
        raise UsageError(f"{what} took longer than {limit:g} s.")
    raise UsageError(f"{what}: {death}{', and so was the one after it' * death.killed}; nothing stored is lost.")


def _called_once(given: tuple[Any, ...], device: str, limit: float, answers: list[Any]) -> Death:
    """Have a fresh process answer; how it ended, without a code where it had to be ended."""
    server = context(device)
    pipe, end = server.Pipe()
    process = server.Process(target=_call, args=(end, *given), daemon=True)
    process.start()
    _called.add(process)
    end.close()
    late = True
    try:
        late = not pipe.poll(limit)
        if not late:
            answers.append(pipe.recv())
            process.join(FAREWELL)
    except (EOFError, OSError):  # it ended without an answer
        process.join()
    finally:
        late = late or process not in _called  # abandoned: nobody waits for another try
        _called.discard(process)
        process.kill()
        process.join()
    return Death(None if late else process.exitcode)


def _taken(answer: tuple[str, Any], what: str) -> Any:
    """The value that a call has answered, or its exception."""
    kind, value = answer
    if kind == "value":
        return value
    if kind == "bug":
        bug = Bug(f"{what} has met a mistake in clipbench itself:")
        bug.add_note(value)
        raise bug
    raise value if isinstance(value, OSError) else UsageError(str(value).replace("{what}", what))


def abandon() -> None:
    """End every call under way, in whatever thread it is waited for: what an interrupt asks for."""
    for process in list(_called):
        _called.discard(process)
        process.kill()


def _call(
    pipe: connection.Connection, function: Callable[..., Any], arguments: Sequence[Any], use: Sequence[Used], threads: int
) -> None:
    _heed_the_supervisor()
    try:
        prepare(threads, use)
        pipe.send(("value", function(*arguments)))
    except BaseException as error:  # noqa: BLE001 - a stranger's component may raise anything
        pipe.send(_blamed(error))


def _blamed(error: BaseException) -> tuple[str, Any]:
    """Whose fault an exception is: the user's, the disk's, a stranger's, or ours."""
    if isinstance(error, UsageError):
        return "usage", str(error)
    if isinstance(error, OSError) and error.filename is not None and not is_strangers(error):
        return "usage", OSError(error.errno, error.strerror, str(error.filename))
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return "usage", "{what}: out of memory."
    if is_strangers(error):
        return "usage", f"{{what}} failed at {place(error)}: {said(error)}."
    return "bug", trace(error)
