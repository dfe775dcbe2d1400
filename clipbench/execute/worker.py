"""What happens inside a worker: it is prepared once, runs the work that it is handed, and answers
record by record.

It must not know who hands it work, nor how its answers travel.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import torch

from clipbench import registry
from clipbench.engines import Record
from clipbench.engines.building import of_this_run
from clipbench.engines.failures import Fault, is_from_user_code, place, said, trace
from clipbench.engines.program import NoLanes
from clipbench.engines.rates import LOOP
from clipbench.errors import UsageError
from clipbench.execute.cards import CUDA
from clipbench.execute.executor import Broken, Call, Raised, Returned, Setting
from clipbench.execute.shards import Shard, has_user_component
from clipbench.execute.world import Change, World

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)


def prepare(setting: Setting) -> None:
    """What every process that trains does first, before any tensor is made.

    Denormals are flushed: decaying moments and dead networks fill memory with them, and arithmetic
    on them is many times slower. A CUDA device counts float32 as float32, and not in the ten bits
    of TF32, as torch has it do in convolutions, unless the setting says so; ``cuda`` is the
    setting's one of them.

    :raises UsageError: a file of `Setting.use` is not what it was when the study was read.
    """
    _keep_memory()
    gc.freeze()  # of what is loaded nothing goes: to look at all of it takes .2 s a time
    torch.set_flush_denormal(True)
    torch.set_num_threads(setting.threads)
    of_this_run(setting.run)
    if setting.device == CUDA:
        torch.cuda.set_device(setting.card)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = setting.tf32
    torch.backends.cudnn.benchmark = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the supervisor has already warned of a broken entry point
        registry.load_packaged()
    for path, digest in setting.use:
        registry.load_file(path, digest=digest)


def _keep_memory() -> None:
    """Tell glibc to keep freed memory: by default every large tensor gets new pages, which took
    half of a step's time.
    """
    with suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


@dataclass(frozen=True)
class Answer:
    """What a worker says of its shard: the records of its next cells, or why there are none; and
    what was put back after them.

    ``retires`` says that it takes no other cell and waits for its end: its process is no longer as
    it was.
    """

    said: list[Record] | Broken
    notes: tuple[str, ...] = ()
    retires: bool = False


def answers(shard: Shard, world: World) -> Iterator[Answer]:
    """A shard's answers; after each the process is compared with what it was before its first
    cell.
    """
    runs, strange = shard.run(), any(has_user_component(job.cell) for job in shard.jobs)
    while (said := _attempt(runs, shard)) is not None:
        change = world.compare(names=strange)
        if change.numbers:
            said = _spoiled_result(said, shard, change)
        faults = (
            [said.fault]
            if isinstance(said, Broken)
            else [record.fault for record in said if record.fault]
        )
        if any(fault.lost for fault in faults) and torch.cuda.is_initialized():
            torch.cuda.empty_cache()  # what this process keeps in reserve is not the others'
        retires = bool(change.numbers or change.lasting or any(fault.spent for fault in faults))
        yield Answer(said, change.notes, retires)
        if retires or isinstance(said, Broken):
            return


def _attempt(runs: Iterator[list[Record]], shard: Shard) -> list[Record] | Broken | None:
    try:
        return next(runs, None)
    except NoLanes as refusal:
        return Broken(str(refusal), lanes=True)
    except torch.OutOfMemoryError as error:
        return Broken(f"out of memory on {shard.jobs[0].cell.device}", fault=Fault.of(error))
    except BaseException as error:  # noqa: BLE001 - a user-defined component may raise anything; the matrix goes on
        return Broken(said(error), fault=Fault.of(error))


def _spoiled_result(
    result: list[Record] | Broken, shard: Shard, change: Change
) -> list[Record] | Broken:
    """The result of cells that changed their process: failures that say so, in place of what
    came of them.
    """
    reason = f"it changed {', '.join(change.numbers)} of the process it shares with other cells"
    if isinstance(result, Broken):
        return Broken(f"{reason}, and then: {result.reason}", fault=result.fault)
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
        for record in result
    ]


def carried_out(call: Call, setting: Setting) -> Returned | Raised:
    """The outcome of a call, in a process that does nothing else."""
    try:
        prepare(setting)
        return Returned(call.function(*call.arguments))
    except BaseException as error:  # noqa: BLE001 - a user-defined component may raise anything
        return _raised_for(error)


def _raised_for(error: BaseException) -> Raised:
    """An exception as a `Raised`, whose kind says what is to blame: the user or user-defined
    code, the disk, or clipbench.
    """
    if isinstance(error, UsageError):
        return Raised("usage", str(error))
    if isinstance(error, OSError) and error.filename is not None and not is_from_user_code(error):
        return Raised("disk", (error.errno, error.strerror, str(error.filename)))
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return Raised("usage", "{what}: out of memory.")
    if is_from_user_code(error):
        return Raised("usage", f"{{what}} failed at {place(error)}: {said(error)}.")
    return Raised("bug", trace(error))


def heed_the_supervisor() -> None:
    """Ignore interrupts, which the supervisor handles, and end this process when the supervisor
    is gone.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A cluster sends it to every process at once. A handler that does nothing, not SIG_IGN, which
    # child processes would inherit.
    signal.signal(signal.SIGTERM, lambda *_: None)
    _follow()


def _follow() -> None:
    """End this process when its supervisor is gone, whatever ended it."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
