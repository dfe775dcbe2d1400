"""Matrix products and convolutions: how each becomes calls of ``products.hpp``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.fx import Node

from clipbench.native.translation import Translation, Untranslated, args, name_of
from clipbench.native.values import Value

WIDEST = 16  # elements in a register at most: rows are packed with room for one more


def multiply(
    kind: str,
    sizes: tuple[int, int, int],
    left: tuple[str, int, int],
    right: tuple[str, int],
    result: tuple[str, int],
    blocks: tuple[int, int] = (1, 0),
) -> str:
    """The call for a product of M × K by K × N, whose right side lies in rows.

    :param blocks: how many such products are added, and how far the left sides are apart.
    """
    rows, columns, inner = sizes
    return (
        f"product<{kind}, {rows}, {columns}, {inner}>"
        f"({left[0]}, {left[1]}, {left[2]}, {right[0]}, {right[1]}, {result[0]}, {result[1]}, "
        f"{blocks[0]}, {blocks[1]});"
    )


def matrix(value: Value) -> tuple[int, int]:
    """The strides of the last two dimensions; that of a single column does not matter."""
    row, column = value.strides[-2:]
    return row, (1 if value.sizes[-1] == 1 else column)


def in_rows(t: Translation, value: Value) -> tuple[Value, int]:
    """A matrix, or many, whose rows have neighbouring elements and room behind them, and the
    length of a row; a copy serves every product of the step.
    """
    row, column = matrix(value)
    if column == 1 and row >= value.sizes[-1]:
        return value, row
    inner, columns = value.sizes[-2:]
    length = -(-columns // WIDEST) * WIDEST
    key = (value.memory, value.sizes, value.strides, value.offset)
    if key not in t.packed or value.memory in t.rewritten:
        batch = value.sizes[:-2]
        count = batch[0] if batch else 1
        memory = t.memory(value.memory.dtype, count * inner * length)
        strides = ((inner * length,) if batch else ()) + (length, 1)
        packed = Value(memory, value.sizes, strides)
        step = value.strides[0] if batch else 0
        t.call(
            [value],
            [packed],
            f"for (long b = 0; b < {count}; ++b) packed<{value.memory.type}, {inner}, {columns}>"
            f"({value.address} + b * {step}, {row}, {column}, "
            f"{packed.address} + b * {inner * length}, {length});",
        )
        t.packed[key] = packed
    return t.packed[key], length


def mm(t: Translation, node: Node) -> Value:
    """The product of two matrices, or of many pairs."""
    left, right = t.values[args(node)[0]], t.values[args(node)[1]]
    result = t.fresh(node.meta["val"], register=False)
    if result.memory.dtype not in (torch.float32, torch.float64) or not result.dense:
        raise Untranslated(f"{node.target} of {result.memory.type}")
    (rows, inner), columns = left.sizes[-2:], right.sizes[-1]
    right, length = in_rows(t, right)
    row, column = left.strides[-2:]
    call = multiply(
        result.memory.type,
        (rows, columns, inner),
        (f"{left.address} + b * {_step(left)}", row, column),
        (f"{right.address} + b * {_step(right)}", length),
        (f"{result.address} + b * {rows * columns}", columns),
    )
    count = left.sizes[0] if len(left.sizes) == 3 else 1
    t.call([left, right], [result], f"for (long b = 0; b < {count}; ++b) {call}")
    return result


def _step(value: Value) -> int:
    return value.strides[0] if len(value.sizes) == 3 else 0


class Convolution:
    """The sizes of a convolution, ``images`` to ``maps``, and its patches in C++; a transposed one
    leads from maps to images.

    :raises Untranslated: it is grouped, or not of images.
    """

    def __init__(self, given: Value, weight: Value, result: Sequence[int], node: Node) -> None:
        first = 3 if name_of(node) == "convolution" else 4
        stride, padding, dilation, transposed, _, groups = args(node)[first : first + 6]
        if not (len(given.sizes) == 4 and groups == 1 and weight.dense):
            raise Untranslated(f"{name_of(node)} of this form")
        self.transposed = bool(transposed)
        images, maps = (result, given.sizes) if self.transposed else (given.sizes, result)
        self.examples, self.channels, *extent = images
        self.outputs, _, *kernel = weight.sizes
        moves = [(list(one) * 2)[:2] for one in (stride, padding, dilation)]
        numbers = [self.channels, *extent, *kernel, *moves[0], *moves[1], *moves[2]]
        self.kind = weight.memory.type
        self.patches = f"Patches<{self.kind}, {', '.join(map(str, numbers))}>"
        self.taps = self.channels * kernel[0] * kernel[1]
        self.pixels = maps[2] * maps[3]
        for size, width, step, padding, gap, found in zip(
            extent, kernel, *moves, maps[2:], strict=True
        ):
            if (size + 2 * padding - gap * (width - 1) - 1) // step + 1 != found:
                raise Untranslated(f"{name_of(node)} of this form")
        self.image = self.channels * extent[0] * extent[1]  # elements
        self.map = self.outputs * self.pixels
        self.column = self.taps * self.pixels

    def columns(self, t: Translation, images: Value) -> Value:
        """The patches of every example, taps × pixels, made once for both directions."""
        key = (images.memory, images.offset, self.patches)
        if key not in t.packed or images.memory in t.rewritten:
            memory = t.memory(images.memory.dtype, self.examples * self.column)
            sizes = (self.examples, self.taps, self.pixels)
            made = Value(memory, sizes, (self.column, self.pixels, 1))
            t.call(
                [images],
                [made],
                f"for (long b = 0; b < {self.examples}; ++b) {self.patches}::columns("
                f"{images.address} + b * {self.image}, {made.address} + b * {self.column});",
            )
            t.packed[key] = made
        return t.packed[key]

    def to_maps(self, t: Translation, images: Value, weight: Value, result: Value) -> None:
        """The weights times the patches of every example."""
        columns = self.columns(t, images)
        call = multiply(
            self.kind,
            (self.outputs, self.pixels, self.taps),
            (weight.address, self.taps, 1),
            (f"{columns.address} + b * {self.column}", self.pixels),
            (f"{result.address} + b * {self.map}", self.pixels),
        )
        code = f"for (long b = 0; b < {self.examples}; ++b) {call}"
        t.call([columns, weight], [result], code)

    def to_images(self, t: Translation, maps: Value, weight: Value, result: Value) -> None:
        """The weights, turned, times the maps, each patch added to where it comes from."""
        room = t.memory(maps.memory.dtype, self.column)
        call = multiply(
            self.kind,
            (self.taps, self.pixels, self.outputs),
            (weight.address, 1, self.taps),
            (f"{maps.address} + b * {self.map}", self.pixels),
            (room.name, self.pixels),
        )
        back = f"{self.patches}::back({room.name}, {result.address} + b * {self.image});"
        code = f"for (long b = 0; b < {self.examples}; ++b) {{ {call} {back} }}"
        t.call([maps, weight], [result, Value(room, (self.column,), (1,))], code)

    def to_weights(self, t: Translation, images: Value, maps: Value, result: Value) -> None:
        """The maps times the patches, turned, summed over the examples."""
        columns = self.columns(t, images)
        sizes = (self.examples, self.pixels, self.taps)
        turned, length = in_rows(t, Value(columns.memory, sizes, (self.column, 1, self.pixels)))
        code = multiply(
            self.kind,
            (self.outputs, self.taps, self.pixels),
            (maps.address, self.pixels, 1),
            (turned.address, length),
            (result.address, self.taps),
            (self.examples, self.map),
        )
        t.call([maps, turned], [result], code)


def convolution(t: Translation, node: Node) -> Value:
    """A convolution of images, or a transposed one, and its bias."""
    given, weight = (t.values[one] for one in args(node)[:2])
    tensor = node.meta["val"]
    shape = Convolution(given, weight, tuple(tensor.shape), node)
    given, result = dense(t, given), t.fresh(tensor, register=False)
    if not result.dense:
        raise Untranslated("convolution of this form")
    (shape.to_images if shape.transposed else shape.to_maps)(t, given, weight, result)
    if args(node)[2] is None:
        return result
    bias = t.values[args(node)[2]]
    spread = Value(bias.memory, result.sizes, (0, bias.strides[0], 0, 0), bias.offset)
    return t.element("add", [result, spread], tensor)


def convolution_backward(t: Translation, node: Node) -> list[Value | None]:
    """The gradients of what was given, of weights and of bias, those that are asked for."""
    grad, given, weight = (t.values[one] for one in args(node)[:3])
    shape = Convolution(given, weight, grad.sizes, node)
    grad, given = dense(t, grad), dense(t, given)
    wanted, tensors = args(node)[10], node.meta["val"]
    results: list[Value | None] = [
        t.fresh(tensor, register=False) if asked else None
        for asked, tensor in zip(wanted, tensors, strict=True)
    ]
    to_given, to_weights, to_bias = results
    if to_given is not None:
        (shape.to_maps if shape.transposed else shape.to_images)(t, grad, weight, to_given)
    if to_weights is not None:
        pair = (grad, given) if shape.transposed else (given, grad)
        shape.to_weights(t, *pair, to_weights)
    if to_bias is not None:
        results[2] = t.fold("sum", grad, [0, 2, 3], tensors[2])
    return results


def dense(t: Translation, value: Value) -> Value:
    """A value whose elements lie in rows without a gap: itself, or a copy."""
    if value.dense:
        return value
    whole = torch.empty(value.sizes, dtype=value.memory.dtype, device="meta")
    return t.element("convert_element_type", [value], whole)


PRODUCTS: Mapping[str, Callable[[Translation, Node], Any]] = {
    "mm": mm,
    "bmm": mm,
    "convolution": convolution,
    "convolution_backward": convolution_backward,
}
