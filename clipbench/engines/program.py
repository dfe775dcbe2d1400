"""Programs: a function of one lane, traced once into a flat list of operations on many.

`torch.func.vmap` and `torch.func.grad` cost more time than the arithmetic of a small model when
they run at every step; a traced program runs neither. What vmap would have to run lane by lane is
refused, and so is a function that draws random numbers or changes its inputs: the trace would
repeat what happened once.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

# Operations on single elements that give the same bits in a vector register and outside it. All
# others (exp, tanh, pow, …) may not, and the last elements of a tensor do not fill a register.
EXACT = frozenset(
    """
    abs add add_ addcdiv addcmul alias bitwise_and bitwise_not bitwise_or bitwise_xor ceil clamp
    clamp_ clamp_max clamp_min clone copy copy_ detach div div_ eq fill fill_ floor ge gt hardtanh
    hardtanh_backward isfinite isinf isnan le leaky_relu leaky_relu_backward lerp logical_and
    logical_not logical_or lt masked_fill maximum minimum mul mul_ ne neg reciprocal relu relu_
    round rsub sgn sign sqrt square sub sub_ threshold threshold_backward _to_copy trunc where zero_
    """.split()  # noqa: SIM905 - forty words read better without quotes
)
Nested: TypeAlias = "Tensor | Sequence[Nested]"  # a tensor, or tuples of them to any depth

# What torch says where it cannot trace, and what the function does.
UNTRACED = {
    "called random operation": "draws at random while it trains, as dropout does",
    "data-dependent": "reads the values of its tensors, as `if x.sum() > 0` does",
    "calling .item()": "reads the values of its tensors, as `.item()` does",
    "performance drop": "has an operation that would run lane by lane, as that of nn.LSTM does",
}
CHANGES_BUFFERS = "changes its buffers while it trains, as BatchNorm does: it runs in the loop"
FEWEST_LANES = 2  # lanes: a batch of one differs in the last bits from the same lane among others
GRAIN = 32  # elements in the registers of one unrolled loop, at most: float32 under AVX-512


class NoLanes(Exception):  # noqa: N818 - an answer, not an error
    """Something cannot train in lanes; the message says why."""


def flat(arguments: Nested) -> list[Tensor]:
    """The tensors of nested tuples, in order: the arguments of a program, if the tuples are
    those of its function.
    """
    tensors: list[Tensor] = []
    for argument in arguments:
        if isinstance(argument, tuple | list):
            tensors += flat(argument)
        else:
            tensors.append(argument)  # type: ignore[arg-type]
    return tensors


def trace(
    function: Callable[..., Any], arguments: Sequence[Nested], what: str, pure: bool = True
) -> GraphModule:
    """``function``, which takes and returns nested tuples of tensors whose first dimension is the
    lane, as a list of operations.

    The program is called with the tensors of the arguments, `flat`; what it returns is nested as
    the function returns it.

    :param what: what an error names, such as ``workload "wdbc"``.
    :param pure: whether a change of its arguments is refused.
    :raises NoLanes: it cannot be traced, or a trace of it would not be true.
    """
    tensors, nesting = pytree.tree_flatten(tuple(arguments))
    if len({id(tensor) for tensor in tensors}) < len(tensors):
        raise ValueError("one tensor given twice would be one input of the trace")
    changed = False

    def watched(*inputs: Tensor) -> Any:
        nonlocal changed
        versions = [tensor._version for tensor in inputs]  # noqa: SLF001 - torch has no public word for it
        result = function(*pytree.tree_unflatten(inputs, nesting))
        changed = versions != [tensor._version for tensor in inputs]  # noqa: SLF001
        return result

    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.filterwarnings("error", message=".*performance drop.*")
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            # Once for real: what a function makes at its first call and keeps must not be made of
            # the tensors of the trace.
            watched(*(tensor[:FEWEST_LANES].clone() for tensor in tensors))
            # With tensors that have a shape and no memory: a trace takes no step, and nothing is
            # held for a second derivative.
            graph = make_fx(watched, tracing_mode="fake", _allow_non_fake_inputs=True)(*tensors)
    except Exception as error:
        raise NoLanes(f"{what} {_why(error)}") from error
    if pure and changed:
        raise NoLanes(f"{what} {CHANGES_BUFFERS}")
    return graph


def _why(error: Exception) -> str:
    """What a function does that no trace of it can do, in the words of somebody who wrote it."""
    said = " ".join(f"{type(error).__name__}: {error}".split())
    for phrase, does in UNTRACED.items():
        if phrase in said:
            return f"{does}: it runs in the loop"
    return f"cannot be one program of many lanes, and runs in the loop ({said[:200]})"


def write(olds: Sequence[Tensor], news: Sequence[Tensor]) -> None:
    """Write new values into the memory of the old ones. A rule may hand on an old tensor as a new
    one: that is copied before any is overwritten, and no other is.
    """
    held = {_memory(tensor) for tensor in olds}
    apart = [tensor.clone() if _memory(tensor) in held else tensor for tensor in news]
    for old, new in zip(olds, apart, strict=True):
        old.copy_(new)


def _memory(tensor: Tensor) -> int:
    """A number for the memory that a tensor lies in, also for a tensor without data: equal for a
    tensor and its views.
    """
    return tensor.untyped_storage()._cdata  # noqa: SLF001 - torch has no public word for it


def grain(graph: GraphModule) -> int:
    """1 or `GRAIN`: the number of lanes must be a multiple of it, so that a lane has the same
    bits at every position.
    """
    return GRAIN if any(_inexact(node) for node in graph.graph.nodes) else 1


def _inexact(node: Node) -> bool:
    name = (
        node.target._schema.name.partition("::")[2]  # noqa: SLF001 - likewise
        if node.op == "call_function" and hasattr(node.target, "_schema")
        else ""
    )
    squared = name == "pow" and node.args[1:] == (2,)
    return (
        torch.Tag.pointwise in getattr(node.target, "tags", ())
        and name not in EXACT
        and not squared
    )


def peak_bytes(graph: GraphModule) -> int:
    """The most memory that the tensors made by a program take at one time; its inputs do not
    count.
    """
    order = {node: number for number, node in enumerate(graph.graph.nodes)}
    # the last operation that reads a node's memory, through views of it as well
    last: dict[Node, int] = {}
    for node, number in reversed(order.items()):
        last[node] = max(
            (last[user] if _is_view(user) else order[user] for user in node.users), default=number
        )
    ends: dict[int, int] = {}
    level = peak = 0
    for node, number in order.items():
        if size := _bytes(node):
            level += size
            peak = max(peak, level)
            ends[last[node]] = ends.get(last[node], 0) + size
        level -= ends.pop(number, 0)
    return peak


def _is_view(node: Node) -> bool:
    """Whether a node shares the memory of an earlier one: a view, an operation in place, or one
    part of a result.
    """
    schema = getattr(node.target, "_schema", None)
    return node.target is operator.getitem or (
        schema is not None and any(result.alias_info for result in schema.returns)
    )


def _bytes(node: Node) -> int:
    if node.op != "call_function" or _is_view(node):
        return 0
    value = node.meta.get("val")
    results = value if isinstance(value, tuple | list) else (value,)
    return sum(
        result.numel() * result.element_size() for result in results if isinstance(result, Tensor)
    )
