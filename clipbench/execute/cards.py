"""The CUDA devices of this machine: which a run may use, why it may not, and which has least to
do.

``cuda`` is a process's own device: a worker is set up for one of them, and names no other.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from clipbench.errors import UsageError, counted

CUDA = "cuda"
DEVICES = ("cpu", CUDA, "auto")
NUMBERED = re.compile(r"cuda:(\d{1,4})", re.ASCII)
# bytes: a process takes about half of it on a device before its first tensor
ROOM = 2**30
HINT = "leave --device out, or say cpu"


@dataclass(frozen=True)
class Cards:
    """The CUDA devices that work is spread over, and how many processes share each of them: one,
    for lanes fill a device, and processes only take turns on it.

    ``apart`` says that each process has a device of its own, as on a cluster: all of them call it
    by the same index, and share nothing.
    """

    indices: tuple[int, ...] = (0,)
    sharers: int = 1
    apart: bool = False

    def of_seed(self, seed: int) -> int:
        """The device for all cells of a seed: what is compared within a seed ran on one device."""
        return self.indices[seed % len(self.indices)]

    def free(self, taken: Iterable[int]) -> int | None:
        """The device with the fewest processes; None if each has as many as may share it.

        :param taken: the device of each process at work.
        """
        at_work = Counter(taken)
        card = min(self.indices, key=lambda index: at_work[index])
        return card if at_work[card] < self.sharers else None

    @property
    def sharing(self) -> int:
        """How many processes share the memory of a device."""
        return 1 if self.apart else self.sharers

    @property
    def processes(self) -> int:
        """How many processes may be at work on all of them."""
        return len(self.indices) * self.sharers


ONE_CARD = Cards()


def named(device: str) -> tuple[str, int | None]:
    """``cpu``, ``cuda`` or another word of `DEVICES`, and the index in ``cuda:1``.

    :raises UsageError: it is none of them.
    """
    if device in DEVICES:
        return device, None
    if found := NUMBERED.fullmatch(device):
        return "cuda", int(found[1])
    raise UsageError(
        f"`device` is {device!r}, and must be cpu, cuda, cuda:0 (by its index) or auto."
    )


def spread(device: str, workers: int | None) -> Cards:
    """The devices of a run whose option ``--device`` was this, for so many worker processes.

    :param workers: what the user asked for; one a device if None.
    """
    _, index = named(device) if device != "study" else ("cuda", None)
    if index is not None:
        return Cards((index,), workers or 1)
    indices = tuple(range(max(1, torch.cuda.device_count())))[:workers]
    return Cards(indices, max(1, (workers or 0) // len(indices)))


def absent() -> str:
    """Why there is no CUDA device, in words."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        said = str(error)
        if found := re.search(r"too old \(found version (\d+)\)", said):
            version = int(found[1])
            return (
                f"the NVIDIA driver knows CUDA {version // 1000}.{version % 1000 // 10}, and torch "
                f"{torch.__version__} needs {torch.version.cuda}: install a newer driver, or a "
                f"torch for an older CUDA"
            )
        if "no NVIDIA driver" in said:
            return "this machine has no NVIDIA driver"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "this machine has no CUDA device" + (
        "" if visible is None else f" that CUDA_VISIBLE_DEVICES={visible!r} leaves visible"
    )


@dataclass(frozen=True)
class Card:
    """What a process sees of a device: its compute capability, and bytes of memory."""

    index: int
    name: str
    capability: tuple[int, int]
    free: int
    total: int


def look(indices: Sequence[int]) -> tuple[list[Card], list[str]]:
    """The devices as they are now, and the architectures that torch was built for.

    It takes memory on each of them, and is for a process that ends soon.
    """
    found = []
    for index in indices:
        about = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        found.append(Card(index, about.name, (about.major, about.minor), free, total))
    return found, torch.cuda.get_arch_list()


def unfit(card: Card, architectures: Sequence[str]) -> str | None:
    """Why nothing can run on a device, a sentence; None if it can.

    :param architectures: what torch was built for, such as ``sm_90`` and ``compute_120``.
    """
    where = f"cuda:{card.index} ({card.name})"
    if not any(_runs(architecture, card.capability) for architecture in architectures):
        return (
            f"{where} has compute capability {card.capability[0]}.{card.capability[1]}, and torch "
            f"{torch.__version__} is built for {', '.join(architectures) or 'none'}; install a "
            f"torch that has it, or {HINT}."
        )
    if card.free < ROOM:
        return (
            f"{where} has {card.free / 2**30:.1f} GiB of its {card.total / 2**30:.1f} GiB free: "
            f"another process uses it; end that, say --device cuda:N for another device, or "
            f"{HINT}."
        )
    return None


def _runs(architecture: str, capability: tuple[int, int]) -> bool:
    """Whether code for an architecture runs on a device: machine code (``sm``) on its own
    generation, what the driver translates (``compute``) on any later one.
    """
    kind, _, digits = architecture.partition("_")
    number = re.match(r"\d+", digits)
    if number is None:
        return False
    built = divmod(int(number[0]), 10)
    if kind == "compute":
        return built <= capability
    return built[0] == capability[0] and built[1] <= capability[1]


def shared(card: Card) -> str | None:
    """A remark if more of a device is in use than a process of ours takes: its times are not
    those of a device alone.
    """
    used = card.total - card.free
    if used <= ROOM:
        return None
    return (
        f"cuda:{card.index}: {used / 2**30:.1f} GiB are in use by others; what is timed there is "
        f"timed on a shared device"
    )


def within(index: int, count: int) -> None:
    """:raises UsageError: there is no device of this index."""
    if index >= count:
        raise UsageError(
            f"--device cuda:{index}: this machine has {counted(count, 'CUDA device')}, "
            f"numbered from 0; {HINT}."
        )
