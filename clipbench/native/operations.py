"""The operations that move elements, or are made of others: how each becomes statements."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from clipbench.native.elements import CONVERT, literal
from clipbench.native.nests import at, loops, numbered
from clipbench.native.products import PRODUCTS
from clipbench.native.translation import Operation, Translation, Untranslated, args, name_of
from clipbench.native.values import Element, Value
from clipbench.native.windows import WINDOWS


def copied(t: Translation, value: Value, tensor: Tensor) -> Value:
    """A copy that lies as a tensor without data does."""
    return t.element(CONVERT, [value], tensor)


def clone(t: Translation, node: Node) -> Value:
    """The same value if it lies as it should and nothing is written over it, else a copy."""
    value, tensor = t.values[args(node)[0]], node.meta["val"]
    same = (
        value.offset == 0
        and value.elements == value.memory.elements
        and value.strides == tuple(tensor.stride())
        and not t.changes(node)
        and not t.changes(args(node)[0])
    )
    return value if same else copied(t, value, tensor)


def convert(t: Translation, node: Node) -> Value:
    """A value in another type."""
    value, tensor = t.values[args(node)[0]], node.meta["val"]
    if tensor.dtype == value.memory.dtype:
        return clone(t, node)
    if tensor.dtype is torch.bool:
        return t.element("ne", [value, 0], tensor)
    return t.element(CONVERT, [value], tensor)


def filled(position: int | None, otherwise: float = 0) -> Operation:
    """The operation that makes a tensor of one number, the argument at ``position``."""

    def fill(t: Translation, node: Node) -> Value:
        tensor = node.meta["val"]
        number = otherwise if position is None else args(node)[position]
        value = t.fresh(tensor)
        text = literal(number, tensor.dtype)
        t.statements.append(Element([], [value], CONVERT, [text], tensor.dtype))
        return value

    return fill


def written(t: Translation, node: Node) -> Value:
    """One value in the place and the type of another."""
    source, tensor = t.values[args(node)[1]], node.meta["val"]
    if tuple(source.sizes) != tuple(tensor.shape):
        raise Untranslated("copy of this form")
    return copied(t, source, tensor)


def unwritten(t: Translation, node: Node) -> Value:
    """Memory that nothing is in: only its sizes are read."""
    return t.fresh(node.meta["val"], register=False)


def copy_to(t: Translation, node: Node) -> Value:
    """A value written over another."""
    target, source = t.values[args(node)[0]], t.values[args(node)[1]]
    if target.memory.given:
        raise Untranslated("a change of an argument")
    target.memory.register = False
    t.rewritten.add(target.memory)
    missing = len(target.sizes) - len(source.sizes)
    strides = (0,) * missing + tuple(
        0 if size == 1 else stride
        for size, stride in zip(source.sizes, source.strides, strict=True)
    )
    spread = Value(source.memory, target.sizes, strides, source.offset)
    dtype = source.memory.dtype
    name = "ne" if target.memory.dtype is torch.bool and dtype is not torch.bool else CONVERT
    operands: list[Value | str] = [spread, literal(0, dtype)] if name == "ne" else [spread]
    t.statements.append(Element([spread], [target], name, operands, dtype))
    return target


def cat(t: Translation, node: Node) -> Value:
    """The parts side by side. A part that is all of its memory is made in its place at once."""
    sources, dim = list(args(node)[0]), int(args(node)[1])
    parts = [t.values[one] for one in sources]
    result = t.fresh(node.meta["val"], register=False)
    begin = 0
    for source, part in zip(sources, parts, strict=True):
        spot = Value(result.memory, part.sizes, result.strides, begin * result.strides[dim])
        begin += part.sizes[dim]
        memory = part.memory
        movable = (
            spot.dense
            and part.dense
            and memory.elements == part.elements
            and not memory.given
            and memory.inside is None
            and not t.changes(source)
            and not t.changes(node)
            and sum(one.memory is memory for one in parts) == 1
        )
        if movable:
            memory.inside, memory.register = (result.memory, spot.offset), False
        else:
            t.statements.append(Element([part], [spot], CONVERT, [part], node.meta["val"].dtype))
    return result


def variance(t: Translation, node: Node) -> Value:
    """The mean of squares around the mean, as torch takes it."""
    value, tensor = t.values[args(node)[0]], node.meta["val"]
    dims = range(len(value.sizes)) if args(node)[1] is None else args(node)[1]
    folded = [int(dim) for dim in dims]
    correction: Any = node.kwargs.get("correction", args(node)[2] if len(args(node)) > 2 else 1)
    count = value.elements // max(1, tensor.numel())

    def bare(sizes: Sequence[int]) -> Tensor:
        return torch.empty(tuple(sizes), dtype=tensor.dtype, device="meta")

    total = t.fold("sum", value, folded, bare(tensor.size()))
    mean = t.element("div", [total, count], bare(tensor.size()))
    strides = iter(mean.strides)
    spread = Value(
        mean.memory,
        value.sizes,
        tuple(0 if dim in folded else next(strides) for dim in range(len(value.sizes))),
    )
    apart = t.element("sub", [value, spread], bare(value.sizes))
    squares = t.element("mul", [apart, apart], bare(value.sizes))
    summed = t.fold("sum", squares, folded, bare(tensor.size()))
    return t.element("div", [summed, max(0.0, count - float(correction))], tensor)


def wrapped(index: str, size: int) -> str:
    """An index, held within a dimension; what is out of range is noted."""
    return f"within({index}, {size})"


def _along(t: Translation, node: Node) -> tuple[Value, Value, list[str], list[str]]:
    """A value and the tensor that indexes it along one dimension; the indices of an element of that
    tensor, and of the element that it names.

    :raises Untranslated: the value is a single number.
    """
    value, index = t.values[args(node)[0]], t.values[args(node)[2]]
    if not value.sizes:
        raise Untranslated(f"{name_of(node)} of a single number")
    dim = int(args(node)[1]) % len(value.sizes)
    here = numbered(len(index.sizes))
    there = [*here]
    there[dim] = wrapped(at(index, here), value.sizes[dim])
    return value, index, here, there


def gather(t: Translation, node: Node) -> Value:
    """The elements that an index names along one dimension."""
    value, index, here, there = _along(t, node)
    result = t.fresh(node.meta["val"], register=False)
    body = f"{at(result, here)} = {at(value, there)};"
    t.call([value, index], [result], loops(index.sizes, body))
    return result


def scatter(t: Translation, node: Node) -> Value:
    """A copy with other elements, or with more, where an index says."""
    (value, index, here, there), source = _along(t, node), args(node)[3]
    result = t.fresh(node.meta["val"], register=False)
    reads = [value, index]
    if isinstance(source, Node):
        reads.append(t.values[source])
        written = at(t.values[source], here)
    else:
        written = literal(source, result.memory.dtype)
    sign = "+=" if "add" in str(node.target) else "="
    every = numbered(len(value.sizes))
    copy = loops(value.sizes, f"{at(result, every)} = {at(value, every)};")
    body = f"{at(result, there)} {sign} {written};"
    t.call(reads, [result], f"{copy} {loops(index.sizes, body)}")
    return result


def _indexed(
    t: Translation, value: Value, given: Sequence[Any]
) -> tuple[list[int], list[str], list[Value]]:
    """The sizes of what is indexed by tensors, the index of every dimension, and those tensors.

    :raises Untranslated: the tensors do not stand next to each other, or are truth values.
    """
    tensors = [(dim, t.values[one]) for dim, one in enumerate(given) if one is not None]
    dims = [dim for dim, _ in tensors]
    if dims != list(range(dims[0], dims[0] + len(dims))) or any(
        one.memory.dtype is torch.bool for _, one in tensors
    ):
        raise Untranslated("an index of this form")
    shape = torch.broadcast_shapes(*(one.sizes for _, one in tensors))
    sizes = [*value.sizes[: dims[0]], *shape, *value.sizes[dims[-1] + 1 :]]
    here = numbered(len(sizes))
    middle = here[dims[0] : dims[0] + len(shape)]
    indices = []
    for dim in range(len(value.sizes)):
        if dim < dims[0]:
            indices.append(here[dim])
        elif dim > dims[-1]:
            indices.append(here[dim - len(dims) + len(shape)])
        else:
            index = dict(tensors)[dim]
            own = [
                "0" if size == 1 else spot
                for size, spot in zip(
                    index.sizes, middle[len(shape) - len(index.sizes) :], strict=True
                )
            ]
            indices.append(wrapped(at(index, own), value.sizes[dim]))
    return sizes, indices, [one for _, one in tensors]


def index(t: Translation, node: Node) -> Value:
    """The elements that tensors of indices name."""
    value = t.values[args(node)[0]]
    sizes, indices, tensors = _indexed(t, value, args(node)[1])
    result = t.fresh(node.meta["val"], register=False)
    body = f"{at(result, numbered(len(sizes)))} = {at(value, indices)};"
    t.call([value, *tensors], [result], loops(sizes, body))
    return result


def index_put(t: Translation, node: Node) -> Value:
    """A copy with other elements, or with more, where tensors of indices say."""
    value, source = t.values[args(node)[0]], t.values[args(node)[2]]
    sizes, indices, tensors = _indexed(t, value, args(node)[1])
    result = t.fresh(node.meta["val"], register=False)
    here, every = numbered(len(sizes)), numbered(len(value.sizes))
    own = [
        "0" if size == 1 else spot
        for size, spot in zip(source.sizes, here[len(sizes) - len(source.sizes) :], strict=True)
    ]
    adds = len(args(node)) > 3 and bool(args(node)[3])
    copy = loops(value.sizes, f"{at(result, every)} = {at(value, every)};")
    sign = "+=" if adds else "="
    body = f"{at(result, indices)} {sign} {at(source, own)};"
    t.call([value, source, *tensors], [result], f"{copy} {loops(sizes, body)}")
    return result


def iota(t: Translation, node: Node) -> Value:
    """Whole numbers in steps."""
    result = t.fresh(node.meta["val"], register=False)
    start, step = node.kwargs.get("start", 0), node.kwargs.get("step", 1)
    body = f"{result.address}[i0] = {start} + i0 * {step};"
    t.call([], [result], loops([result.elements], body))
    return result


def sort(t: Translation, node: Node) -> list[Any]:
    """The values of one row in order; who asks for their places is refused."""
    value, tensor = t.values[args(node)[0]], node.meta["val"][0]
    given = [*args(node)[1:], None, None]
    dim = int(node.kwargs.get("dim", -1 if given[0] is None else given[0]))  # type: ignore[arg-type]
    descending = node.kwargs.get("descending", given[1])
    places = any(args(user)[1] == 1 and user.users for user in node.users)
    of_one = not value.sizes or value.sizes[dim] == 1
    row = len(value.domain) == 1 and value.dense
    if places or descending or not (of_one or row):
        raise Untranslated("sort of this form")
    if of_one:
        return [copied(t, value, tensor), None]
    result = t.fresh(tensor, register=False)
    room = t.memory(tensor.dtype, value.elements)
    size = value.elements * value.memory.dtype.itemsize
    code = (
        f"memcpy({result.address}, {value.address}, {size}); "
        f"sorted({result.address}, {room.name}, {value.elements});"
    )
    t.call([value], [result, Value(room, (value.elements,), (1,))], code)
    return [result, None]


OPERATIONS: Mapping[str, Callable[[Translation, Node], Any]] = {
    "cat": cat,
    "clone": clone,
    CONVERT: convert,
    "copy": written,
    "copy_": copy_to,
    "copy_to": copy_to,
    "empty": unwritten,
    "empty_permuted": unwritten,
    "empty_strided": unwritten,
    "full": filled(1),
    "full_like": filled(1),
    "gather": gather,
    "index": index,
    "index_put": index_put,
    "iota": iota,
    "scalar_tensor": filled(0),
    "scatter": scatter,
    "scatter_add": scatter,
    "sort": sort,
    "var": variance,
    **PRODUCTS,
    **WINDOWS,
}
