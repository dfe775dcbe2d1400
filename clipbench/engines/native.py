"""Lanes as a program of this machine: the step of one lane, translated into C++, taken many times
for each lane before the next one begins.

A lane's arithmetic is its own: its bits do not depend on its companions, and lanes of all
structures train together without one too many. A model of a few numbers leaves a register nearly
empty: such lanes stand abreast, each in a part of every register.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from clipbench import measures
from clipbench.compiling import NotCompiled
from clipbench.engines.building import Building, abreast
from clipbench.engines.stacked import Programs
from clipbench.engines.structure import Segment, Structure
from clipbench.native import SPARE, Function, Untranslated, driver
from clipbench.streams import Sampled, Shuffled

MOST = 256  # arguments of one program, as the driver has room for
ABREAST = 16  # lanes, as the driver has room for: a register of AVX-512 in float32
FEW = 128  # trained numbers of a model whose lanes may stand abreast
BLOCK_BYTES = 2**22  # of batches that are drawn at once, about

__all__ = ["NotCompiled", "Stepper", "Untranslated"]


LANE = np.dtype(
    [
        (name, np.int64)
        for name in (
            *("update", "numbers", "kept", "fixed"),
            *("seeds", "rates", "settings", "state", "bytes", "constants"),
        )
    ]
)
"""A lane as ``driver.cpp`` has it, or lanes that stand abreast; addresses among its numbers."""


class _Batches(ctypes.Structure):
    """As in ``driver.cpp``."""

    _fields_ = (
        ("begin", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("bytes", "item", "seeds")),
    )

    @classmethod
    def of(cls, tensor: Tensor) -> _Batches:
        """Of steps × seeds × …."""
        one = tensor[0, 0]
        return cls(tensor.data_ptr(), one.nbytes, one.element_size(), tensor.shape[1])


@dataclass(frozen=True)
class Batch:
    """The batches of some steps, steps × seeds, with room behind them for a register."""

    inputs: Tensor
    targets: Tensor
    steps: int


def drawn(sources: Sequence[Shuffled | Sampled], steps: int, size: int) -> Batch:
    """The next batches of every seed: of so many steps, or of as many as are held at once.

    :param size: bytes of one batch.
    """
    steps = min(steps, max(1, BLOCK_BYTES // max(1, size * len(sources))))
    parts = zip(*(source.take(steps) for source in sources), strict=True)
    inputs, targets = (
        torch.stack(tensors, 1, out=_with_room(tensors[0], (steps, len(sources))))
        for tensors in parts
    )
    return Batch(inputs, targets, steps)


def _with_room(like: Tensor, leading: Sequence[int]) -> Tensor:
    """An empty tensor of these sizes and those of the parts of another, with room behind it that a
    register may read.
    """
    shape = (*leading, *like.shape[1:])
    elements = math.prod(shape)
    return like.new_empty(elements + SPARE)[:elements].view(shape)


class Stepper:
    """Takes the steps of some lanes.

    :param programs: of the lanes' workload.
    :raises Untranslated: an operation has no translation.
    :raises NotCompiled: there is no compiler, or it fails.
    """

    def __init__(
        self,
        programs: Programs,
        weights: Tensor,
        batch: tuple[Tensor, Tensor],
        fixed: Sequence[Tensor],
        segments: Sequence[Segment],
    ) -> None:
        most = max(
            3 + len(fixed),
            *(2 + len(pytree.tree_leaves(segment.lane)) for segment in segments),
            *(1 + len(segment.lane.remembered) + len(measures.PRODUCTS) for segment in segments),
        )
        if most > MOST:
            raise Untranslated(f"a program of {most} arguments, more than {MOST}")
        self.products = len(measures.PRODUCTS)
        self.gradients: dict[int, Function] = {}  # by how many lanes stand abreast
        self.updates: dict[Structure, Function] = {}
        self.abreast: dict[Structure, int] = {}
        self.fixed: dict[Structure, list[Tensor]] = {}
        one = tuple(tensor[:1] for tensor in (weights, *batch, *fixed))
        grads = programs.model.like_gradient(*one[:2])
        widths = [ABREAST, 1] if programs.model.elements <= FEW else [1]
        with Building(programs) as building:
            keys = [_begun(building, segment, one, grads, widths) for segment in segments]
            for segment, (width, gradient, update) in zip(segments, keys, strict=True):
                self.gradients[width] = building.function(gradient)
                self.updates[segment.structure] = building.function(update)
                self.abreast[segment.structure] = width
        for segment in segments:
            width = self.abreast[segment.structure]
            # a program may read a little behind each
            packed = [abreast(tensor[segment.begin : segment.end], width) for tensor in fixed]
            self.fixed[segment.structure] = [
                _with_room(tensor, tensor.shape[:1]).copy_(tensor) for tensor in packed
            ]
        self.held = np.zeros(0)
        self.run = driver()

    def advance(
        self,
        batch: Batch,
        weights: Tensor,
        segments: Sequence[Segment],
        seeds: Sequence[int],
        ended: set[int],
        taken: int,
    ) -> np.ndarray:
        """Take the steps of a batch; their losses and products, values × steps × lanes.

        :param seeds: of every lane, the index of its seed in the batch.
        :param ended: lanes that take no step.
        :param taken: how many steps were taken before.
        :raises IndexError: an index was out of range in a lane.
        :raises ZeroDivisionError: a lane divided a whole number by zero.
        """
        steps = batch.steps
        rows = np.empty((1 + self.products, steps, len(weights)))
        for width, gradient in self.gradients.items():
            mine = [one for one in segments if self.abreast[one.structure] == width]
            blocks = [
                _Block(segment, width, weights, self.fixed[segment.structure]) for segment in mine
            ]
            tables = [
                block.table(
                    self.updates[block.segment.structure], seeds, ended, slice(taken, taken + steps)
                )
                for block in blocks
            ]
            table = np.concatenate(tables)
            found = self._found((1 + self.products, steps, len(table) * width))
            room, places = self._room(blocks, width, gradient, batch)
            self.run(
                gradient.address,
                table.ctypes.data,
                len(table),
                width,
                steps,
                ctypes.byref((_Batches * 2)(*map(_Batches.of, (batch.inputs, batch.targets)))),
                self.products,
                found.ctypes.data,
                places.ctypes.data,
            )
            del room
            begin = 0
            for block, own in zip(blocks, tables, strict=True):
                block.hand_back()
                segment = block.segment
                lanes = slice(segment.begin, segment.end)
                rows[..., lanes] = found[..., begin : begin + segment.end - segment.begin]
                begin += len(own) * width
        for one in (*self.gradients.values(), *self.updates.values()):
            one.check()
        return rows

    def _found(self, shape: tuple[int, ...]) -> np.ndarray:
        """Memory for what steps give, the same from call to call: to be handed new pages takes a
        tiny model as long as its steps. Of lanes that take none it keeps what was there.
        """
        size = math.prod(shape)
        if size > len(self.held):
            self.held = np.zeros(size)
        return self.held[:size].reshape(shape)

    def _room(
        self, blocks: Sequence[_Block], width: int, gradient: Function, batch: Batch
    ) -> tuple[Tensor, np.ndarray]:
        """Two places for every part of a state, one for a gradient and for a batch, which all
        lanes use in turn.
        """
        sizes = np.zeros(2 * MOST + 3, np.int64)
        for block in blocks:
            for number, tensor in enumerate(block.state):
                both = slice(2 * number, 2 * number + 2)
                sizes[both] = max(sizes[2 * number], tensor[0].nbytes)
        sizes[2 * MOST] = gradient.outputs[0]
        if width > 1:
            sizes[2 * MOST + 1 :] = [
                width * one[0, 0].nbytes for one in (batch.inputs, batch.targets)
            ]
        taken = np.where(sizes > 0, -(-(sizes + SPARE) // SPARE) * SPARE, 0)
        room = torch.empty(int(taken.sum()) + SPARE, dtype=torch.uint8)
        begin = -(-room.data_ptr() // SPARE) * SPARE
        return room, begin + np.cumsum(taken) - taken


class _Block:
    """The lanes of a segment for some steps, so many of them abreast."""

    def __init__(
        self, segment: Segment, width: int, weights: Tensor, fixed: Sequence[Tensor]
    ) -> None:
        self.segment, self.width, self.fixed = segment, width, fixed
        lane = segment.lane
        self.kept = [weights[segment.begin : segment.end], *lane.remembered]
        self.state = [abreast(tensor, width) for tensor in self.kept]
        self.numbers = [abreast(tensor, width) for tensor in (lane.lr, *lane.optimizer, *lane.clip)]
        self.held: list[np.ndarray] = []  # what the table points to

    def table(
        self, update: Function, seeds: Sequence[int], ended: set[int], steps: slice
    ) -> np.ndarray:
        """The lanes as the driver has them, for these of all steps."""
        segment, count = self.segment, len(self.state[0])
        table = np.zeros(count, LANE)
        every = np.arange(segment.begin, segment.begin + count * self.width)
        lanes = every.clip(max=segment.end - 1).reshape(count, self.width)
        sizes = np.array([tensor[0].nbytes for tensor in self.state])
        own = np.asarray(seeds, np.int64)[lanes]
        live = ~np.isin(lanes, list(ended)).all(1)
        table["update"] = np.where(live, update.address, 0)
        table["numbers"], table["kept"], table["fixed"] = (
            len(some) for some in (self.numbers, self.state, self.fixed)
        )
        table["seeds"], table["bytes"] = _each(own), sizes.ctypes.data
        self.held = [
            *(own, sizes),
            _addresses(table["settings"], self.numbers),
            _addresses(table["state"], self.state),
            _addresses(table["constants"], self.fixed),
        ]
        if segment.course is not None:
            course = abreast(segment.course[:, steps], self.width).numpy()
            table["rates"] = _each(course)
            self.held.append(course)
        return table

    def hand_back(self) -> None:
        """Write what the steps left where the lanes have it."""
        for tensor, packed in zip(self.kept, self.state, strict=True):
            if packed.data_ptr() != tensor.data_ptr():
                tensor.copy_(packed.movedim(-1, 1).flatten(0, 1)[: len(tensor)])


def _each(tensor: Tensor | np.ndarray) -> np.ndarray:
    """The address of each part of a tensor along its first dimension."""
    if isinstance(tensor, Tensor):
        begin, step = tensor.data_ptr(), tensor.stride(0) * tensor.element_size()
    else:
        begin, step = tensor.ctypes.data, tensor.strides[0]
    return begin + step * np.arange(len(tensor))


def _addresses(rows: np.ndarray, tensors: Sequence[Tensor]) -> np.ndarray:
    """The addresses of each lane's parts of some tensors, lanes × tensors; ``rows`` is filled
    with where each lane's begin.
    """
    parts = [_each(tensor) for tensor in tensors]
    found = np.stack(parts, 1) if parts else np.zeros((len(rows), 1), np.int64)
    rows[:] = _each(found)
    return found


def _begun(
    building: Building,
    segment: Segment,
    one: Sequence[Tensor],
    grads: Tensor,
    widths: Sequence[int],
) -> tuple[int, Any, Any]:
    """How many lanes of a segment stand abreast, the first of ``widths`` that can be, and the keys
    of their gradient and update.
    """
    *wider, width = widths
    for more in wider:
        # What calls functions for whole matrices has no use for lanes side by side.
        with suppress(Untranslated):
            gradient = building.gradient(one, more)
            return more, gradient, building.update(segment, one[0], grads, more)
    gradient = building.gradient(one, width)
    return width, gradient, building.update(segment, one[0], grads, width)
