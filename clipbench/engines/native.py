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
from clipbench.engines.structure import Lane, Segment, Structure
from clipbench.native import SPARE, Function, Untranslated, driver, translated

MOST = 256  # arguments of one program, as the driver has room for
BLOCK_BYTES = 2**22  # of batches that are drawn at once, about

__all__ = ["NotCompiled", "Stepper", "Untranslated"]


LANE = np.dtype(
    [
        (name, np.int64)
        for name in (
            *("update", "seed", "numbers", "kept", "fixed"),
            *("rates", "settings", "state", "bytes", "constants"),
        )
    ]
)
"""A lane as ``driver.cpp`` has it, addresses among its numbers."""


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
        most = max(
            3 + len(fixed),
            *(2 + len(pytree.tree_leaves(segment.lane)) for segment in segments),
            *(1 + len(segment.lane.remembered) + len(measures.PRODUCTS) for segment in segments),
        )
        if most > MOST:
            raise Untranslated(f"a program of {most} arguments, more than {MOST}")
        one = tuple(tensor[0] for tensor in (weights, *batch, *fixed))
        self.gradient = _gradient(programs, *one)
        grads = programs.model.like_gradient(weights, batch[0])
        self.updates = {
            segment.structure: _update(programs, segment, weights, grads) for segment in segments
        }
        self.products = len(measures.PRODUCTS)
        # a program may read a little behind each
        self.fixed = [_with_room(tensor.unbind(), (len(tensor), 1)).squeeze(1) for tensor in fixed]
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
        """Take the steps of a batch; their losses and products, steps × lanes × values.

        :param seeds: of every lane, the index of its seed in the batch.
        :param ended: lanes that take no step.
        :param taken: how many steps were taken before.
        :raises IndexError: an index was out of range in a lane.
        :raises ZeroDivisionError: a lane divided a whole number by zero.
        """
        table = np.zeros(len(weights), LANE)
        table["seed"], table["fixed"] = seeds, len(self.fixed)
        held = [_addresses(table["constants"], self.fixed)]  # what the table points to
        for segment in segments:
            held += self._fill(table[segment.begin : segment.end], segment, weights, taken)
        table["update"][list(ended)] = 0
        rows = np.zeros((batch.steps, len(weights), 1 + self.products))
        room, places = self._room(segments, weights)
        inputs, targets = batch.inputs, batch.targets
        drawn_batches = _Batches(
            inputs.data_ptr(),
            targets.data_ptr(),
            inputs[0, 0].nbytes,
            targets[0, 0].nbytes,
            inputs.shape[1],
        )
        self.run(
            self.gradient.address,
            table.ctypes.data,
            len(weights),
            batch.steps,
            ctypes.byref(drawn_batches),
            self.products,
            rows.ctypes.data,
            places,
        )
        del room, held
        for one in (self.gradient, *self.updates.values()):
            one.check()
        return rows

    def _fill(
        self, rows: np.ndarray, segment: Segment, weights: Tensor, taken: int
    ) -> list[np.ndarray]:
        """Fill the rows of a segment's lanes; what they point to."""
        lane = segment.lane
        numbers = [lane.lr, *lane.optimizer, *lane.clip]
        state = [weights[segment.begin : segment.end], *lane.remembered]
        sizes = np.array([tensor[0].nbytes for tensor in state])
        rows["update"], rows["bytes"] = self.updates[segment.structure].address, sizes.ctypes.data
        rows["numbers"], rows["kept"] = len(numbers), len(state)
        if segment.course is not None:
            rows["rates"] = _each(segment.course[:, taken:])
        return [
            sizes,
            _addresses(rows["settings"], numbers),
            _addresses(rows["state"], state),
        ]

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


def _each(tensor: Tensor) -> np.ndarray:
    """The address of each lane's part of a tensor, whose first dimension is the lane."""
    begin, step = tensor.data_ptr(), tensor.stride(0) * tensor.element_size()
    return begin + step * np.arange(len(tensor))


def _addresses(rows: np.ndarray, tensors: Sequence[Tensor]) -> np.ndarray:
    """The addresses of each lane's parts of some tensors, lanes × tensors; ``rows`` is filled
    with where each lane's begin.
    """
    parts = [_each(tensor) for tensor in tensors]
    found = np.stack(parts, 1) if parts else np.zeros((len(rows), 1), np.int64)
    rows[:] = found.ctypes.data + found.strides[0] * np.arange(len(rows))
    return found


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
        found = programs.native[key] = translated(function, fresh, _known(programs, key))
    return found


def _known(programs: Programs, key: Any) -> str | None:
    """What tells a program of packaged components from all others; None if a component is not
    packaged, for its file may read others.
    """
    workload, (first, *_) = programs.model.workload, key
    versions = [workload.version, *(first.versions if isinstance(first, Structure) else ())]
    if not all(isinstance(version, int) for version in versions):
        return None
    return repr((workload, workload.version, programs.model.how, programs.model.dtype, key))
