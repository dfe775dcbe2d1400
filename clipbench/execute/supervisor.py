"""The supervisor: which shard is next, who failed, what is halved, and how long anything may take.

A shard whose process dies or takes too long, or whose cells change the process that they share, is
halved until the guilty cell is alone; the loop tries that one once more and records it ``failed``,
and no other. A process that a signal killed may not have been to blame: its shard has one more try
before all that. What is finished is archived at once. There is no process in here.
"""

from __future__ import annotations

import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from clipbench.engines import Job, Record
from clipbench.engines.failures import Fault
from clipbench.engines.rates import LOOP, Choice
from clipbench.errors import UsageError
from clipbench.execute.archive import Archive
from clipbench.execute.cards import CUDA
from clipbench.execute.executor import (
    Broken,
    Call,
    Died,
    End,
    Executor,
    Left,
    Portion,
    Raised,
    Returned,
    Setting,
)
from clipbench.execute.machine import environment
from clipbench.execute.shards import Shard, Waiting, pack
from clipbench.store import Store

# seconds that lanes, one cell of the loop, or a call may take if nothing longer was predicted
LIMIT = 600.0
SLACK = 20.0  # times the prediction that it may take
PATIENCE = 60.0  # seconds an interrupted run waits for the shards under way
TICK = 0.2  # seconds after which limits are looked at
INTERRUPTS = (signal.SIGINT, signal.SIGTERM)

OnRecord = Callable[[Record], object]
OnNote = Callable[[str], object]


class Bug(Exception):  # noqa: N818 - the field's word
    """A mistake of clipbench in another process; its traceback comes as a note."""


def run(  # noqa: PLR0913 - what a run may be told
    jobs: Sequence[Job],
    store: Store,
    role: str,
    executor: Executor,
    setting: Setting,
    *,
    choices: Mapping[Any, Choice] | None = None,
    limit: float | None = None,
    on_record: OnRecord | None = None,
    on_note: OnNote | None = None,
) -> None:
    """Run every job and commit its record.

    :param choices: how the cells of each `structure.shape` are run; in the loop if nothing is said.
    :param limit: seconds a shard may take; worked out from the rates if not given.
    :param on_note: is called with a sentence, once for each kind, on what cells changed in their
        process.
    :raises KeyboardInterrupt: with the signal's number, after what was finished, the cells under
        way included, has been committed.
    """
    if jobs:
        shards = pack(jobs, choices or {}, executor.slots, executor.seconds, executor.cards)
        _Supervisor(
            shards,
            Archive(store, role, environment("cpu")),
            executor,
            setting,
            limit,
            on_record,
            on_note,
        ).run()


@dataclass
class _UnderWay:
    """A shard that was submitted: its cells that have not ended, and the time of its last
    portion.
    """

    shard: Shard
    submitted: float
    heard: float | None = None  # None before it has begun
    environment: Mapping[str, Any] | None = None  # where it runs, once that has been said
    shared: bool = False  # whether another shard was at its place at any time
    left: dict[str, Job] = field(init=False)

    def __post_init__(self) -> None:
        self.left = {job.cell.id: job for job in self.shard.jobs}

    @property
    def rest(self) -> Shard:
        """The shard of the cells that have not ended."""
        if len(self.left) == len(self.shard.jobs):
            return self.shard
        return replace(self.shard, jobs=tuple(self.left.values()), again=False)


class _Supervisor:
    def __init__(
        self,
        shards: Sequence[Shard],
        archive: Archive,
        executor: Executor,
        setting: Setting,
        limit: float | None,
        on_record: OnRecord | None,
        on_note: OnNote | None,
    ) -> None:
        self.queue = Waiting(shards, executor.cards)
        self.archive, self.executor, self.setting, self.limit = archive, executor, setting, limit
        self.on_record, self.on_note = on_record, on_note
        self.under_way: dict[int, _UnderWay] = {}
        self.noted, self.stopping = set[str](), False
        self.ended: list[tuple[Record, Portion]] = []  # not yet archived

    def run(self) -> None:
        """Return after every job has ended, or after an interrupt has been served.

        :raises KeyboardInterrupt: with the signal's number.
        """
        with _interrupts() as interrupts:
            try:
                self._supervise(interrupts)
            finally:
                for ticket in self.under_way:
                    self.executor.cancel(ticket)
                self._archive_ended()
                self.archive.flush()
        if interrupts:
            raise KeyboardInterrupt(interrupts[0])

    def _supervise(self, interrupts: Sequence[int]) -> None:
        until = float("inf")
        while self.under_way or self.queue:
            if interrupts and not self.stopping:
                self._stop()
                until = time.monotonic() + PATIENCE
            while self.queue and len(self.under_way) < self.executor.slots:
                shard = self.queue.next([one.shard for one in self.under_way.values()])
                if shard is None:
                    break
                setting = replace(self.setting.of(shard.jobs[0].cell), card=shard.card)
                beside = [one for one in self.under_way.values() if one.shard.place == shard.place]
                ticket = self.executor.submit(shard, setting)
                self.under_way[ticket] = _UnderWay(shard, time.monotonic())
                for one in (self.under_way[ticket], *beside):
                    one.shared = one.shared or (bool(beside) and not self.executor.cards.apart)
            portions = self.executor.results(0 if self.ended else TICK)
            # now that each worker has its next shard: the disk may take longer than it does
            self._archive_ended()
            for portion in portions:
                self._take(portion)
            for ticket in list(self.under_way):
                self._watch(ticket)
            if time.monotonic() > until:
                return

    def _stop(self) -> None:
        self.stopping = True
        self.executor.stop()
        self.queue.clear()
        self.under_way = {
            ticket: one for ticket, one in self.under_way.items() if one.heard is not None
        }

    def _take(self, portion: Portion) -> None:
        """Take a portion of a shard under way; one of a ticket that has ended is a repetition."""
        one = self.under_way.get(portion.ticket)
        if one is None:
            return
        one.heard = time.monotonic()
        one.environment = portion.environment or one.environment
        for note in portion.notes:
            self._note(one.rest, note)
        end = self._take_records(one, portion)
        if end is None:
            return
        del self.under_way[portion.ticket]
        if self.stopping or not one.left:
            return
        if isinstance(end, Broken) and self._starved(one, end.fault):
            self.queue.first(replace(one.rest, alone=True))
        elif isinstance(end, Broken):
            self._give_back(one.rest, end, portion)
        elif isinstance(end, Died):
            self._bury(one.rest, end, portion)
        elif isinstance(end, Left):
            self.queue.first(one.rest)
        else:
            self._bury(
                one.rest, Died("it ended without its record", lost=True, killed=True), portion
            )

    def _take_records(self, one: _UnderWay, portion: Portion) -> End | None:
        """Keep the records of a portion; its end, or one of ours if it holds what nobody asked
        for.
        """
        end = portion.end
        for record in portion.records:
            if isinstance(record, Record) and one.left.pop(record.job.cell.id, None) is not None:
                if record.fault is not None and self._starved(one, record.fault):
                    self.queue.first(replace(one.shard.in_loop(), jobs=(record.job,), alone=True))
                else:
                    self._keep(record, portion)
            else:
                self.executor.cancel(portion.ticket)
                end = Died(
                    "what came back is none of the cells that were asked for",
                    lost=True,
                    killed=True,
                )
        return end

    def _starved(self, one: _UnderWay, fault: Fault) -> bool:
        """Whether a shard had too little memory, and another was on its CUDA device meanwhile: it
        has one more try alone.
        """
        shared = one.shared and one.shard.place[0] == CUDA
        return fault.lost and shared and not one.shard.alone and not self.stopping

    def _watch(self, ticket: int) -> None:
        """Cancel what takes too long."""
        one = self.under_way[ticket]
        if self.stopping:
            return
        if one.heard is None:
            late, limit = time.monotonic() - one.submitted, self.executor.patience
        else:
            cells = 1 if one.shard.engine == LOOP else len(one.shard.jobs)
            late, limit = (
                time.monotonic() - one.heard,
                self.limit or max(LIMIT, SLACK * cells * one.shard.seconds),
            )
        if late > limit:
            self.executor.cancel(ticket)
            del self.under_way[ticket]
            reason = f"it took longer than {limit:g} s"
            portion = Portion(ticket, environment=one.environment)
            self._bury(one.rest, Died(reason, lost=True), portion)

    def _give_back(self, shard: Shard, broken: Broken, portion: Portion) -> None:
        # else it may be one arm that has no lanes
        alike = len({job.cell.arm for job in shard.jobs}) == 1
        if broken.lanes and alike:
            self.queue.first(shard.in_loop())
        else:
            self._blame(shard, broken.reason, broken.fault, portion)

    def _bury(self, shard: Shard, died: Died, portion: Portion) -> None:
        """Try the shard of a process that is gone once more, or blame it."""
        if died.killed and not shard.again:
            # somebody may have meant the process, and not the cell
            self.queue.first(replace(shard, again=True))
        else:
            self._blame(shard, died.reason, Fault(lost=died.lost), portion)

    def _blame(self, shard: Shard, reason: str, fault: Fault, portion: Portion) -> None:
        """Blame a shard that did not come to its end: the loop's current cell fails; lanes are
        halved, one goes to the loop.
        """
        if not shard.jobs:
            return
        if shard.engine == LOOP:
            job, rest = shard.jobs[0], shard.without(1)
            self._keep(
                Record(
                    job, threshold=job.threshold, engine=shard.engine, failure=reason, fault=fault
                ),
                portion,
            )
            if rest.jobs:
                self.queue.first(rest)
        elif len(shard.jobs) == 1:
            # alone, the loop has the last word
            self.queue.first(shard.in_loop())
        else:
            self.queue.first(*shard.halves())

    def _note(self, shard: Shard, note: str) -> None:
        arms = sorted({job.cell.arm for job in shard.jobs[: 1 if shard.engine == LOOP else None]})
        sentence = f"{' or '.join(arms)}: {note}."
        if self.on_note is not None and sentence not in self.noted:
            self.noted.add(sentence)
            self.on_note(sentence)

    def _keep(self, record: Record, portion: Portion) -> None:
        self.ended.append((record, portion))

    def _archive_ended(self) -> None:
        ended, self.ended = self.ended, []
        for record, portion in ended:
            self.archive.add(record, portion)
            if self.on_record is not None:
                self.on_record(record)


@dataclass
class _Called:
    """A call that was submitted; ``since`` is when it began, once it has begun."""

    name: str
    work: Call
    setting: Setting
    again: bool
    since: float
    begun: bool = False

    def begin(self) -> None:
        """Note that it has begun: what it waited before does not count."""
        if not self.begun:
            self.begun, self.since = True, time.monotonic()


def call(executor: Executor, work: Call, setting: Setting, limit: float = LIMIT) -> Any:
    """The value of a call; see `calls`.

    :raises UsageError: the function raised one, user-defined code raised anything, it was killed,
        or it took too long.
    :raises OSError: the function raised one.
    :raises Bug: the function raised anything else.
    """
    ((_, outcome),) = calls(executor, {"": (work, setting)}, limit)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def calls(
    executor: Executor, works: Mapping[str, tuple[Call, Setting]], limit: float = LIMIT
) -> Iterator[tuple[str, Any]]:
    """Name and value of each call, as they come; as many run at a time as the executor has slots.
    An exception comes as a value.

    :param limit: seconds one may take once it has begun.
    """
    waiting = deque((name, work, setting, False) for name, (work, setting) in works.items())
    under_way: dict[int, _Called] = {}
    try:
        while waiting or under_way:
            while waiting and len(under_way) < executor.slots:
                name, work, setting, again = waiting[0]
                placed = _placed(executor, setting, under_way.values())
                if placed is None:
                    break
                waiting.popleft()
                ticket = executor.submit(work, placed)
                under_way[ticket] = _Called(name, work, placed, again, time.monotonic())
            for portion in executor.results(TICK):
                if portion.ticket not in under_way:
                    continue
                if portion.end is None:
                    under_way[portion.ticket].begin()
                    continue
                one = under_way.pop(portion.ticket)
                if isinstance(portion.end, Died) and portion.end.killed and not one.again:
                    # it may not have been to blame
                    waiting.appendleft((one.name, one.work, one.setting, True))
                else:
                    yield one.name, _outcome(portion.end, one.work.what)
            for ticket, one in list(under_way.items()):
                longest = limit if one.begun else max(limit, executor.patience)
                if time.monotonic() - one.since > longest:
                    executor.cancel(ticket)
                    del under_way[ticket]
                    yield one.name, UsageError(f"{one.work.what} took longer than {longest:g} s.")
    finally:
        for ticket in under_way:
            executor.cancel(ticket)


def _placed(executor: Executor, setting: Setting, under_way: Iterable[_Called]) -> Setting | None:
    """The setting on the CUDA device with least to do; None if each is taken."""
    if setting.device != CUDA:
        return setting
    at_work = [one.setting.card for one in under_way if one.setting.device == CUDA]
    card = executor.cards.free(at_work)
    return None if card is None else replace(setting, card=card)


def _outcome(end: Any, what: str) -> Any:
    """The value that a call has returned, or its exception."""
    if isinstance(end, Returned):
        return end.value
    if isinstance(end, Died):
        return UsageError(
            f"{what}: {end.reason}{', and so was the one after it' * end.killed}; nothing stored "
            f"is lost."
        )
    if not isinstance(end, Raised):
        return UsageError(f"{what} came back without an answer.")
    if end.kind == "disk":
        return OSError(*end.value)
    if end.kind == "usage":
        return UsageError(str(end.value).replace("{what}", what))
    bug = Bug(f"{what} has met a mistake in clipbench itself:")
    bug.add_note(end.value)
    return bug


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """The numbers of the signals that came: an interrupt is noted and not raised, so that no
    record is torn; a second is raised.
    """
    received: list[int] = []

    def note(number: int, _: object) -> None:
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt(number)

    heard = INTERRUPTS if threading.current_thread() is threading.main_thread() else ()
    before = {
        one: signal.signal(one, note)
        for one in heard
        if signal.getsignal(one) is not signal.SIG_IGN
    }
    try:
        yield received
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
