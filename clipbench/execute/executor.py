"""The contract between the supervisor and whoever runs its work: processes of this machine, a
cluster, or a test.

It must not know of processes, pipes, queues or the store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from clipbench.cell import Cell
from clipbench.engines import Record
from clipbench.engines.failures import Fault
from clipbench.execute.cards import CUDA, Cards
from clipbench.execute.shards import Shard
from clipbench.feed import TF32

NOTHING = Fault()
# a user's file of components, and the hash that it had when the study was read
Used = tuple[Path, str]


@dataclass(frozen=True)
class Setting:
    """How a process is prepared before it works: the files it loads, its torch threads, the device
    of its work, which of several CUDA devices that is, whether that may count in TF32, and the word
    of its run, unlike that of any other, by which it knows programs that were made in it.
    """

    use: tuple[Used, ...] = ()
    threads: int = 1
    device: str = "cpu"
    card: int = 0
    tf32: bool = False
    run: str = ""

    def of(self, cell: Cell) -> Setting:
        """The setting for a cell: its device, and whether CUDA may count in TF32."""
        return replace(self, device=cell.device, tf32=cell.dtype == TF32)


@dataclass(frozen=True)
class Call:
    """A function that is run in a process of its own: a pilot, a rate, a timing, a replay.

    It is found there by its module and name. ``what`` is how a user would call it, such as ``the
    pilot of "wdbc"``.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()
    what: str = "the work of a worker"


Work = Shard | Call


@dataclass(frozen=True)
class Done:
    """All of a shard ran."""


@dataclass(frozen=True)
class Left:
    """The process can take no other cell: the rest of the shard goes to another process."""


@dataclass(frozen=True)
class Broken:
    """A shard could not be run to its end; ``lanes`` says that only its lanes could not."""

    reason: str
    lanes: bool = False
    fault: Fault = NOTHING


@dataclass(frozen=True)
class Died:
    """The process is gone; ``killed`` by a signal, ``lost`` by no fault of its work, as far as
    can be told.
    """

    reason: str
    lost: bool = False
    killed: bool = False


@dataclass(frozen=True)
class Returned:
    """A call's value."""

    value: Any


@dataclass(frozen=True)
class Raised:
    """What a call raised: a sentence for the user, an error of the disk (its arguments), or a
    traceback, if the mistake is ours.
    """

    kind: Literal["usage", "disk", "bug"]
    value: Any


End = Done | Left | Broken | Died | Returned | Raised


@dataclass(frozen=True)
class Portion:
    """The results of a piece of work since the last portion: records, in the order of its cells,
    and its end if that has come.

    The first portion of a ticket may be empty: it says that the work has begun. ``environment``
    describes the machine that made the records, as `machine.environment` does. ``worker`` numbers
    the process among those of its machine.
    """

    ticket: int
    records: Sequence[Record] = ()
    notes: tuple[str, ...] = ()
    environment: Mapping[str, Any] | None = None
    worker: int = 0
    end: End | None = None


def abreast(executor: Executor, device: str) -> int:
    """How many pieces of work for a device are under way at a time."""
    return min(executor.slots, executor.cards.processes) if device == CUDA else executor.slots


class Executor(Protocol):
    """Runs shards and calls somewhere.

    A ticket's portions come in order, and its end comes last. What an executor loses, repeats or
    delays costs time and no result: the supervisor ignores tickets that have ended, gives work that
    takes too long to another process, and takes only records of cells that it has asked for.
    """

    slots: int
    """How many pieces of work are under way at a time."""
    seconds: float
    """How long a shard should last to hide what it costs to hand it over."""
    patience: float
    """Seconds that work may wait before it begins."""
    cards: Cards
    """The CUDA devices that its work is spread over."""

    def submit(self, work: Work, setting: Setting) -> int:
        """A ticket for a piece of work, unlike any before."""

    def results(self, timeout: float) -> list[Portion]:
        """What has come in, after at most ``timeout`` seconds.

        :raises UsageError: a process cannot be prepared as its setting says.
        """

    def cancel(self, ticket: int) -> None:
        """End a piece of work, now; no portion of it comes any more."""

    def stop(self) -> None:
        """Begin nothing more; what is under way ends after its current cell."""
