"""``clipbench.watch``: a training loop of somebody's own, recorded while it runs.

Not one bit of the training changes, and everything is as it was when the watch ends.
"""

from __future__ import annotations

import atexit
import os
import time
import weakref
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from clipbench.errors import UsageError
from clipbench.recording import taps
from clipbench.recording.described import described
from clipbench.recording.gradients import Number
from clipbench.recording.loop import Loop, bare
from clipbench.recording.steps import shown
from clipbench.recording.written import Folder, Written

OUT = "runs/watched"
BLOCK, SECONDS = 1000, 60.0  # what a training that is killed loses of its record at most
FIRST_BLOCK, FIRST_SECONDS = 100, 5.0  # of its beginning: some trainings are short
MEMORY = 256 * 2**20

_WATCHED: weakref.WeakSet[Optimizer] = weakref.WeakSet()

Log = Callable[[dict[str, Number]], object]


class Watch:
    """A watch over a training loop: a context manager, or ``start`` and ``stop``. `watch` says what
    its arguments are; ``command`` is the mark by which `clipbench watch` knows its own records.
    """

    def __init__(  # noqa: PLR0913 - as the user writes them
        self,
        model: nn.Module | None,
        optimizer: Optimizer | Iterable[Optimizer],
        out: Path | str = OUT,
        loss: Callable[[], Any] | None = None,
        log: Log | None = None,
        *,
        exact: bool = False,
        memory: int = MEMORY,
        steps: int | None = None,
        command: str | None = None,
    ) -> None:
        several = optimizer if isinstance(optimizer, list | tuple) else [optimizer]
        self._optimizers = [bare(one) for one in several]
        for one in self._optimizers:
            _refuse(one)
        self._model, self._out, self._loss, self._log = model, Path(out), loss, log
        self._exact, self._memory, self._steps = exact, memory, steps
        self._command = command
        self._loops: list[tuple[Loop, Written]] = []
        self._folder: Folder | None = None
        self._process, self._wrote, self._started = 0, 0.0, ""

    @property
    def folder(self) -> Path:
        """Where it is recorded: ``out``; of a distributed training a folder in it for each
        process.
        """
        rank = _rank()
        return self._out if rank is None else self._out / f"rank-{rank}"

    def start(self) -> Self:
        """Begin to record.

        :raises UsageError: an optimizer is watched already, or the folder holds something else.
        """
        devices = {param.device.type for one in self._optimizers for param in _params(one)}
        self._folder = Folder(self.folder, "cuda" if "cuda" in devices else "cpu")
        self._started, self._wrote = datetime.now(UTC).isoformat(), time.monotonic()
        self._due = min(BLOCK, FIRST_BLOCK), FIRST_SECONDS
        self._process = os.getpid()
        atexit.register(self.stop)
        self.join(self._optimizers)
        return self

    def join(self, optimizers: Iterable[Optimizer]) -> None:
        """Watch these as well, while a watch is going on.

        :raises UsageError: one cannot be watched.
        """
        if self._folder is None:
            return
        for number, one in enumerate(optimizers, len(self._loops)):
            loop = Loop(
                one,
                self._loss,
                self._exact,
                self._memory,
                self._stepped,
                shows=self._log is not None,
            )
            about = {
                "name": self._folder.name,
                "started": self._started,
                "number": number,
                "command": self._command,
                **described(self._model, loop),
            }
            self._loops.append((loop, Written(self._folder, about, loop)))
            _WATCHED.add(one)
            taps.listen(loop)

    def scaled(self, scale: Tensor) -> None:
        """Tell loops that just joined what the gradient that comes next is multiplied by."""
        for loop, _ in self._loops:
            if not loop.steps:
                loop.scaled(scale)

    def stop(self) -> None:
        """Write what is not written yet, and leave the loop as it was."""
        if os.getpid() != self._process:
            return
        self._end()
        for loop, _ in self._loops:
            loop.stepping.close()
        self._loops.clear()
        atexit.unregister(self.stop)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _end(self) -> None:
        """Record nothing more. The hooks stay: one of them may be calling."""
        if self._folder is None:
            return
        for loop, _ in self._loops:
            taps.leave(loop)
            loop.stepping.active = False
            _WATCHED.discard(loop.optimizer)
        self._write()
        self._folder.close()
        self._folder = None

    def _write(self) -> None:
        self._wrote, self._due = time.monotonic(), (BLOCK, SECONDS)
        for _, written in self._loops:
            written.block()

    def _stepped(self, loop: Loop) -> None:
        if self._log is not None and loop is self._loops[0][0]:
            self._log({f"clip/{name}": value for name, value in shown(loop.last).items()})
        if self._steps is not None and loop.steps >= self._steps:
            self._end()
        elif loop.waiting >= self._due[0] or time.monotonic() - self._wrote > self._due[1]:
            self._write()


def watch(
    model: nn.Module | None,
    optimizer: Optimizer | Iterable[Optimizer],
    out: Path | str = OUT,
    loss: Callable[[], Any] | None = None,
    log: Log | None = None,
    *,
    exact: bool = False,
    memory: int = MEMORY,
    steps: int | None = None,
) -> Watch:
    """A watch over a training loop, which is otherwise unchanged; ``clipbench doctor OUT`` says
    what its clip does.

    >>> with clipbench.watch(model, optimizer, out="runs/mine"):  # doctest: +SKIP
    ...     train(model, optimizer)

    :param model: the model, by which it is told if the optimizer leaves out trained parameters; may
        be None.
    :param optimizer: the optimizer, or a list of several: each has a record of its own.
    :param out: the folder of the record. In a distributed training each process has a folder in it.
    :param loss: gives the loss of the step just taken; if None, it is what ``backward`` began at,
        summed over the backward passes of a step.
    :param log: is handed four numbers a step, such as a tracker takes: ``clip/grad_norm`` (of the
        raw gradient), ``clip/kept`` (its share that the clip left), ``clip/fired`` (1 if the clip
        changed it), ``clip/threshold``. On a GPU they are tensors, which are not waited for.
    :param exact: compare the gradient of every step element by element, and measure every update;
        takes six times the memory of the gradient, and about a quarter of a small model's step.
    :param memory: bytes that a comparison may take; if the model needs more, a part of it is
        compared.
    :param steps: after how many steps to stop; the training goes on.
    :raises UsageError: something that cannot be watched, such as L-BFGS or sharded parameters.
    """
    return Watch(model, optimizer, out, loss, log, exact=exact, memory=memory, steps=steps)


# ---------------------------------------------------------------------------------- what is watched


def _params(optimizer: Optimizer) -> list[Tensor]:
    return [param for group in optimizer.param_groups for param in group["params"]]


def _refuse(optimizer: Any) -> None:
    """Refuse what cannot be recorded rightly.

    :raises UsageError: it is no optimizer of torch, or one whose gradient nobody sees.
    """
    kind = type(optimizer).__name__
    if not isinstance(optimizer, Optimizer):
        raise UsageError(
            f"watch: {kind} is no torch.optim.Optimizer. DeepSpeed steps and clips by itself, "
            "where nothing outside sees the gradient."
        )
    if optimizer in _WATCHED:
        raise UsageError("watch: this optimizer is being watched already.")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise UsageError(
            "watch: LBFGS takes many gradients a step, so that a step has no one clip."
        )
    for param in _params(optimizer):
        if type(param).__name__ in ("DTensor", "FlatParameter") or hasattr(param, "full_tensor"):
            raise UsageError(
                "watch: the parameters are sharded (FSDP), and no process sees a whole gradient; "
                "watch a run on one device, or with DDP."
            )


def _rank() -> int | None:
    """The number of this process in a distributed training; None if there is no other."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    return distributed.get_rank() if distributed.get_world_size() > 1 else None
