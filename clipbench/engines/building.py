"""The functions of a workload's native lanes, of the same tensors for every lane: traced one after
the other, compiled beside that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from clipbench.engines.stacked import Programs
from clipbench.engines.structure import Segment, Structure
from clipbench.native import Function, Written, written

COMPILERS = 2  # at a time, while the next function is traced: that takes about as long
_run = ""


def of_this_run(word: str) -> None:
    """Let this process share the programs of a user's components with those that were told the same
    word; with none if it is empty.
    """
    global _run  # noqa: PLW0603 - of the whole process, as its threads are
    _run = word


class Building:
    """What is built of some programs, once in this process; at the end of its ``with`` block no
    compiler is at work.
    """

    def __init__(self, programs: Programs) -> None:
        self.programs = programs
        self.making: dict[Any, Future[Function]] = {}
        self.pool = ThreadPoolExecutor(COMPILERS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.pool.shutdown(cancel_futures=True)

    def function(self, key: Any) -> Function:
        """The function of a key, once it is compiled.

        :raises NotCompiled: the compiler fails.
        """
        if key in self.making:
            self.programs.native[key] = self.making.pop(key).result()
        return self.programs.native[key]

    def gradient(self, one: Sequence[Tensor], width: int) -> Any:
        """The key of ``(weights, inputs, targets, *fixed) → (gradient, loss)`` of lanes that stand
        abreast, from tensors of one lane.

        :raises Untranslated: an operation has no translation.
        """

        def gradient(weights: Tensor, inputs: Tensor, targets: Tensor, *fixed: Tensor) -> Any:
            grads, loss = self.programs.model.gradient(weights, inputs, targets, fixed)
            return grads, loss.double()

        def of_one(*given: Tensor) -> Any:
            return gradient(*(tensor[..., 0] for tensor in given))

        many = width > 1
        function = _turned(torch.vmap(gradient)) if many else of_one
        return self._begun(("gradient",), function, _filled(one, width), many)

    def update(self, segment: Segment, weights: Tensor, grads: Tensor, width: int) -> Any:
        """The key of ``(weights, gradient, lane) → (products, weights, state, memory)`` of lanes
        that stand abreast, from tensors of one lane.

        :raises Untranslated: an operation has no translation.
        """
        stepped = self.programs.step_function(segment.structure, one_pass=True, wide=True)
        first = pytree.tree_map(lambda tensor: tensor[:1], segment.lane)
        tensors, nesting = pytree.tree_flatten((weights, grads, first))

        def update(*inputs: Tensor) -> Any:
            moved, products, lane = stepped(*pytree.tree_unflatten(inputs, nesting))
            return [product.double() for product in products], moved, list(lane.remembered)

        given = _filled(tensors, width)
        return self._begun((segment.structure,), _turned(update), given, width > 1)

    def _begun(
        self,
        named: tuple[Any, ...],
        function: Callable[..., Any],
        arguments: Sequence[Tensor],
        plain: bool,
    ) -> Any:
        """The key of a function that is there, or is being compiled from now on.

        :param plain: whether it must be made of loops alone.
        """
        key = (*named, *((tensor.shape, tensor.dtype) for tensor in arguments))
        if key not in self.programs.native and key not in self.making:
            found = written(function, arguments, _known(self.programs, key), plain)
            if isinstance(found, Written):
                self.making[key] = self.pool.submit(found.compiled)
            else:
                self.programs.native[key] = found
        return key


def abreast(tensor: Tensor, width: int) -> Tensor:
    """Lanes × … as blocks × … × width, in rows; the last lane fills the last block up. Of a width
    of 1 the same memory, if it lies in rows.
    """
    if more := -len(tensor) % width:
        tensor = torch.cat([tensor, tensor[-1:].expand(more, *tensor.shape[1:])])
    return tensor.unflatten(0, (-1, width)).movedim(1, -1).contiguous()


def _turned(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of lanes, the lane first, as one of lanes that stand abreast, the lane last."""

    def turned(*inputs: Tensor) -> Any:
        found = function(*(tensor.movedim(-1, 0) for tensor in inputs))
        return pytree.tree_map(lambda tensor: tensor.movedim(0, -1), found)

    return turned


def _filled(tensors: Sequence[Tensor], width: int) -> list[Tensor]:
    """Tensors of one lane, the lane first, as one block of lanes that stand abreast."""
    return [abreast(tensor.detach(), width)[0].clone() for tensor in tensors]


def _known(programs: Programs, key: Any) -> str | None:
    """What tells a program from all others; None if a component is not packaged, for its file may
    read others, which stay as they are in one run at most.
    """
    workload, (first, *_) = programs.model.workload, key
    versions = [workload.version, *(first.versions if isinstance(first, Structure) else ())]
    packaged = all(isinstance(version, int) for version in versions)
    if not (packaged or _run):
        return None
    settings = {one.name: getattr(workload, one.name) for one in fields(workload)}
    named = (type(workload).__qualname__, workload.version, settings)
    return repr((named, programs.model.how, programs.model.dtype, key, "" if packaged else _run))
