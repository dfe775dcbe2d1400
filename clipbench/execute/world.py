"""The state that cells of one process share, compared after every cell with what it was before the
first.

A change of what affects numbers would spoil later cells: the cell that made it has failed, and its
process is replaced. Any other change is put back, or what it left running is ended; if that is
impossible the process is replaced as well, but the cell's numbers count. A name that a library adds
while it is loaded is no change; a known name with another value is one.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

import torch

from clipbench.engines.failures import said
from clipbench.execute.held import COMPILERS, HELD, strict_filters
from clipbench.execute.left import (
    MANY,
    OF_DRIVERS,
    adopt,
    children_of,
    end_child,
    has_children,
    only_read,
    open_files,
    threads,
)
from clipbench.execute.names import Names
from clipbench.execute.numbers import GENERATORS, NUMBERS, asked, luck

SHOWN = 3  # names in a sentence


@dataclass(frozen=True)
class Change:
    """What is no longer as it was: ``numbers`` names what affects numbers, ``notes`` tell of the
    rest; ``lasting``: not undone.
    """

    numbers: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    lasting: bool = False


class World:
    """The process as it is before its first cell."""

    def __init__(self) -> None:
        adopt()
        self.names = Names()
        self.numbers = {words: read() for words, read in NUMBERS.items()}
        self.luck = luck()
        self.held = [one.read() for one in HELD]
        self.filters = strict_filters()
        self._accept()

    def _accept(self) -> None:
        """Take what is open and running as it is now."""
        self.files, self.children, self.threads = open_files(), children_of(), threads()
        self.cuda = torch.cuda.is_initialized()

    def compare(self, names: bool = True) -> Change:
        """What has changed since the start; it is put back if that is possible.

        :param names: whether names are compared, too: packaged components replace none, and there
            are thousands.
        """
        try:
            return self._change(names)
        except Exception as error:  # noqa: BLE001 - what is compared, or compares, may have been replaced
            return Change(
                numbers=(f"something by which it can no longer be compared ({said(error)})",)
            )

    def _change(self, names: bool) -> Change:
        numbers = [*self._numbers(), *(self._names() if names else ())]
        notes, lasting = self._put_back()
        # which opens files and starts threads, once
        if torch.cuda.is_initialized() != self.cuda:
            self._accept()
        else:
            left = [
                note
                for note in (self._left_open(), self._left_running(), self._left_cuda())
                if note
            ]
            notes, lasting = notes + left + self._left_children(), lasting or bool(left)
        return Change(tuple(numbers), tuple(notes), lasting)

    def _numbers(self) -> Iterator[str]:
        for words, then in self.numbers.items():
            now = asked(NUMBERS[words])
            if now != then:
                yield (
                    f"{words} ({then} before, {now} now)"
                    if isinstance(now, torch.dtype | torch.device)
                    else words
                )
        drawn = asked(luck)
        if not isinstance(drawn, tuple):  # a mode of torch raises, which has been told
            return
        for words, then, now in zip(GENERATORS, self.luck, drawn, strict=True):
            if now != then and not (words == GENERATORS[-1] and not then):  # CUDA's come with CUDA
                yield words
        self.luck = drawn

    def _names(self) -> list[str]:
        changed = self.names.changed()
        more = f" and {len(changed) - SHOWN} other names" if len(changed) > SHOWN else ""
        return [", ".join(f"`{name}`" for name in changed[:SHOWN]) + more] if changed else []

    def _put_back(self) -> tuple[list[str], bool]:
        notes, lasting = [], False
        for number, (one, then) in enumerate(zip(HELD, self.held, strict=True)):
            now = one.read()
            if now == then or (
                isinstance(then, dict) and self._is_waking_library(number, then, now)
            ):
                continue
            try:
                one.put_back(then)
                notes.append(f"it changed {one.words}, and that was put back")
            except Exception:  # noqa: BLE001 - whatever stands in the way
                notes.append(f"it changed {one.words} for good, so that its worker was replaced")
                lasting = True
        if (strict := strict_filters()) != self.filters:
            others = [one for one in warnings.filters if one not in strict]
            warnings.filters[:] = [*self.filters, *others]  # type: ignore[index]
            notes.append("it made warnings errors, and that was put back")
        return notes, lasting

    def _is_waking_library(
        self, number: int, then: Mapping[bytes, bytes], now: dict[bytes, bytes]
    ) -> bool:
        """Whether the only change is new environment variables that a library sets while it is
        loaded.
        """
        only = all(
            name not in then and name.startswith(COMPILERS)
            for name, _ in now.items() ^ then.items()
        )
        if only:
            self.held[number] = now
        return only

    def _left_open(self) -> str:
        """The note on files that were left open, or closed; empty if none matters."""
        try:
            now = open_files()
        except OSError:  # not one more can be opened
            return "it used up the files that a process may open, so that its worker was replaced"
        new = now.items() - self.files.items()
        if not new and len(now) == len(self.files):
            return ""
        if self.files.keys() - now.keys():
            return "it closed files that were not its own, so that its worker was replaced"
        if torch.cuda.is_initialized():
            new = {(name, target) for name, target in new if not target.startswith(OF_DRIVERS)}
        if len(new) < MANY and all(only_read(*one) for one in new):
            return ""
        targets = sorted({target for _, target in new})
        more = f" and {len(targets) - 1} more" if len(targets) > 1 else ""
        return f"it left {targets[0]}{more} open, so that its worker was replaced"

    def _left_running(self) -> str:
        """The note on threads that go on; empty if there are none."""
        new = [thread for thread in threads() - self.threads if thread.is_alive()]
        return (
            f"it left the thread {new[0].name} running, so that its worker was replaced"
            if new
            else ""
        )

    def _left_cuda(self) -> str:
        """The note on a device that no longer answers; empty if it does, or is not used."""
        if torch.cuda.is_initialized():
            try:
                torch.cuda.synchronize()
            except RuntimeError:
                return (
                    "the device met an error that does not go away, so that its worker was replaced"
                )
        return ""

    def _left_children(self) -> list[str]:
        """The notes on processes that were left behind, all of which are ended here."""
        if not has_children():
            return []
        running = False
        for process in children_of() - self.children:
            with suppress(OSError):
                running |= end_child(process)
        return ["it left processes running, which were ended"] if running else []
