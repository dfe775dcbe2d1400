"""Pooling, and what makes an image larger: each output from a window of an image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.fx import Node
from torch.utils import _pytree as pytree

from clipbench.native.nests import loops
from clipbench.native.translation import Operation, Translation, Untranslated, args, name_of
from clipbench.native.values import Value


def average(t: Translation, node: Node) -> Value:
    """The mean of every window of an image, without padding."""
    value, (high, wide), (down, right) = _windows(t, node, 0)
    result = t.fresh(node.meta["val"], register=False)
    sizes = _images(result)
    height, width = value.sizes[-2:]
    body = (
        f"{value.memory.type} sum = 0; for (int r = 0; r < {high}; ++r) "
        f"for (int q = 0; q < {wide}; ++q) "
        f"sum += {value.address}[(i0 * {height} + i1 * {down} + r) * {width} + i2 * {right} + q]; "
        f"{result.address}[(i0 * {sizes[1]} + i1) * {sizes[2]} + i2] = sum / {high * wide};"
    )
    t.call([value], [result], loops(sizes, body))
    return result


def average_backward(t: Translation, node: Node) -> Value:
    """The gradient of `average`: of each window a part for each of its elements."""
    grad = t.values[args(node)[0]]
    value, (high, wide), (down, right) = _windows(t, node, 1)
    result = t.fresh(node.meta["val"], register=False)
    if not grad.dense:
        raise Untranslated("avg_pool2d_backward of this form")
    sizes = _images(grad)
    height, width = value.sizes[-2:]
    body = (
        f"const {value.memory.type} part = {grad.address}[(i0 * {sizes[1]} + i1) * {sizes[2]} + i2]"
        f" / {high * wide}; for (int r = 0; r < {high}; ++r) for (int q = 0; q < {wide}; ++q) "
        f"{result.address}[(i0 * {height} + i1 * {down} + r) * {width} + i2 * {right} + q] += part;"
    )
    t.call([grad], [result], _cleared(result) + loops(sizes, body))
    return result


def _windows(t: Translation, node: Node, first: int) -> tuple[Value, list[int], list[int]]:
    """The images of a pooling, and the size and the step of its windows.

    :raises Untranslated: it is padded, rounds up, or divides by another number.
    """
    given = [*args(node)[first:], *[None] * 7]
    value, kernel = t.values[given[0]], [int(size) for size in given[1]]
    steps = [int(size) for size in given[2] or kernel]
    padded = any(given[3] or ())
    if padded or given[4] or given[6] is not None or not value.dense:
        raise Untranslated(f"{name_of(node)} of this form")
    both = [kernel * 2 if len(kernel) == 1 else kernel, steps * 2 if len(steps) == 1 else steps]
    return value, both[0], both[1]


def largest(t: Translation, node: Node) -> list[Value]:
    """The largest element of every window of an image, and where in the image it stands; the first
    of several, and a NaN before any number.
    """
    given = [*args(node)[1:], *[None] * 5]
    value = t.values[args(node)[0]]
    if any(size != 1 for size in given[3] or ()) or given[4] or not value.dense:
        raise Untranslated(f"{name_of(node)} of this form")
    kernel, steps, padding = (
        (list(one) * 2)[:2] for one in (given[0], given[1] or given[0], given[2] or [0])
    )
    found, where = (t.fresh(tensor, register=False) for tensor in node.meta["val"])
    height, width = value.sizes[-2:]
    rows, columns = found.sizes[-2:]
    kind = value.memory.type
    body = (
        f"{kind} most = -INFINITE; int64_t place = -1; "
        f"for (int r = 0; r < {kernel[0]}; ++r) for (int q = 0; q < {kernel[1]}; ++q) {{ "
        f"const long y = i1 * {steps[0]} + r - {padding[0]}, "
        f"x = i2 * {steps[1]} + q - {padding[1]}; "
        f"if (y < 0 || y >= {height} || x < 0 || x >= {width}) continue; "
        f"const {kind} one = {value.address}[(i0 * {height} + y) * {width} + x]; "
        f"if (place < 0 || one > most || one != one) {{ most = one; place = y * {width} + x; }} }} "
        f"{found.address}[(i0 * {rows} + i1) * {columns} + i2] = most; "
        f"{where.address}[(i0 * {rows} + i1) * {columns} + i2] = place;"
    )
    t.call([value], [found, where], loops(_images(found), body))
    return [found, where]


def largest_backward(t: Translation, node: Node) -> Value:
    """The gradient of `largest`, added where the largest element of each window stood."""
    grad, where = t.values[args(node)[0]], t.values[args(node)[7]]
    result = t.fresh(node.meta["val"], register=False)
    if not (grad.dense and where.dense):
        raise Untranslated(f"{name_of(node)} of this form")
    image, window = (one.sizes[-1] * one.sizes[-2] for one in (result, grad))
    body = (
        f"{result.address}[i0 * {image} + {where.address}[i0 * {window} + i1]] += "
        f"{grad.address}[i0 * {window} + i1];"
    )
    sizes = (grad.elements // window, window)
    t.call([grad, where], [result], _cleared(result) + loops(sizes, body))
    return result


def enlarged(t: Translation, node: Node) -> Value:
    """An image whose every element is repeated a whole number of times."""
    value, result = t.values[args(node)[0]], t.fresh(node.meta["val"], register=False)
    body = _repeated(value, result, args(node)[2:], node)
    t.call([value], [result], loops(*body("{large} = {small};")))
    return result


def enlarged_backward(t: Translation, node: Node) -> Value:
    """The gradient of `enlarged`: the sum over the repeats of an element."""
    grad, result = t.values[args(node)[0]], t.fresh(node.meta["val"], register=False)
    body = _repeated(result, grad, args(node)[3:], node)
    t.call([grad], [result], _cleared(result) + loops(*body("{small} += {large};")))
    return result


def _repeated(
    small: Value, large: Value, scales: Sequence[Any], node: Node
) -> Callable[[str], tuple[tuple[int, ...], str]]:
    """The loops over an image and over another in which its elements are repeated.

    :raises Untranslated: the sizes, or the scales that are given, are no whole multiples.
    """
    (high, wide), (height, width) = large.sizes[-2:], small.sizes[-2:]
    down, right = high // height, wide // width
    given = [one for one in pytree.tree_leaves(list(scales)) if one is not None]
    alike = given in ([], [down, right])
    if high % height or wide % width or not (alike and large.dense and small.dense):
        raise Untranslated(f"{name_of(node)} of this form")
    spots = {
        "large": f"{large.address}[(i0 * {high} + i1) * {wide} + i2]",
        "small": f"{small.address}[(i0 * {height} + i1 / {down}) * {width} + i2 / {right}]",
    }
    return lambda text: (_images(large), text.format(**spots))


def _images(value: Value) -> tuple[int, ...]:
    """How many images there are, and the height and the width of one."""
    height, width = value.sizes[-2:]
    return value.elements // (height * width), height, width


def _cleared(value: Value) -> str:
    size = value.elements * value.memory.dtype.itemsize
    return f"memset({value.address}, 0, {size}); "


WINDOWS: Mapping[str, Operation] = {
    "avg_pool2d": average,
    "avg_pool2d_backward": average_backward,
    "max_pool2d_with_indices": largest,
    "max_pool2d_with_indices_backward": largest_backward,
    "upsample_nearest2d": enlarged,
    "upsample_nearest2d_backward": enlarged_backward,
}
