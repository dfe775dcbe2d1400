"""Workers: long-lived processes of one thread that train what they are handed."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path
from typing import Any

import torch

from clipbench import registry
from clipbench.engines.program import NoLanes
from clipbench.schedule.shards import Shard

Used = tuple[Path, str]  # a stranger's file, and the hash it had when the study was read
FAREWELL = 5.0  # seconds a process that has sent its result may take to end: torch's compiler has helpers of its own to end
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
    server.set_forkserver_preload(["torch._dynamo", "sklearn.datasets", "clipbench.schedule", *registry.PACKAGED])
    return server


@dataclass(frozen=True)
class Broken:
    """Why a worker could not run a shard and goes on without it; ``loop`` says that the loop may run it."""

    reason: str
    loop: bool = False


def work(pipe: connection.Connection, use: Sequence[Used], threads: int, stop: Any) -> None:
    """A worker's life: receive a shard, send its records, until the pipe says None or the supervisor is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the supervisor decides what an interrupt means
    _follow()
    try:
        prepare(threads, use)
    except registry.UsageError as error:
        pipe.send(error)
        return
    pipe.send(None)  # ready
    while (shard := pipe.recv()) is not None:
        try:
            for records in shard.run():
                pipe.send(records)
                if stop.is_set():
                    return
        except torch.OutOfMemoryError:
            pipe.send(Broken(f"out of memory on {shard.jobs[0].cell.device}"))
        except NoLanes as refusal:
            pipe.send(Broken(str(refusal), loop=True))
        except Exception as error:  # noqa: BLE001 - a stranger's component may raise anything; the matrix goes on
            pipe.send(Broken(f"{type(error).__name__}: {error}".replace("\n", " ")[:500]))


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
            self.process.terminate()

    def end(self) -> None:
        """Wait for it to be gone, and see to it where that takes too long."""
        self.process.join(FAREWELL)
        self.process.terminate()
        self.process.join()

    def death(self) -> str:
        """Why the process ended, in words."""
        self.process.join()
        code = self.process.exitcode or 0
        return f"the worker was killed by {signal.Signals(-code).name}" if code < 0 else f"the worker exited with code {code}"


_called: set[Any] = set()  # the processes of calls under way


def call(
    function: Callable[..., Any],
    arguments: Sequence[Any],
    use: Sequence[Used],
    device: str,
    limit: float | None = None,
    threads: int = 1,
) -> Any:
    """``function(*arguments)`` in a fresh worker, alone: a pilot, a timing, a replay.

    :param limit: seconds it may take.
    :param threads: torch threads it has.
    :raises UsageError: what the function raised as such, or that it took too long.
    """
    server = context(device)
    pipe, end = server.Pipe()
    process = server.Process(target=_call, args=(end, function, tuple(arguments), tuple(use), threads), daemon=True)
    process.start()
    _called.add(process)
    end.close()
    try:
        if not pipe.poll(limit):
            raise registry.UsageError(f"{function.__name__.strip('_')} took longer than {limit:g} s.")
        fine, value = pipe.recv()
        process.join(FAREWELL)
    except (EOFError, OSError):
        process.join()
        raise registry.UsageError(
            f"a worker ended with code {process.exitcode} in {function.__name__.strip('_')}; nothing stored is lost."
        ) from None
    finally:
        _called.discard(process)
        process.terminate()
        process.join()
    if fine:
        return value
    raise registry.UsageError(value)


def abandon() -> None:
    """End every call under way, in whatever thread it is waited for: what an interrupt asks for."""
    for process in list(_called):
        process.terminate()


def _call(
    pipe: connection.Connection, function: Callable[..., Any], arguments: Sequence[Any], use: Sequence[Used], threads: int
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _follow()
    try:
        prepare(threads, use)
        pipe.send((True, function(*arguments)))
    except Exception as error:  # noqa: BLE001 - a stranger's component may raise anything
        said = (
            str(error) if isinstance(error, registry.UsageError) else f"{function.__name__} failed: {type(error).__name__}: {error}"
        )
        pipe.send((False, said))
