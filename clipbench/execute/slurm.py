"""An executor whose work runs as Slurm jobs: a piece of work, a job; those that wait together are
one array.

A folder that this machine and the compute nodes both see is all that they share. The driver puts
work into it, calls ``sbatch``, and looks for portions; ``squeue`` says what became of a job that
left none. Work comes to its end whatever happens to a job: what it had finished is taken from the
folder, and the rest is handed to another job.

There is no submitit in here. Its jobs are pickled functions, one resource request for all of an
array; it learns of a cancelled job from ``sacct`` alone, which a cluster without accounting lacks;
and its checkpoints are for work that cannot be cut, as cells can. What remains is a script of ten
lines.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import pickle
import secrets
import shutil
import signal
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from clipbench.engines import Job, Record
from clipbench.errors import UsageError
from clipbench.execute.archive import SHARD_CELLS
from clipbench.execute.cards import CUDA, Cards
from clipbench.execute.executor import Call, Died, Done, End, Left, Portion, Raised, Setting, Work
from clipbench.execute.local import CRASHES
from clipbench.execute.offered import Request
from clipbench.execute.shards import Shard
from clipbench.execute.slurm_commands import (
    AT_WORK,
    EXIT,
    GONE,
    HOPELESS,
    LOG,
    OPTIONS,
    SEEN,
    SUSPENDED,
    WAITING,
    Cluster,
    Standing,
    Wishes,
    chunks,
    exit_code,
)
from clipbench.execute.slurm_job import PORTION, STOP, write_work

FOLDER = ".slurm"
LASTING = 300.0  # seconds of a shard: a job costs 3 to 8, so 3 in 100 at most
SHARE = 4  # a shard lasts at most this part of a job's time: rates are only predicted
LOOK = 1.0  # seconds between looks into the folder, which may be far away
ASK = 10.0  # seconds between questions to squeue, which all users of a cluster share
GRACE = 30.0  # seconds until a file of another machine is seen here at the latest
LAST_LINES = 3
TRIES = 5


@dataclass
class Piece:
    """A piece of work on its way: its folder, its job, and what has been read of it."""

    ticket: int
    work: Work
    setting: Setting
    folder: Path = Path()
    job: str = ""
    read: set[str] = field(default_factory=set)
    begun: bool = False
    records: int = 0
    over: float | None = None  # since when squeue says that its job has ended

    @property
    def kind(self) -> tuple[str, int]:
        """What its job must have: all jobs of an array have the same."""
        return self.setting.device, self.setting.threads


class Slurm:
    """See the module's docstring. At the end of the ``with`` block no job is left, and no file."""

    patience = math.inf  # a queue may be long; squeue tells of a job that is gone

    def __init__(self, wishes: Wishes, folder: Path, cluster: Cluster | None = None) -> None:
        self.wishes, self.cluster = wishes, cluster or Cluster()
        self.slots = wishes.jobs
        self.cards = Cards(sharers=wishes.jobs, apart=True)
        self.seconds = min(LASTING, wishes.time * 60 / SHARE)
        self.folder = folder.absolute()
        self.name = f"clipbench-{secrets.token_hex(4)}"
        self.tickets, self.batches = itertools.count(), itertools.count()
        self.queue: list[Piece] = []
        self.pieces: dict[int, Piece] = {}
        self.ready: list[Portion] = []
        self.earlier: dict[str, tuple[Record, Portion]] = {}
        self.ended = deque[Path]()
        self.looked = self.asked = -math.inf

    @property
    def session(self) -> Path:
        """The folder of this run, whose name no other run has."""
        return self.folder / self.name

    def __enter__(self) -> Self:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._take_over()
        self.session.mkdir(mode=0o700)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.pieces:
            self.cluster.cancel(f"--name={self.name}")
        for _ in range(TRIES):  # a job may be about to write its last file
            shutil.rmtree(self.session, ignore_errors=True)
            if not self.session.exists():
                break
            time.sleep(LOOK)
        with suppress(OSError):  # somebody else keeps something there
            self.folder.rmdir()

    def _take_over(self) -> None:
        """End the jobs of a run that was killed, and keep what they had finished."""
        for session in sorted(self.folder.glob("clipbench-*")):
            self.cluster.cancel(f"--name={session.name}")
            for path in sorted(session.glob(f"*/*{PORTION}")):
                for portion in _read(path):
                    for record in portion.records:
                        if record.failure is None:
                            self.earlier[record.job.cell.id] = record, portion
            shutil.rmtree(session, ignore_errors=True)

    # ------------------------------------------------------------------------------ the contract

    def submit(self, work: Work, setting: Setting) -> int:
        ticket = next(self.tickets)
        if isinstance(work, Shard) and self.earlier:
            work = self._without_earlier(ticket, work)
            if not work.jobs:
                self.ready.append(Portion(ticket, end=Done()))
                return ticket
        use = tuple((path.absolute(), digest) for path, digest in setting.use)
        self.queue.append(Piece(ticket, work, replace(setting, card=0, use=use)))
        return ticket

    def results(self, timeout: float) -> list[Portion]:
        self._hand_over()
        ready, self.ready = self.ready, []
        now = time.monotonic()
        if not ready and now - self.looked >= LOOK:
            self.looked = now
            ready = [portion for one in [*self.pieces.values()] for portion in self._hear(one)]
        if not ready and now - self.asked >= ASK and self.pieces:
            self.asked = now
            ready = self._ask(now)
        if not ready:
            time.sleep(timeout)
        return ready

    def cancel(self, ticket: int) -> None:
        self.queue = [one for one in self.queue if one.ticket != ticket]
        self.ready = [one for one in self.ready if one.ticket != ticket]
        if ticket in self.pieces:
            piece = self.pieces[ticket]
            self._end(piece)
            self.cluster.cancel(piece.job)

    def stop(self) -> None:
        self.queue.clear()
        (self.session / STOP).touch()
        self.cluster.cancel("--state=PENDING", f"--name={self.name}")

    def scripts(self, devices: Sequence[str]) -> list[str]:
        """The batch script for the work of each device, with as many jobs as may run at a time."""
        batch = self.session / "0000"
        return [
            self.wishes.script(self.name, batch, self.slots, 1, device == CUDA)
            for device in devices
        ]

    # ------------------------------------------------------------------------------------ to Slurm

    def _without_earlier(self, ticket: int, shard: Shard) -> Shard:
        """The shard of the cells that a run before this one has not finished."""
        left: list[Job] = []
        for job in shard.jobs:
            record, portion = self.earlier.pop(job.cell.id, (None, None))
            if record is not None and portion is not None and record.job == job:
                self.ready.append(replace(portion, ticket=ticket, records=[record], end=None))
            else:
                left.append(job)
        return replace(shard, jobs=tuple(left))

    def _hand_over(self) -> None:
        """Submit what waits: all that asks for the same of a machine as one array."""
        kinds: dict[tuple[str, int], list[Piece]] = {}
        for piece in self.queue:
            kinds.setdefault(piece.kind, []).append(piece)
        self.queue = []
        for (device, threads), pieces in kinds.items():
            for chunk in chunks(len(pieces)):
                batch = self.session / f"{next(self.batches):04d}"
                for index, at in enumerate(chunk):
                    piece = pieces[at]
                    piece.folder = batch.with_name(f"{batch.name}-{index}")
                    piece.folder.mkdir()
                    write_work(piece.folder, piece.ticket, piece.work, piece.setting)
                script = batch.with_suffix(".sh")
                script.write_text(
                    self.wishes.script(self.name, batch, len(chunk), threads, device == CUDA),
                    encoding="utf-8",
                )
                number = self.cluster.submit(script)
                for index, at in enumerate(chunk):
                    pieces[at].job = f"{number}_{index}"
                    self.pieces[pieces[at].ticket] = pieces[at]

    # ---------------------------------------------------------------------------------- from Slurm

    def _hear(self, piece: Piece) -> list[Portion]:
        """The portions of a piece that have come since the last look, in order.

        :raises UsageError: its process could not be prepared.
        """
        heard: list[Portion] = []
        with suppress(OSError):  # a folder on a network may be away for a while
            for path in sorted(piece.folder.glob(f"*{PORTION}")):
                if path.name in piece.read:
                    continue
                piece.read.add(path.name)
                for portion in _read(path):
                    heard.append(portion)
                    piece.begun = True
                    piece.records += len(portion.records)
                    if portion.end is not None:
                        self._end(piece)
                        if isinstance(portion.end, Raised) and not isinstance(piece.work, Call):
                            raise UsageError(portion.end.value)
                        return heard
        return heard

    def _end(self, piece: Piece) -> None:
        """Forget a piece. Its files stay until what is in them has been stored: should this
        process be killed, the next one finds them.
        """
        del self.pieces[piece.ticket]
        self.ended.append(piece.folder)
        if len(self.ended) > SHARD_CELLS:
            shutil.rmtree(self.ended.popleft(), ignore_errors=True)

    def _ask(self, now: float) -> list[Portion]:
        """What follows from the state of the jobs."""
        known = self.cluster.standing(self.name)
        if known is None:
            return []
        portions: list[Portion] = []
        for piece in list(self.pieces.values()):
            portions += self._judge(piece, known.get(piece.job, Standing(GONE)), now)
        return portions

    def _judge(self, piece: Piece, standing: Standing, now: float) -> list[Portion]:
        """:raises UsageError: the job cannot run at all, and neither can those after it."""
        if standing.state not in (*AT_WORK, *WAITING, SUSPENDED):
            return self._judge_ended(piece, standing, now)
        if standing.state == SUSPENDED and piece.begun:
            return [Portion(piece.ticket)]  # its time stands still
        if standing.state in WAITING and piece.begun:
            return self._close(piece, Left(), cancelled=True)
        if standing.reason in HOPELESS:
            raise UsageError(
                f"--executor slurm: job {piece.job} can never run ({standing.reason}); change "
                f"--executor-option partition, account, time or gpus."
            )
        return []

    def _judge_ended(self, piece: Piece, standing: Standing, now: float) -> list[Portion]:
        piece.over = now if piece.over is None else piece.over
        code = _code(piece.folder)
        if code is None and now - piece.over < GRACE:
            return []
        heard = self._hear(piece)  # what came before the end
        if piece.ticket not in self.pieces:
            return heard
        return heard + self._close(piece, _end_of(piece, standing, code))

    def _close(self, piece: Piece, end: End, cancelled: bool = False) -> list[Portion]:
        self._end(piece)
        if cancelled:
            self.cluster.cancel(piece.job)
        if isinstance(end, Left) and isinstance(piece.work, Call):
            end = Died("its job was taken from it", lost=True, killed=True)
        return [Portion(piece.ticket, end=end)]


def _end_of(piece: Piece, standing: Standing, code: int | None) -> End:
    """The end of a piece whose job is over and has left none.

    :raises UsageError: the job could not begin: another would not, either.
    """
    state = standing.state
    if state in ("FAILED", "COMPLETED") and not piece.begun:
        _raise_unbegun(piece, standing)
    if state == "PREEMPTED" or (state == "TIMEOUT" and piece.records):
        return Left()
    if state == "TIMEOUT":
        return Died("it took longer than a job may (--executor-option time)", lost=True)
    if state == "OUT_OF_MEMORY":
        why = "its job ran out of memory (--executor-option sbatch=--mem=…)"
        return Died(why, lost=True, killed=True)
    if code is None or state not in ("FAILED", "COMPLETED", GONE):
        word = "is gone" if state == GONE else f"ended as {state}"
        return Died(f"its job {word}", lost=True, killed=True)
    return _death(code)


def _death(code: int) -> Died:
    """How a process ended by itself: its exit code, which below zero is a signal."""
    if code >= 0:
        return Died(f"the worker exited with code {code}")
    name = signal.Signals(-code)
    return Died(f"the worker was killed by {name.name}", name not in CRASHES, killed=True)


def _raise_unbegun(piece: Piece, standing: Standing) -> None:
    where = f"job {piece.job}{f' on {standing.node}' if standing.node else ''}"
    if not (piece.folder / SEEN).is_file():
        raise UsageError(
            f"--executor slurm: {where} did not see {piece.folder.parent}; choose a folder that "
            f"this machine and the compute nodes share, with --executor-option folder=DIR."
        )
    lines: list[str] = []
    with suppress(OSError):
        lines = (piece.folder / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
    said = " / ".join(line.strip() for line in lines[-LAST_LINES:] if line.strip())
    raise UsageError(
        f"--executor slurm: {where} could not start clipbench ({said or 'without a word'}); "
        f"--executor-option python=PATH and setup=COMMAND say how."
    )


def _code(folder: Path) -> int | None:
    with suppress(OSError):
        return exit_code((folder / EXIT).read_text(encoding="ascii"))
    return None


def _read(path: Path) -> Iterator[Portion]:
    """The portion in a file; none if it cannot be read, and then its cells come again."""
    try:
        with path.open("rb") as file:
            portion: Any = pickle.load(file)  # noqa: S301 - the user's own folder
    except (OSError, EOFError, pickle.UnpicklingError, AttributeError, ImportError):
        return
    if isinstance(portion, Portion):
        yield portion


def slurm(request: Request) -> Slurm:
    """Slurm jobs, with the options of `slurm_commands.Wishes`."""
    request.known("slurm", OPTIONS)
    wishes = Wishes.of(request.options, request.workers)
    results = (request.folder or Path()).absolute()
    if wishes.folder is None:
        return Slurm(wishes, results / FOLDER)
    # studies that run at the same time may be given the same
    own = hashlib.sha256(str(results).encode()).hexdigest()[:8]
    return Slurm(wishes, wishes.folder / own)
