"""The process of a Slurm job: ``python -m clipbench.execute.slurm_job DIR`` runs the piece of work
that lies in a folder, and leaves its portions there, a file each.

It knows nothing of the store, and asks nobody: the folder is all that it shares with the driver.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipbench import __version__
from clipbench.engines import Record
from clipbench.errors import UsageError
from clipbench.execute.executor import (
    Broken,
    Call,
    Done,
    End,
    Left,
    Portion,
    Raised,
    Setting,
    Work,
)
from clipbench.execute.machine import environment
from clipbench.execute.worker import answers, carried_out, prepare
from clipbench.execute.world import World

WORK, STOP, PORTION = "work.pickle", "stop", ".portion"


def write_work(folder: Path, ticket: int, work: Work, setting: Setting) -> None:
    """Put a piece of work into a folder of its own, for the job that will run it."""
    with (folder / WORK).open("wb") as file:
        # apart: what the work is made of can be read only by a process that is prepared
        pickle.dump((__version__, ticket, setting), file)
        pickle.dump(work, file)


@dataclass
class Outbox:
    """Where portions go. A job that Slurm has begun again writes beside what it wrote before.

    A portion appears whole or not at all: it gets its name when it is on the disk.
    """

    folder: Path
    ticket: int
    worker: int
    begun_again: int = 0
    environment: Mapping[str, Any] | None = None
    count: int = field(default=0, init=False)

    def put(
        self, records: Sequence[Record] = (), notes: tuple[str, ...] = (), end: End | None = None
    ) -> None:
        portion = Portion(self.ticket, records, notes, self.environment, self.worker, end)
        path = self.folder / f"{self.begun_again:03d}-{self.count:06d}{PORTION}"
        unfinished = path.with_suffix(".unfinished")
        with unfinished.open("wb") as file:
            pickle.dump(portion, file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        self.count += 1


def run(folder: Path) -> None:
    """Run the work of a folder.

    What a job had finished before Slurm began it again is taken already: the rest is the driver's
    to hand out.
    """
    again = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    with (folder / WORK).open("rb") as file:
        version, ticket, setting = pickle.load(file)  # noqa: S301 - the user's own folder
        outbox = Outbox(folder, ticket, int(os.environ.get("SLURM_JOB_ID", "0")), again)
        outbox.put(end=Left() if again else None)
        if again:
            return
        try:
            if version != __version__:
                raise UsageError(
                    f"clipbench is {__version__} on a compute node and {version} here: install the "
                    f"same, or name its Python with --executor-option python=PATH."
                )
            work = _prepared(file, setting)
        except UsageError as error:
            outbox.put(end=Raised("usage", str(error)))
            return
    if isinstance(work, Call):
        outbox.put(end=carried_out(work, setting))
        return
    outbox.environment = environment(setting.device)
    _run_shard(work, outbox)


def _prepared(file: Any, setting: Setting) -> Work:
    """The work of an open file, in a process that is prepared for it.

    :raises UsageError: a `use` file is not there, or not what it was.
    """
    prepare(setting)
    try:
        work: Work = pickle.load(file)  # noqa: S301 - likewise
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"a compute node cannot read its work ({type(error).__name__}: {error}): every module "
            f"of it must be importable there."
        ) from error
    return work


def _run_shard(shard: Any, outbox: Outbox) -> None:
    """A portion for each answer; the last has an end, unless the process is ended before."""
    left, process = len(shard.jobs), os.getpid()
    for answer in answers(shard, World()):
        if os.getpid() != process:
            os._exit(0)  # a copy of this process, which a component has made by a fork
        if isinstance(answer.said, Broken):
            outbox.put(notes=answer.notes, end=answer.said)
            return
        left -= len(answer.said)
        ends = answer.retires or (outbox.folder.parent / STOP).exists()
        outbox.put(answer.said, answer.notes, Done() if not left else Left() if ends else None)
        if ends:
            return


if __name__ == "__main__":
    run(Path(sys.argv[1]))
