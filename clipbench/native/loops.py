"""Loops: element-wise statements and folds that run over the same elements become one loop, so that
a value that only the loop itself needs is never written to memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from clipbench.native.elements import C_TYPES, expression
from clipbench.native.values import Call, Element, Fold, Memory, Statement, Value

# name → where a fold begins, how two are one, the reduction of OpenMP
FOLDS = {
    "sum": ("0", "({0} + {1})", "+"),
    "prod": ("1", "({0} * {1})", "*"),
    "amax": ("-INFINITE", "larger({0}, {1})", "larger"),
    "amin": ("INFINITE", "smaller({0}, {1})", "smaller"),
}


@dataclass(frozen=True)
class Place:
    """Where a value lies, as a loop over its domain sees it."""

    memory: Memory
    steps: tuple[int, ...]
    offset: int

    @classmethod
    def of(cls, value: Value) -> Place:
        return cls(value.memory, value.steps, value.offset)


def written_by(statements: Sequence[Statement]) -> dict[Memory, list[Statement]]:
    """Memory → the statements that write it or a part of it."""
    writers: dict[Memory, list[Statement]] = {}
    for statement in statements:
        for value in statement.writes:
            memory: Memory | None = value.memory
            while memory is not None:
                writers.setdefault(memory, []).append(statement)
                memory = memory.inside[0] if memory.inside else None
    return writers


def scheduled(statements: Sequence[Statement]) -> list[list[Statement]]:
    """The statements in groups, each one loop or one call; a group needs earlier ones alone."""
    writers = written_by(statements)
    readers: dict[Statement, list[tuple[Statement, Value]]] = {one: [] for one in statements}
    levels: dict[Statement, int] = {}
    last: dict[tuple[int, ...], int] = {}
    for statement in statements:
        levels[statement] = 0
        for value in statement.reads:
            for before in writers.get(value.memory, ()):
                readers[before].append((statement, value))
                levels[statement] = max(
                    levels[statement], levels[before] + _apart(before, statement, value)
                )
        domain = statement.domain
        last[domain] = max(last.get(domain, 0), levels[statement])
    # a single number may wait for every loop
    last[()] = max(levels.values(), default=0) + 1
    # As late as it can be: what is made earlier would have to be kept until it is read.
    for statement in reversed(statements):
        if not isinstance(statement, Call):
            asked = [
                levels[reader] - _apart(statement, reader, value)
                for reader, value in readers[statement]
            ]
            levels[statement] = max(
                levels[statement], min(asked, default=last[statement.domain])
            )
    groups: dict[tuple[Any, ...], list[Statement]] = {}
    for number, statement in enumerate(statements):
        alone = isinstance(statement, Call) or not statement.domain
        key = (levels[statement], number if alone else -1, statement.domain)
        groups.setdefault(key, []).append(statement)
    position = {statement: number for number, statement in enumerate(statements)}
    return sorted(groups.values(), key=lambda group: (levels[group[0]], position[group[0]]))


def _apart(before: Statement, after: Statement, value: Value) -> int:
    """1 if a statement cannot be in the loop of one whose result it reads, else 0."""
    together = (
        isinstance(before, Element)
        and isinstance(after, Element | Fold)
        and before.domain == after.domain
        and bool(before.domain)
        and Place.of(before.result) == Place.of(value)
    )
    return 0 if together else 1


class Loop:
    """The code of one group of element-wise statements and folds."""

    def __init__(self, group: Sequence[Element | Fold], needed: set[Memory]) -> None:
        self.group, self.domain, self.needed = group, group[0].domain, needed
        self.held: dict[Place, str] = {}
        self.body: list[str] = []
        self.accesses: list[tuple[int, ...]] = []
        self.order = self._order()

    def _order(self) -> list[int]:
        """The dimensions from the outermost loop to the innermost: neighbours in memory are
        neighbours in time.
        """
        leading = next(
            (
                value
                for statement in self.group
                for value in (*statement.writes, *statement.reads)
                if value.domain == self.domain
            ),
            None,
        )
        strides = leading.steps if leading else (0,) * len(self.domain)
        return sorted(range(len(self.domain)), key=lambda dim: (-strides[dim], dim))

    def code(self) -> str:
        folds = [one for one in self.group if isinstance(one, Fold)]
        for statement in self.group:
            if isinstance(statement, Element):
                self._element(statement)
        for number, fold in enumerate(folds):
            found = self._read(fold.operand)
            name = f"f{number}"
            self.body.append(f"{name} = {FOLDS[fold.name][1].format(name, found)};")
            self.accesses.append(fold.kept)
        merged = self._merged()
        return "\n".join(self._nest(merged, folds))

    def _element(self, statement: Element) -> None:
        operands = [
            operand if isinstance(operand, str) else self._read(operand)
            for operand in statement.operands
        ]
        value = statement.result
        text = expression(statement.name, operands, statement.given, value.memory.dtype)
        name = f"v{len(self.held)}"
        self.held[Place.of(value)] = name
        self.body.append(f"const {value.memory.type} {name} = {text};")
        if value.memory in self.needed:
            self.accesses.append(value.steps)
            self.body.append((value, name))  # type: ignore[arg-type]

    def _read(self, value: Value) -> str:
        if value.memory.register:
            return value.memory.name
        place = Place.of(value)
        if (name := self.held.get(place)) is None:
            name = self.held[place] = f"v{len(self.held)}"
            self.accesses.append(value.steps)
            self.body.append((name, value))  # type: ignore[arg-type]
        return name

    def _merged(self) -> list[list[int]]:
        """The dimensions in their order, those together that every access walks through as one."""
        merged: list[list[int]] = []
        for dim in self.order:
            size = self.domain[dim]
            if merged and all(
                access[merged[-1][-1]] == access[dim] * size for access in self.accesses
            ):
                merged[-1].append(dim)
            else:
                merged.append([dim])
        return merged

    def _nest(self, merged: Sequence[Sequence[int]], folds: Sequence[Fold]) -> Iterator[str]:
        sizes = [_product(self.domain[dim] for dim in dims) for dims in merged]
        inner = merged[-1][-1]

        def at(steps: Sequence[int], offset: int, levels: int) -> str:
            parts = [
                f"i{level} * {steps[dims[-1]]}L"
                for level, dims in enumerate(merged[:levels])
                if steps[dims[-1]]
            ]
            return " + ".join([str(offset), *parts])

        whole = len(merged)
        yield "{"
        for number, fold in enumerate(folds):
            if not fold.result.memory.register:
                start = FOLDS[fold.name][0]
                kept = fold.result.elements
                yield (
                    f"for (long i = 0; i < {kept}; ++i) "
                    f"{fold.result.address}[i] = ({fold.result.memory.type}){start};"
                )
        for number, fold in enumerate(folds):
            if fold.result.memory.register:
                kind = fold.result.memory.type
                yield f"{kind} f{number} = ({kind}){FOLDS[fold.name][0]};"
        for level, size in enumerate(sizes[:-1]):
            yield f"for (long i{level} = 0; i{level} < {size}; ++i{level}) {{"
        clauses, after = [], []
        for number, fold in enumerate(folds):
            along = fold.kept[inner] == 0
            if along:
                clauses.append(f"reduction({FOLDS[fold.name][2]} : f{number})")
            if fold.result.memory.register:
                continue
            if along:
                spot = f"{fold.result.address}[{at(fold.kept, 0, whole - 1)}]"
                yield f"{fold.result.memory.type} f{number} = {spot};"
                after.append(f"{spot} = f{number};")
        yield f"#pragma omp simd {' '.join(clauses)}"
        yield f"for (long i{whole - 1} = 0; i{whole - 1} < {sizes[-1]}; ++i{whole - 1}) {{"
        for number, fold in enumerate(folds):
            if fold.kept[inner] != 0:
                yield (
                    f"{fold.result.memory.type} &f{number} = "
                    f"{fold.result.address}[{at(fold.kept, 0, whole)}];"
                )
        for line in self.body:
            if isinstance(line, str):
                yield line
            elif isinstance(line[0], str):
                name, value = line
                spot = at(value.steps, value.offset, whole)
                yield f"const {value.memory.type} {name} = {value.memory.name}[{spot}];"
            else:
                value, name = line
                spot = at(value.steps, value.offset, whole)
                yield f"{value.memory.name}[{spot}] = {name};"
        yield "}"
        yield from after
        yield "}" * (whole - 1)
        for number, fold in enumerate(folds):
            if fold.result.memory.register:
                yield f"{fold.result.memory.name} = f{number};"
        yield "}"


def _product(sizes: Iterable[int]) -> int:
    count = 1
    for size in sizes:
        count *= size
    return count


def number(statement: Element | Fold) -> str:
    """The code of a statement on single numbers."""
    kind = C_TYPES[statement.result.memory.dtype]
    if isinstance(statement, Fold):
        text = _one(statement.operand)
    else:
        operands = [
            operand if isinstance(operand, str) else _one(operand)
            for operand in statement.operands
        ]
        text = str(expression(statement.name, operands, statement.given, statement.result.memory.dtype))
    target = statement.result
    left = target.memory.name if target.memory.register else f"{target.address}[0]"
    return f"{left} = ({kind})({text});"


def _one(value: Value) -> str:
    return value.memory.name if value.memory.register else f"{value.address}[0]"
