"""The gradients of one optimizer's parameters, as they are while a loop runs.

Nothing is changed here, and nothing is kept but marks by which a change is noticed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from clipbench import trees
from clipbench.step import precision

Number = float | Tensor
"""A number, or a scalar on a device that is not waited for."""
Marks = list[tuple[int, int] | None]
SAFE = 1e-18, 1e18  # norms whose squares are exact in float32
HALF = (torch.float16, torch.bfloat16)


class Gradients:
    """The gradients of the parameters that an optimizer steps."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.params = [
            param
            for group in optimizer.param_groups
            for param in group["params"]
            if param.requires_grad
        ]
        self.ids = frozenset(map(id, self.params))
        self.elements = sum(param.numel() for param in self.params)
        self.waits = any(param.device.type != "cpu" for param in self.params)
        """Whether reading a number from the device would wait for it."""
        self._lists: dict[tuple[int, ...], frozenset[int]] = {}

    @property
    def dtype(self) -> str:
        """In what the gradients are counted, ``float32`` or ``float64``: what is narrower is
        widened to be measured.
        """
        widest = max((param.dtype for param in self.params), key=lambda one: one.itemsize)
        return "float64" if precision(widest) == "float64" else "float32"

    def present(self) -> list[Tensor]:
        """Those that are there."""
        return [grad for param in self.params if (grad := param.grad) is not None]

    def marks(self) -> Marks:
        """Two calls give the same if nobody replaced a gradient or wrote into one in between, but
        through ``.data``.
        """
        return [
            None if (grad := param.grad) is None else (id(grad), grad._version)  # noqa: SLF001 - there is no public one
            for param in self.params
        ]

    def ours(self, params: Sequence[Tensor]) -> frozenset[int]:
        """The ids of those of ``params`` that the optimizer steps."""
        key = tuple(map(id, params))
        if (known := self._lists.get(key)) is None:
            if len(self._lists) > 64:  # a loop that names them anew each time
                self._lists.clear()
            known = self._lists[key] = self.ids.intersection(key)
        return known

    def with_gradient(self, marks: Marks) -> frozenset[int]:
        """The ids of the parameters that have a gradient.

        :param marks: as they are now.
        """
        if None not in marks:
            return self.ids
        return frozenset(
            id(param) for param, mark in zip(self.params, marks, strict=True) if mark is not None
        )

    def norm(self) -> Number:
        """The 2-norm of all gradients; inf where finite elements overflow it in their precision,
        NaN where an element is not finite.
        """
        return norm(self.present(), self.waits)


@torch.no_grad()  # a gradient may have a graph of its own
def norm(grads: Sequence[Tensor], waits: bool, order: float = 2.0) -> Number:
    """The 2-norm of some tensors together, or that of another order.

    :param waits: whether the number stays on its device.
    """
    dense = [_real(grad) for grad in grads if grad.numel()]
    if not dense:
        return 0.0
    if waits:
        narrow = _norm(dense, order)
        return narrow + 0 * _norm(dense, math.inf) if order == 2 else narrow
    value = float(_norm(dense))
    return value if SAFE[0] < value < SAFE[1] else _wide(dense)


def _real(grad: Tensor) -> Tensor:
    grad = trees.dense(grad.detach())
    return torch.view_as_real(grad) if grad.is_complex() else grad


def _norm(grads: Sequence[Tensor], order: float = 2.0) -> Tensor:
    first = grads[0].device
    norms: list[Tensor] = []
    for alike in _alike(grads):
        norms += torch._foreach_norm(  # noqa: SLF001 - as torch's own clip takes them
            alike, order, dtype=_counted(alike[0].dtype)
        )
    return torch.linalg.vector_norm(torch.stack([one.to(first) for one in norms]), order)


def _alike(grads: Sequence[Tensor]) -> Iterable[list[Tensor]]:
    groups: dict[tuple[Any, Any], list[Tensor]] = {}
    for grad in grads:
        groups.setdefault((grad.device, grad.dtype), []).append(grad)
    return groups.values()


def _wide(grads: Sequence[Tensor]) -> float:
    """The same in float64, for squares that float32 loses."""
    largest = max(float(grad.abs().max()) for grad in grads)
    if not math.isfinite(largest):
        return math.nan
    squares = sum(float(grad.double().square().sum()) for grad in grads)
    limit = min(torch.finfo(_counted(grad.dtype)).max for grad in grads)
    return math.inf if squares > limit else math.sqrt(squares) or largest


def _counted(dtype: torch.dtype) -> torch.dtype:
    """In what a norm of such elements is taken."""
    return torch.float32 if dtype in HALF else dtype
