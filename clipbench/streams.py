"""The training batches of one seed: from a split in shuffled epochs, or drawn anew at every step;
one after the other, or many at once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from clipbench import listing
from clipbench.errors import UsageError

Batch = listing.Batch
AHEAD, AHEAD_BYTES = 16, 2**22  # batches looked up, or copied, at once, at most


def each(source: Shuffled | Sampled, steps: int) -> Iterator[Batch]:
    """The next batches of a source, one after the other. Some are looked up at a time: one costs a
    small model as much as a layer.
    """
    while steps:
        some = min(source.ahead, steps)
        yield from source.some(some)
        steps -= some


class Shuffled:
    """The batches of a split, by the numbers of their examples, steps × batch."""

    def __init__(self, split: Batch, numbers: Tensor) -> None:
        self.split, self.numbers, self.taken = split, numbers.flatten(), 0
        self.batch = numbers.shape[1]
        size = split[0][0].nbytes * self.batch
        self.ahead = max(1, min(AHEAD, AHEAD_BYTES // max(1, size)))

    def take(self, steps: int) -> Batch:
        """The next batches together, steps × batch × …; no more than are left."""
        begin, self.taken = self.taken, self.taken + steps * self.batch
        some = self.numbers[begin : self.taken]
        # the same as ``tensor[some]``, in half of its time
        inputs, targets = (
            tensor.index_select(0, some).view(steps, self.batch, *tensor.shape[1:])
            for tensor in self.split
        )
        return inputs, targets

    def some(self, steps: int) -> Iterable[Batch]:
        """The next batches, each by itself."""
        return _apart(self.take(steps))


class Sampled:
    """Batches that a workload draws anew."""

    def __init__(
        self, workload: Any, stream: torch.Generator, batch: int, dtype: torch.dtype, device: str
    ) -> None:
        self.name, self.dtype, self.device = workload.name, dtype, device
        self.one = drawing(workload, "sample", stream, batch)
        self.many = drawing(workload, "samples", stream, batch) if _draws_many(workload) else None
        self.ahead = 1  # until the size of a batch is known

    def take(self, steps: int) -> Batch:
        """The next batches together, steps × batch × …."""
        if self.many is None:
            drawn = zip(*(self.one() for _ in range(steps)), strict=True)
            inputs, targets = (torch.stack(tensors) for tensors in drawn)
        else:
            inputs, targets = self.many(count=steps)
            if {len(inputs), len(targets)} != {steps}:
                raise UsageError(
                    f'workload "{self.name}": `samples` was asked for {steps} batches, and '
                    f"returned {len(inputs)} of inputs and {len(targets)} of targets."
                )
        return self._moved(inputs), self._moved(targets)

    def some(self, steps: int) -> Iterable[Batch]:
        """The next batches, each by itself."""
        if self.many is None:
            drawn = [self.one() for _ in range(steps)]
            inputs, targets = (self._each_moved(tensors) for tensors in zip(*drawn, strict=True))
            found = list(zip(inputs, targets, strict=True))
        else:
            found = list(_apart(self.take(steps)))
        if self.many is not None or self.device == "cuda":
            size = sum(tensor.nbytes for tensor in found[0])
            self.ahead = max(1, min(AHEAD, AHEAD_BYTES // max(1, size)))
        return found

    def _each_moved(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """On a CUDA device together if they are of one shape."""
        alike = len({(tensor.shape, tensor.dtype) for tensor in tensors}) == 1
        if self.device == "cuda" and alike:
            return self._moved(torch.stack(list(tensors))).unbind()
        return [self._moved(tensor) for tensor in tensors]

    def _moved(self, tensor: Tensor) -> Tensor:
        """On the device, in the dtype; to CUDA from pinned memory: the host does not wait for it,
        as it would for a batch from memory that may move.
        """
        tensor = cast(tensor, self.dtype, "cpu")
        if self.device == "cuda":
            return tensor.pin_memory().to("cuda", non_blocking=True)
        return tensor


def _apart(batches: Batch) -> Iterable[Batch]:
    return zip(*(tensor.unbind() for tensor in batches), strict=True)


def _draws_many(workload: Any) -> bool:
    """Whether a workload draws many batches at once, by the class that says how one is drawn, or
    by one that follows it: else they would be those of another ``sample``.
    """
    for cls in type(workload).__mro__:
        if "samples" in vars(cls):
            return True
        if "sample" in vars(cls):
            return False
    return False


def drawing(workload: Any, hook: str, stream: torch.Generator, batch: int) -> Callable[..., Batch]:
    """A workload's ``sample``, or ``samples``, with its arguments: to look its signature up at
    every draw takes longer than some draws.
    """
    draw = getattr(workload, hook)
    bound = partial(draw, stream, batch) if takes(draw, "batch") else partial(draw, stream)
    where = f'workload "{workload.name}": `{hook}`'
    return lambda **count: listing.pair(bound(**count), where)


def cast(tensor: Tensor, dtype: torch.dtype, device: str) -> Tensor:
    """``tensor`` on ``device``, in ``dtype`` if it is floating (labels and token numbers stay
    whole numbers).
    """
    return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)


def takes(function: Any, name: str) -> bool:
    """Whether a function has an argument of this name."""
    return name in inspect.signature(function).parameters
