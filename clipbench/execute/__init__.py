"""Cells onto worker processes, and what comes back into the store.

Cells are packed into *shards*: a few cells for the loop, or as many as are lanes together. The supervisor alone writes. Workers are
long-lived, have one torch thread, one shard in hand and a pipe each; the loop sends a record the moment a cell ends, lanes send
theirs together. When a worker dies, takes too long, or its cells change the process they share with others, its shard is halved
until the guilty cell is alone; the loop tries that one once more, and records it ``failed``, and no other. A worker that a signal
killed may not have been to blame: its shard has one more try before all that.
"""

from __future__ import annotations

import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import connection
from typing import Any

from clipbench.engines import Job, Record
from clipbench.engines.failures import Fault
from clipbench.engines.rates import LOOP, Choice
from clipbench.errors import UsageError
from clipbench.execute.archive import SHARD_CELLS, Archive, cell_row, curve_columns
from clipbench.execute.local import LIMIT, Answer, Broken, Bug, Used, Worker, abandon, call, context, prepare
from clipbench.execute.shards import IN_HAND, Shard, has_stranger, pack
from clipbench.store import Store

__all__ = [
    "IN_HAND",
    "LIMIT",
    "SHARD_CELLS",
    "SLACK",
    "Bug",
    "Shard",
    "Used",
    "Worker",
    "abandon",
    "call",
    "cell_row",
    "context",
    "curve_columns",
    "has_stranger",
    "pack",
    "prepare",
    "run",
]

PATIENCE = 60.0  # seconds an interrupted run waits for the shards under way
INTERRUPTS = (signal.SIGINT, signal.SIGTERM)
SLACK = 20.0  # times the prediction that it may take

OnRecord = Callable[[Record], object]
OnNote = Callable[[str], object]


def run(  # noqa: PLR0913 - what a run may be told
    jobs: Sequence[Job],
    store: Store,
    role: str,
    environment: str,
    *,
    choices: Mapping[Any, Choice] | None = None,
    use: Sequence[Used] = (),
    workers: int = 2,
    threads: int = 1,
    limit: float | None = None,
    on_record: OnRecord | None = None,
    on_note: OnNote | None = None,
) -> None:
    """Run every job and commit its record.

    :param choices: how the cells of each `stacked.shape` are run; in the loop where nothing is said.
    :param limit: seconds a shard may take; worked out from the rates where not given.
    :param on_note: is told, once a kind, what cells changed of their process that had to be put back.
    :raises KeyboardInterrupt: with the signal's number, after what was finished, the cells under way included, has been committed.
    """
    if jobs:
        shards = pack(jobs, choices or {}, workers)
        _Supervisor(shards, Archive(store, role, environment), use, workers, threads, limit, on_record, on_note).run()


class _Supervisor:
    def __init__(
        self,
        shards: Sequence[Shard],
        archive: Archive,
        use: Sequence[Used],
        workers: int,
        threads: int,
        limit: float | None,
        on_record: OnRecord | None,
        on_note: OnNote | None,
    ) -> None:
        self.queue = deque(shards)
        self.archive, self.limit, self.on_record, self.on_note = archive, limit, on_record, on_note
        self.noted, self.stillborn = set[str](), False
        self.device = "cuda" if any(job.cell.device == "cuda" for shard in shards for job in shard.jobs) else "cpu"
        self.stop = context(self.device).Event()
        self.use, self.threads = use, threads
        self.crew = [self.start(number) for number in range(min(workers, len(shards)))]

    def start(self, number: int) -> Worker:
        return Worker(number, self.use, self.threads, self.device, self.stop)

    def run(self) -> None:
        """Until every job has ended, or an interrupt has been served."""
        with _interrupts() as interrupts:
            try:
                self._supervise(interrupts)
            finally:
                for worker in self.crew:
                    worker.dismiss()
                for worker in self.crew:
                    worker.end()
                self.archive.flush()
        if interrupts:
            raise KeyboardInterrupt(interrupts[0])

    def _supervise(self, interrupts: Sequence[int]) -> None:
        until = float("inf")
        while any(worker.shard or not worker.ready for worker in self.crew) or self.queue:
            if interrupts and not self.stop.is_set():
                self.stop.set()
                self.queue.clear()
                until = time.monotonic() + PATIENCE
            for pipe in connection.wait([worker.pipe for worker in self.crew], timeout=0.2):
                self._hear(next(worker for worker in self.crew if worker.pipe is pipe))
            for worker in list(self.crew):
                self._watch(worker)
            for worker in self.crew:
                if worker.ready and worker.shard is None and self.queue:
                    worker.give(self.queue.popleft())
            if time.monotonic() > until:
                return

    def _hear(self, worker: Worker) -> None:
        """Take one message of a worker."""
        try:
            said = worker.pipe.recv()
        except (EOFError, OSError):  # the second where it was killed while it sent
            death = worker.death()
            self._bury(worker, str(death), Fault(lost=death.lost), killed=death.killed)
            return
        if isinstance(said, UsageError):
            raise said
        if said is None:
            worker.ready = True
        else:
            self._take(worker, said)

    def _take(self, worker: Worker, answer: Answer) -> None:
        """Take what a worker says of its shard; of one that has retired, another takes the place and what is left to do."""
        for note in answer.notes:
            self._note(worker.shard, note)
        if isinstance(answer.said, Broken):
            self._give_back(worker, answer.said)
        else:
            worker.took(len(answer.said))
            for record in answer.said:
                self._keep(record, worker)
        if answer.retired:
            worker.process.kill()
            worker.process.join()
            self.crew.remove(worker)
            if worker.shard is not None and not self.stop.is_set():
                self.queue.appendleft(worker.shard)
            if self.queue:
                self.crew.append(self.start(worker.number))

    def _give_back(self, worker: Worker, broken: Broken) -> None:
        shard, worker.shard = worker.shard, None
        alike = shard is not None and len({job.cell.arm for job in shard.jobs}) == 1  # else it may be one arm that has no lanes
        if shard is not None and broken.loop and alike and not self.stop.is_set():
            self.queue.appendleft(Shard(shard.jobs, seconds=shard.seconds))
        else:
            self._blame(shard, worker, broken.reason, broken.fault)

    def _note(self, shard: Shard | None, note: str) -> None:
        arms = sorted({job.cell.arm for job in shard.jobs[: 1 if shard.engine == LOOP else None]}) if shard is not None else []
        sentence = f"{' or '.join(arms)}: {note}."
        if self.on_note is not None and sentence not in self.noted:
            self.noted.add(sentence)
            self.on_note(sentence)

    def _watch(self, worker: Worker) -> None:
        """End a worker whose shard takes too long."""
        if worker.shard is None or self.stop.is_set():
            return
        cells = 1 if worker.shard.engine == LOOP else len(worker.shard.jobs)
        limit = self.limit or max(LIMIT, SLACK * cells * worker.shard.seconds)
        if time.monotonic() - worker.since > limit:
            worker.process.kill()
            self._bury(worker, f"it took longer than {limit:g} s", Fault(lost=True))

    def _keep(self, record: Record, worker: Worker) -> None:
        self.archive.add(record, worker.number)
        if self.on_record is not None:
            self.on_record(record)

    def _bury(self, worker: Worker, reason: str, fault: Fault, killed: bool = False) -> None:
        """A worker is gone: what it had in hand is looked into, and another worker takes its place."""
        worker.process.join()
        self.crew.remove(worker)
        if self.stop.is_set():
            return
        if not worker.ready:
            if self.stillborn or not killed:
                raise UsageError(f"{reason} before its first cell; a `use` file may have ended it.")
            self.stillborn = True
        if worker.shard is not None and killed and not worker.shard.again:
            self.queue.appendleft(replace(worker.shard, again=True))  # somebody may have meant the process, and not the cell
        else:
            self._blame(worker.shard, worker, reason, fault)
        self.crew.append(self.start(worker.number))

    def _blame(self, shard: Shard | None, worker: Worker, reason: str, fault: Fault) -> None:
        """A shard could not be run to its end: the cell the loop was at has failed; lanes are halved, down to one for the loop."""
        if shard is None or self.stop.is_set():
            return
        if shard.engine == LOOP:
            job, rest = shard.jobs[0], shard.without(1)
            self._keep(Record(job, threshold=job.threshold, engine=shard.engine, failure=reason, fault=fault), worker)
            if rest.jobs:
                self.queue.appendleft(rest)
        elif len(shard.jobs) == 1:
            self.queue.appendleft(Shard(shard.jobs, seconds=shard.seconds))  # alone, the loop has the last word
        else:
            self.queue.extendleft(reversed(shard.halves()))


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Notes an interrupt instead of raising it: none tears a record or a shard apart half way. A second one does not wait."""
    found: list[int] = []

    def note(number: int, _: object) -> None:
        found.append(number)
        if len(found) > 1:
            raise KeyboardInterrupt(number)

    heard = INTERRUPTS if threading.current_thread() is threading.main_thread() else ()
    before = {one: signal.signal(one, note) for one in heard if signal.getsignal(one) is not signal.SIG_IGN}
    try:
        yield found
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
