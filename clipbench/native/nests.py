"""Loops around one statement, and the elements that it names, as text."""

from __future__ import annotations

from collections.abc import Sequence

from clipbench.native.values import Value


def loops(sizes: Sequence[int], body: str) -> str:
    """Loops over some sizes around a statement, whose indices are ``i0``, ``i1`` and so on."""
    heads = "".join(f"for (long i{n} = 0; i{n} < {size}; ++i{n}) " for n, size in enumerate(sizes))
    return f"{heads}{{ {body} }}"


def at(value: Value, indices: Sequence[str]) -> str:
    """One element of a value, in C++, by the indices of its dimensions."""
    parts = [
        f"({index}) * {stride}L"
        for index, stride in zip(indices, value.strides, strict=True)
        if stride
    ]
    return f"{value.memory.name}[{' + '.join([str(value.offset), *parts])}]"


def numbered(count: int) -> list[str]:
    """The names of so many indices."""
    return [f"i{number}" for number in range(count)]
