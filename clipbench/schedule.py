"""Cells onto worker processes, and what comes back into the store.

The supervisor alone writes. Workers are long-lived, have one torch thread, a short list of cells in hand and a pipe each; they send
a record the moment a cell ends. So a worker's death costs the cell it was at, which is recorded ``failed``, and no other.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from multiprocessing import connection
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clipbench import engines, events, registry
from clipbench.engines import Job, Record
from clipbench.store import Store, keeps_curve

IN_HAND = 4  # cells a worker holds: enough to hide the pipe, few enough to end together
SHARD_CELLS = 64
SHARD_SECONDS = 30.0
PATIENCE = 60.0  # seconds an interrupted run waits for the cells under way

Used = tuple[Path, str]  # a stranger's file, and the hash it had when the study was read
OnRecord = Callable[[Record], object]


def prepare(threads: int, use: Sequence[Used] = ()) -> None:
    """What every process that trains does first, before any tensor is made.

    Denormals are flushed: decaying moments and dead networks fill memory with them, and arithmetic on them is many times slower.

    :raises UsageError: a file of ``use`` is not what it was when the study was read.
    """
    torch.set_flush_denormal(True)
    torch.set_num_threads(threads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the supervisor has said it of a broken entry point
        registry.load_packaged()
    for path, digest in use:
        registry.load_file(path, digest=digest)


def context(device: str) -> ForkServerContext | SpawnContext:
    """How workers start: from a server with torch loaded, or afresh where CUDA is used (it does not survive a fork)."""
    if device == "cuda":
        return multiprocessing.get_context("spawn")
    server = multiprocessing.get_context("forkserver")
    # The first optimizer built in a process imports torch._dynamo, the first data set sklearn.datasets: 2 s together.
    server.set_forkserver_preload(["torch._dynamo", "sklearn.datasets", "clipbench.schedule", *registry.PACKAGED])
    return server


def work(pipe: connection.Connection, use: Sequence[Used], threads: int, stop: Any) -> None:
    """A worker's life: receive a list of jobs, send a record for each, until the pipe says None or the supervisor is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the supervisor decides what an interrupt means
    _follow()
    try:
        prepare(threads, use)
    except registry.UsageError as error:
        pipe.send(error)
        return
    pipe.send(None)  # ready
    while (jobs := pipe.recv()) is not None:
        for job in jobs:
            if stop.is_set():
                return
            pipe.send(engines.run(job))


def _follow() -> None:
    """End this process when its supervisor is gone, however that went."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


class Worker:
    """One worker process, the jobs in its hand, and the pipe to it."""

    def __init__(self, number: int, use: Sequence[Used], threads: int, device: str, stop: Any) -> None:
        server = context(device)
        self.number, self.ready = number, False
        self.jobs: deque[Job] = deque()
        self.pipe, end = server.Pipe()
        self.process = server.Process(target=work, args=(end, tuple(use), threads, stop), name=f"clipbench-{number}", daemon=True)
        self.process.start()
        end.close()

    def give(self, jobs: Iterable[Job]) -> None:
        """Put more cells into the worker's hand."""
        self.jobs.extend(jobs)
        with suppress(BrokenPipeError):  # it died just now: its end of the pipe says so next
            self.pipe.send(list(self.jobs))

    def death(self) -> str:
        """Why the process ended, in words."""
        self.process.join()
        code = self.process.exitcode or 0
        return f"the worker was killed by {signal.Signals(-code).name}" if code < 0 else f"the worker exited with code {code}"


def run(
    jobs: Sequence[Job],
    store: Store,
    role: str,
    environment: str,
    *,
    use: Sequence[Used] = (),
    workers: int = 2,
    threads: int = 1,
    on_record: OnRecord | None = None,
) -> None:
    """Run every job and commit its record.

    :raises KeyboardInterrupt: after what was finished, the cells under way included, has been committed.
    """
    if jobs:
        _Supervisor(jobs, _Archive(store, role, environment), use, workers, threads, on_record).run()


def call(function: Callable[..., Any], arguments: Sequence[Any], use: Sequence[Used], device: str) -> Any:
    """``function(*arguments)`` in a fresh worker of one thread, alone: a pilot, or a timing.

    :raises UsageError: what the function raised as such.
    """
    server = context(device)
    pipe, end = server.Pipe()
    process = server.Process(target=_call, args=(end, function, tuple(arguments), tuple(use)), daemon=True)
    process.start()
    end.close()
    try:
        fine, value = pipe.recv()
    except EOFError:
        process.join()
        raise registry.UsageError(
            f"a worker ended with code {process.exitcode} in {function.__name__.strip('_')}; nothing stored is lost."
        ) from None
    finally:
        process.terminate()
        process.join()
    if fine:
        return value
    raise registry.UsageError(value)


def _call(pipe: connection.Connection, function: Callable[..., Any], arguments: Sequence[Any], use: Sequence[Used]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _follow()
    try:
        prepare(1, use)
        pipe.send((True, function(*arguments)))
    except Exception as error:  # noqa: BLE001 - a stranger's component may raise anything
        said = (
            str(error) if isinstance(error, registry.UsageError) else f"{function.__name__} failed: {type(error).__name__}: {error}"
        )
        pipe.send((False, said))


class _Supervisor:
    def __init__(
        self, jobs: Sequence[Job], archive: _Archive, use: Sequence[Used], workers: int, threads: int, on_record: OnRecord | None
    ) -> None:
        self.queue = deque(jobs)
        self.archive, self.on_record = archive, on_record
        self.device = "cuda" if any(job.cell.device == "cuda" for job in jobs) else "cpu"
        self.stop = context(self.device).Event()
        self.use, self.threads = use, threads
        self.crew = [self.start(number) for number in range(min(workers, len(jobs)))]

    def start(self, number: int) -> Worker:
        return Worker(number, self.use, self.threads, self.device, self.stop)

    def run(self) -> None:
        """Until every job has ended, or an interrupt has been served."""
        with _interrupts() as interrupts:
            try:
                self._supervise(interrupts)
            finally:
                for worker in self.crew:
                    worker.process.terminate()
                for worker in self.crew:
                    worker.process.join()
                self.archive.flush()
        if interrupts:
            raise KeyboardInterrupt

    def _supervise(self, interrupts: Sequence[int]) -> None:
        until = float("inf")
        while any(worker.jobs or not worker.ready for worker in self.crew) or self.queue:
            if interrupts and not self.stop.is_set():
                self.stop.set()
                self.queue.clear()
                until = time.monotonic() + PATIENCE
            for pipe in connection.wait([worker.pipe for worker in self.crew], timeout=0.2):
                worker = next(worker for worker in self.crew if worker.pipe is pipe)
                try:
                    record = worker.pipe.recv()
                except (EOFError, ConnectionResetError):
                    self._bury(worker)
                    continue
                if isinstance(record, registry.UsageError):
                    raise record
                if record is None:
                    worker.ready = True
                else:
                    worker.jobs.popleft()
                    self._keep(record, worker)
                if worker.ready and not worker.jobs and self.queue:
                    share = min(IN_HAND, -(-len(self.queue) // len(self.crew)))  # the last cells are shared out
                    worker.give(self.queue.popleft() for _ in range(share))
            if time.monotonic() > until:
                return

    def _keep(self, record: Record, worker: Worker) -> None:
        self.archive.add(record, worker.number)
        if self.on_record is not None:
            self.on_record(record)

    def _bury(self, worker: Worker) -> None:
        """A worker died: the cell it was at has failed, the others in its hand go back, and another worker takes its place."""
        reason = worker.death()
        self.crew.remove(worker)
        if self.stop.is_set():
            return
        if not worker.ready:
            raise registry.UsageError(f"{reason} before its first cell; a `use` file may have ended it.")
        if worker.jobs:
            job = worker.jobs.popleft()
            self._keep(Record(job, threshold=job.threshold, failure=reason), worker)
            self.queue.extendleft(reversed(worker.jobs))
        self.crew.append(self.start(worker.number))


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Notes an interrupt instead of raising it: none tears a record or a shard apart half way. A second one does not wait."""
    found: list[int] = []

    def note(number: int, _: object) -> None:
        found.append(number)
        if len(found) > 1:
            raise KeyboardInterrupt

    heard = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
    before = signal.signal(signal.SIGINT, note) if heard else None
    try:
        yield found
    finally:
        if heard:
            signal.signal(signal.SIGINT, before)


class _Archive:
    """Gathers records into shards of 64 cells or half a minute, and commits them."""

    def __init__(self, store: Store, role: str, environment: str) -> None:
        self.store, self.role, self.environment = store, role, environment
        self.pages = store.page("environment")
        stored = store.read("cells")
        self.attempts = dict(zip(stored["cell"], stored["attempt"], strict=True))
        self.number = len(list((store.folder / "cells").glob("*.parquet")))
        self.records: list[tuple[Record, int]] = []
        self.since = time.monotonic()

    def add(self, record: Record, worker: int) -> None:
        self.records.append((record, worker))
        if len(self.records) >= SHARD_CELLS or time.monotonic() - self.since > SHARD_SECONDS:
            self.flush()

    def flush(self) -> None:
        self.since = time.monotonic()
        if not self.records:
            return
        self.number += 1
        # Taken before they are written: where the disk fails behind the commit, a second try would store them twice.
        records, self.records = self.records, []
        tables: dict[str, Any] = {"cells": [], "evals": [], "events": []}
        curves: list[Record] = []
        for record, worker in records:
            cell = record.job.cell
            row = cell_row(record, worker, self.environment, int(self.attempts.get(cell.id, 0)) + 1)
            tables["cells"].append(row)
            if record.failure is not None:
                continue
            names = ("step", "split", "metric", "value")
            tables["evals"] += [{"cell": cell.id, **dict(zip(names, evaluation, strict=True))} for evaluation in record.evaluations]
            tables["events"] += [{"cell": cell.id, **vars(event)} for event in record.events]
            if keeps_curve(self.pages, cell.role, row["status"]):
                curves.append(record)
        if curves:
            tables["curves"] = curve_columns(curves)
        self.store.commit(f"{self.role}-{self.number:04d}", tables)


def cell_row(record: Record, worker: int, environment: str, attempt: int) -> dict[str, Any]:
    """One row of the ``cells`` table."""
    cell, verdict, rows = record.job.cell, record.verdict, record.rows
    losses = rows[:, events.LOSS]
    validation = [
        value for _, split, metric, value in record.evaluations if (split, metric) == ("validation", "loss") and np.isfinite(value)
    ]
    test = [
        value for _, split, metric, value in record.evaluations if (split, metric) == ("test", record.metric) and np.isfinite(value)
    ]
    some = len(rows) > 0
    return {
        "cell": cell.id,
        "workload": cell.workload.name,
        "optimizer": cell.optimizer.name,
        "clip": cell.clip.name,
        "threshold": record.threshold,
        "relative": cell.relative,
        "lr": cell.lr,
        "seed": cell.seed,
        "role": cell.role,
        "extended": cell.extended,
        "problem": cell.problem,
        "arm": cell.arm,
        "batch": cell.batch,
        "device": cell.device,
        "dtype": cell.dtype,
        "engine": record.engine,
        "status": verdict.status if verdict else "failed",
        "outcome": verdict.outcome if verdict else None,
        "reason": verdict.reason if verdict else record.failure,
        "diverged_at": verdict.diverged_at if verdict else None,
        "steps": len(rows),
        "initial_loss": float(losses[0]) if some else None,
        "final_loss": float(losses[-1]) if some else None,
        "best_loss": float(np.fmin.reduce(losses)) if some else None,
        "metric": record.metric,
        "metric_value": test[-1] if test else None,
        "validation_value": min(validation) if validation else None,
        "steps_to_target": record.steps_to_target,
        "clipped_fraction": float((rows[:, events.CHANGED] > 0).mean()) if some else None,
        "grad_norm_median": float(np.nanmedian(rows[:, events.GRAD_NORM]))
        if some and not np.isnan(rows[:, events.GRAD_NORM]).all()
        else None,
        "seconds": record.seconds,
        "settings": cell.canonical,
        "attempt": attempt,
        "threads": record.threads,
        "worker": worker,
        "environment": environment,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def curve_columns(records: Sequence[Record]) -> dict[str, Any]:
    """The ``curves`` table of some records, by column."""
    rows = np.concatenate([record.rows for record in records])
    columns: dict[str, Any] = {
        "cell": np.repeat([record.job.cell.id for record in records], [len(record.rows) for record in records]),
        "step": np.concatenate([np.arange(len(record.rows)) for record in records]),
    }
    return columns | dict(zip(events.COLUMNS, rows.T, strict=True))
