"""Lanes as a program of this machine: the step of one lane, translated into C++, taken many times
for each lane before the next one begins.

A lane's arithmetic is its own: its bits do not depend on its companions, and lanes of all
structures train together without one too many.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from clipbench import measures
from clipbench.compiling import NotCompiled
from clipbench.engines.stacked import Programs
from clipbench.engines.structure import Lane, Segment
from clipbench.native import SPARE, Function, Untranslated, driver, translated

MOST = 256  # arguments of one program, as the driver has room for
BLOCK_BYTES = 2**22  # of batches that are drawn at once, about

__all__ = ["NotCompiled", "Stepper", "Untranslated"]


class _Lane(ctypes.Structure):
    """As in ``driver.cpp``."""

    _fields_ = (
        ("update", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("seed", "numbers", "kept", "fixed")),
        *((name, ctypes.c_void_p) for name in ("rates", "settings", "state", "bytes", "constants")),
    )


class _Batches(ctypes.Structure):
    """As in ``driver.cpp``."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("inputs", "targets")),
        *((name, ctypes.c_int64) for name in ("input_bytes", "target_bytes", "seeds")),
    )


@dataclass(frozen=True)
class Batch:
    """The batches of some steps, steps × seeds, with room behind them for a register."""

    inputs: Tensor
    targets: Tensor
    steps: int


def drawn(streams: Sequence[Iterator[tuple[Tensor, Tensor]]], steps: int) -> Batch:
    """The next batches of every seed: of so many steps, or of as many as are held at once."""
    pairs = [[next(stream) for stream in streams]]
    size = sum(tensor.nbytes for pair in pairs[0] for tensor in pair)
    steps = min(steps, max(1, BLOCK_BYTES // max(1, size)))
    pairs += [[next(stream) for stream in streams] for _ in range(steps - 1)]
    inputs, targets = (
        _with_room([pair[part] for row in pairs for pair in row], (steps, len(streams)))
        for part in (0, 1)
    )
    return Batch(inputs, targets, steps)


def _with_room(tensors: Sequence[Tensor], shape: tuple[int, int]) -> Tensor:
    """Tensors stacked to this shape, with room behind them that a register may read."""
    first = tensors[0]
    room = first.new_empty(len(tensors) * first.numel() + SPARE)
    stacked = room[: len(tensors) * first.numel()].view(len(tensors), *first.shape)
    torch.stack(list(tensors), out=stacked)
    return stacked.view(*shape, *first.shape)


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
        one = tuple(tensor[0] for tensor in (weights, *batch, *fixed))
        self.gradient = _gradient(programs, *one)
        grads = programs.model.like_gradient(weights, batch[0])
        self.updates = {
            segment.structure: _update(programs, segment, weights, grads) for segment in segments
        }
        self.products = len(measures.PRODUCTS)
        self.run = driver()

    @property
    def lane_bytes(self) -> int:
        """Bytes that all lanes share: what the programs work in, and two places for a state."""
        return sum(one.workspace for one in (self.gradient, *self.updates.values()))

    def advance(
        self,
        batch: Batch,
        weights: Tensor,
        segments: Sequence[Segment],
        fixed: Sequence[Tensor],
        seeds: Sequence[int],
        ended: set[int],
        taken: int,
    ) -> np.ndarray:
        """Take the steps of a batch; their losses and products, steps × lanes × values.

        :param seeds: of every lane, the index of its seed in the batch.
        :param ended: lanes that take no step.
        :param taken: how many steps were taken before.
        """
        table = (_Lane * len(weights))()
        held: list[Any] = []  # what the table points to
        for segment in segments:
            update = self.updates[segment.structure]
            for lane in range(segment.begin, segment.end):
                if lane not in ended:
                    table[lane] = self._lane(
                        update, segment, lane, weights, fixed, seeds, taken, held
                    )
        rows = np.zeros((batch.steps, len(weights), 1 + self.products))
        room, places = self._room(segments, weights)
        inputs, targets = batch.inputs, batch.targets
        drawn = _Batches(
            inputs.data_ptr(),
            targets.data_ptr(),
            inputs[0, 0].nbytes,
            targets[0, 0].nbytes,
            inputs.shape[1],
        )
        self.run(
            self.gradient.address,
            table,
            len(weights),
            batch.steps,
            ctypes.byref(drawn),
            self.products,
            rows.ctypes.data,
            places,
        )
        del room, held
        return rows

    def _lane(
        self,
        update: Function,
        segment: Segment,
        lane: int,
        weights: Tensor,
        fixed: Sequence[Tensor],
        seeds: Sequence[int],
        taken: int,
        held: list[Any],
    ) -> _Lane:
        own, at = segment.lane, lane - segment.begin
        numbers = [tensor[at] for tensor in (own.lr, *own.optimizer, *own.clip)]
        state = [weights[lane], *(tensor[at] for tensor in own.remembered)]
        rates = None if segment.course is None else segment.course[at, taken:]
        columns = [
            (ctypes.c_void_p * max(1, len(some)))(*(tensor.data_ptr() for tensor in some))
            for some in (numbers, state, [tensor[lane] for tensor in fixed])
        ]
        sizes = (ctypes.c_int64 * len(state))(*(tensor.nbytes for tensor in state))
        held += [*columns, sizes, rates]
        settings, kept, constants = (ctypes.addressof(column) for column in columns)
        return _Lane(
            update.address,
            seeds[lane],
            len(numbers),
            len(state),
            len(fixed),
            None if rates is None else rates.data_ptr(),
            settings,
            kept,
            ctypes.addressof(sizes),
            constants,
        )

    def _room(self, segments: Sequence[Segment], weights: Tensor) -> tuple[Tensor, Any]:
        """Two places for every part of a lane's state, and one for its gradient, which all lanes
        use in turn.
        """
        most = [0] * MOST
        for segment in segments:
            state = [weights, *segment.lane.remembered]
            for number, tensor in enumerate(state):
                most[number] = max(most[number], tensor[0].nbytes)
        gradient = self.gradient.outputs[0]
        sizes = [size for size in most for _ in range(2)] + [gradient]
        begins, total = [], 0
        for size in sizes:
            begins.append(total)
            total += -(-(size + SPARE) // SPARE) * SPARE if size else 0
        room = torch.empty(total + SPARE, dtype=torch.uint8)
        begin = -(-room.data_ptr() // SPARE) * SPARE
        places = (ctypes.c_void_p * len(sizes))(*(begin + one for one in begins))
        return room, places


def _gradient(programs: Programs, *arguments: Tensor) -> Function:
    """``(weights, inputs, targets, *fixed) → (gradient, loss)`` of one lane."""

    def one(weights: Tensor, inputs: Tensor, targets: Tensor, *fixed: Tensor) -> Any:
        grads, loss = programs.model.gradient(weights, inputs, targets, fixed)
        return grads, loss.double()

    return _remembered(programs, ("gradient", *_shapes(arguments)), one, arguments)


def _update(programs: Programs, segment: Segment, weights: Tensor, grads: Tensor) -> Function:
    """``(weights, gradient, lane) → (products, weights, state, memory)`` of one lane."""
    stepped = programs.step_function(segment.structure, one_pass=True, wide=True)
    arguments = (weights[:1], grads[:1], _first(segment.lane))
    tensors, nesting = pytree.tree_flatten(arguments)

    def one(*inputs: Tensor) -> Any:
        moved, products, lane = stepped(*pytree.tree_unflatten(inputs, nesting))
        return [product.double() for product in products], moved, list(lane.remembered)

    key = (segment.structure, *_shapes(tensors))
    return _remembered(programs, key, one, tensors)


def _first(lane: Lane) -> Lane:
    return pytree.tree_map(lambda tensor: tensor[:1], lane)


def _shapes(tensors: Sequence[Tensor]) -> tuple[Any, ...]:
    return tuple((tensor.shape, tensor.dtype) for tensor in tensors)


def _remembered(
    programs: Programs, key: Any, function: Callable[..., Any], arguments: Sequence[Tensor]
) -> Function:
    """The function, built once in this process."""
    if (found := programs.native.get(key)) is None:
        fresh = [tensor.detach().clone() for tensor in arguments]
        found = programs.native[key] = translated(function, fresh)
    return found
