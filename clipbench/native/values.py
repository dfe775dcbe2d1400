"""What a generated program works on: pieces of memory, values that lie in them, and statements that
write values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clipbench.native.elements import C_TYPES


@dataclass(eq=False)
class Memory:
    """A piece of memory: an argument of the program, a result, or its own."""

    name: str
    dtype: torch.dtype
    elements: int
    given: bool = False
    """Whether the caller hands it in."""
    inside: tuple[Memory, int] | None = None
    """The memory it is a part of, and from which element of it on."""
    register: bool = False
    """Whether it is one number that a variable holds."""

    @property
    def root(self) -> Memory:
        """The memory that is set aside for it."""
        return self if self.inside is None else self.inside[0].root

    @property
    def depth(self) -> int:
        """In how many others it lies."""
        return 0 if self.inside is None else 1 + self.inside[0].depth

    @property
    def type(self) -> str:
        return C_TYPES[self.dtype]


@dataclass(frozen=True)
class Value:
    """A tensor in a memory: its sizes, and the strides and the offset in elements."""

    memory: Memory
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0

    @classmethod
    def like(cls, tensor: Tensor, memory: Memory) -> Value:
        """A value with the sizes, strides and offset of a tensor without data."""
        return cls(
            memory, tuple(tensor.size()), tuple(tensor.stride()), int(tensor.storage_offset())
        )

    @property
    def elements(self) -> int:
        count = 1
        for size in self.sizes:
            count *= size
        return count

    @property
    def domain(self) -> tuple[int, ...]:
        """The sizes that are not 1."""
        return tuple(size for size in self.sizes if size != 1)

    @property
    def steps(self) -> tuple[int, ...]:
        """The strides of the dimensions of the domain."""
        return tuple(
            stride for size, stride in zip(self.sizes, self.strides, strict=True) if size != 1
        )

    @property
    def extent(self) -> tuple[int, int]:
        """The first and the last element of the memory set aside that it may touch."""
        begin, memory = self.offset, self.memory
        while memory.inside is not None:
            begin, memory = begin + memory.inside[1], memory.inside[0]
        span = sum((n - 1) * stride for n, stride in zip(self.domain, self.steps, strict=True))
        return begin, begin + span

    @property
    def dense(self) -> bool:
        """Whether the elements lie in rows without a gap."""
        expected = 1
        for size, stride in zip(reversed(self.domain), reversed(self.steps), strict=True):
            if stride != expected:
                return False
            expected *= size
        return True

    @property
    def address(self) -> str:
        """The address of the first element, in C++."""
        name = self.memory.name
        return f"({name} + {self.offset})" if self.offset else name


@dataclass(eq=False)
class Statement:
    """What is done to some values, and the values that it writes."""

    reads: list[Value]
    writes: list[Value]

    @property
    def domain(self) -> tuple[int, ...]:
        """The sizes of the loop that it needs."""
        return ()


@dataclass(eq=False)
class Element(Statement):
    """One element of a value from the elements of others at the same place."""

    name: str = ""
    operands: Sequence[Value | str] = ()
    """Values, and numbers as C++ has them."""
    given: torch.dtype = torch.float32

    @property
    def result(self) -> Value:
        return self.writes[0]

    @property
    def domain(self) -> tuple[int, ...]:
        return self.result.domain


@dataclass(eq=False)
class Fold(Statement):
    """A sum, a product or an extreme over some dimensions of a value."""

    name: str = ""
    kept: tuple[int, ...] = ()
    """The strides of the result on the domain of what is folded: 0 where it is folded."""

    @property
    def operand(self) -> Value:
        return self.reads[0]

    @property
    def result(self) -> Value:
        return self.writes[0]

    @property
    def domain(self) -> tuple[int, ...]:
        return self.operand.domain


@dataclass(eq=False)
class Call(Statement):
    """A statement of C++ as it stands."""

    code: str = ""
