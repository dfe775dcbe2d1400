"""Loops: element-wise statements and folds that run over the same elements become one loop, so that
a value that only the loop itself needs is never written to memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from clipbench.native.elements import C_TYPES, expression
from clipbench.native.values import Call, Element, Fold, Memory, Statement, Value

# name → where a fold begins, how two are one, and the reduction of OpenMP
FOLDS = {
    "sum": ("0", "{0} + {1}", "+"),
    "prod": ("1", "{0} * {1}", "*"),
    "amax": ("-INFINITE", "larger({0}, {1})", "max"),
    "amin": ("INFINITE", "smaller({0}, {1})", "min"),
}
# Of an extreme along a register: the extreme of the numbers, and beside it whether any is NaN. A
# comparison that asks for both at once is not always put into registers.
LONG = 256  # numbers of one sum
EXTREMES = {"amax": "{1} > {0} ? {1} : {0}", "amin": "{1} < {0} ? {1} : {0}"}


@dataclass(frozen=True)
class Place:
    """Where a value lies, as a loop over its domain sees it."""

    memory: Memory
    steps: tuple[int, ...]
    offset: int

    @classmethod
    def of(cls, value: Value) -> Place:
        return cls(value.memory, value.steps, value.offset)


@dataclass(frozen=True)
class Need:
    """One statement must not come before another."""

    before: Statement
    after: Statement
    apart: int
    """1 if both cannot be in one loop, else 0."""
    reads: Value | None
    """What the later one reads of the earlier one's results."""


def needs(statements: Sequence[Statement]) -> list[Need]:
    """What must come before what: who reads a memory comes after who wrote there before, and who
    writes it again after both.
    """
    found: list[Need] = []
    history: dict[Memory, list[tuple[Statement, Value, bool]]] = {}
    for statement in statements:
        accesses = [(value, False) for value in statement.reads]
        accesses += [(value, True) for value in statement.writes]
        for value, writes in accesses:
            for before, other, wrote in history.get(value.memory.root, ()):
                if (wrote or writes) and overlap(value, other):
                    close = not writes and _together(before, statement, value)
                    reads = None if writes else value
                    found.append(Need(before, statement, 0 if close else 1, reads))
        for value, writes in accesses:
            history.setdefault(value.memory.root, []).append((statement, value, writes))
    return found


def overlap(one: Value, other: Value) -> bool:
    """Whether two values may share an element of one memory."""
    (low, high), (least, most) = one.extent, other.extent
    return low <= most and least <= high


def scheduled(statements: Sequence[Statement], order: Sequence[Need]) -> list[list[Statement]]:
    """The statements in groups, each one loop or one call; a group needs earlier ones alone."""
    levels = dict.fromkeys(statements, 0)
    before: dict[Statement, list[Need]] = {one: [] for one in statements}
    after: dict[Statement, list[Need]] = {one: [] for one in statements}
    for need in order:
        before[need.after].append(need)
        after[need.before].append(need)
    last: dict[tuple[int, ...], int] = {}
    for statement in statements:
        levels[statement] = max(
            (levels[need.before] + need.apart for need in before[statement]), default=0
        )
        domain = statement.domain
        last[domain] = max(last.get(domain, 0), levels[statement])
    # a single number may wait for every loop
    last[()] = max(levels.values(), default=0) + 1
    # As late as it can be: what is made earlier would have to be kept until it is read.
    for statement in reversed(statements):
        if not isinstance(statement, Call):
            bound = min(
                (levels[need.after] - need.apart for need in after[statement]),
                default=last[statement.domain],
            )
            levels[statement] = max(levels[statement], bound)
    groups: dict[tuple[Any, ...], list[Statement]] = {}
    position = {statement: number for number, statement in enumerate(statements)}
    for statement in statements:
        alone = isinstance(statement, Call) or not statement.domain
        key = (levels[statement], position[statement] if alone else -1, statement.domain)
        groups.setdefault(key, []).append(statement)
    return sorted(groups.values(), key=lambda group: (levels[group[0]], position[group[0]]))


def _together(before: Statement, after: Statement, value: Value) -> bool:
    """Whether a statement can be in the loop of one whose result it reads."""
    return (
        isinstance(before, Element)
        and isinstance(after, Element | Fold)
        and before.domain == after.domain
        and bool(before.domain)
        and Place.of(before.result) == Place.of(value)
    )


class Loop:
    """One group of element-wise statements and folds, which run over the same elements."""

    def __init__(self, group: Sequence[Element | Fold], needed: set[Memory]) -> None:
        self.group, self.domain, self.needed = group, group[0].domain, needed
        self.names = 0
        self.held: dict[Place, str] = {}
        self.body: list[str | Move] = []
        self.accesses: list[tuple[int, ...]] = []
        self.order = self._order()

    def _name(self) -> str:
        self.names += 1
        return f"v{self.names}"

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
        """The loop, in C++."""
        for statement in self.group:
            if isinstance(statement, Element):
                self._element(statement)
        folds = [
            Folding(f"f{number}", fold, self._read(fold.operand))
            for number, fold in enumerate(one for one in self.group if isinstance(one, Fold))
        ]
        self.accesses += [one.fold.kept for one in folds]
        return "\n".join(self._nest(self._merged(), folds))

    def _element(self, statement: Element) -> None:
        operands = [
            operand if isinstance(operand, str) else self._read(operand)
            for operand in statement.operands
        ]
        value = statement.result
        text = expression(statement.name, operands, statement.given, value.memory.dtype)
        name = self._name()
        self.held[Place.of(value)] = name
        self.body.append(f"const {value.memory.type} {name} = {text};")
        if value.memory in self.needed:
            self.accesses.append(value.steps)
            self.body.append(Move(name, value, writes=True))

    def _read(self, value: Value) -> str:
        if value.memory.register or value.elements == 1:
            return _one(value)
        place = Place.of(value)
        if (name := self.held.get(place)) is None:
            name = self.held[place] = self._name()
            self.accesses.append(value.steps)
            self.body.append(Move(name, value, writes=False))
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

    def _nest(self, merged: Sequence[Sequence[int]], folds: Sequence[Folding]) -> Iterator[str]:
        """The loops, around the body; only the innermost runs in registers."""
        sizes = [_product(self.domain[dim] for dim in dims) for dims in merged]
        leaders = [dims[-1] for dims in merged]
        outer = len(merged) - 1
        along = [one for one in folds if one.fold.kept[leaders[-1]] == 0]
        across = [one for one in folds if one.fold.kept[leaders[-1]] != 0]
        yield "{"
        for one in folds:
            yield from one.beginning()
        for level, size in enumerate(sizes[:-1]):
            yield f"for (long i{level} = 0; i{level} < {size}; ++i{level}) {{"
        for one in along:
            yield from one.before(leaders[:-1])
        yield f"#pragma omp simd {' '.join(clause for one in along for clause in one.clauses())}"
        yield f"for (long i{outer} = 0; i{outer} < {sizes[-1]}; ++i{outer}) {{"
        for one in across:
            yield f"{one.type} &{one.name} = {one.spot(leaders)};"
        yield from (line if isinstance(line, str) else line.code(leaders) for line in self.body)
        for one in along:
            yield from one.along()
        yield from (one.across() for one in across)
        yield "}"
        for one in along:
            yield from one.after(leaders[:-1])
        yield "}" * outer
        for one in folds:
            yield from one.end()
        yield "}"


@dataclass(frozen=True)
class Folding:
    """A fold in a loop: the variable that holds it, and the one that it folds."""

    name: str
    fold: Fold
    operand: str

    @property
    def type(self) -> str:
        """The type of what holds it."""
        return "double" if self.wide else self.fold.result.memory.type

    @property
    def single(self) -> bool:
        """Whether its result is one number."""
        return self.fold.result.elements == 1

    @property
    def wide(self) -> bool:
        """Whether it is a sum of so many numbers, one after the other, that float32 would lose
        digits: torch adds them in blocks.
        """
        folded = self.fold.operand.elements // max(1, self.fold.result.elements)
        plain = self.fold.name == "sum" and self.fold.result.memory.type == "float"
        return plain and folded >= LONG and not self.single and self.fold.result.dense

    @property
    def extreme(self) -> bool:
        return self.fold.name in EXTREMES

    @property
    def held(self) -> str:
        """The address of what holds the results, if there are several."""
        return f"{self.name}_wide" if self.wide else self.fold.result.address

    def spot(self, leaders: Sequence[int]) -> str:
        """The result that belongs to the indices of the loops."""
        steps = self.fold.kept
        parts = [f"i{level} * {steps[dim]}L" for level, dim in enumerate(leaders) if steps[dim]]
        return f"{self.held}[{' + '.join(['0', *parts])}]"

    def beginning(self) -> Iterator[str]:
        """What stands before all loops."""
        start, count = f"({self.type}){FOLDS[self.fold.name][0]}", self.fold.result.elements
        if self.single:
            yield f"{self.type} {self.name} = {start};"
            return
        if self.wide:
            yield f"alignas(64) static double {self.held}[{count}];"
        yield f"for (long i = 0; i < {count}; ++i) {self.held}[i] = {start};"

    def clauses(self) -> Iterator[str]:
        """What OpenMP must know of it, if it goes along the innermost loop."""
        yield f"reduction({FOLDS[self.fold.name][2]} : {self.name})"
        if self.extreme:
            yield f"reduction(+ : {self.name}_nan)"

    def before(self, leaders: Sequence[int]) -> Iterator[str]:
        """What stands before the innermost loop, if the fold goes along it."""
        if not self.single:
            yield f"{self.type} {self.name} = {self.spot(leaders)};"
        if self.extreme:
            yield f"int32_t {self.name}_nan = {self.name} != {self.name} ? 1 : 0;"

    def along(self) -> Iterator[str]:
        """What stands in the innermost loop, if the fold goes along it."""
        text = EXTREMES.get(self.fold.name, FOLDS[self.fold.name][1])
        yield f"{self.name} = {text.format(self.name, self.operand)};"
        if self.extreme:
            yield f"{self.name}_nan += {self.operand} != {self.operand} ? 1 : 0;"

    def across(self) -> str:
        """What stands in the innermost loop, if the fold goes along another."""
        return f"{self.name} = {FOLDS[self.fold.name][1].format(self.name, self.operand)};"

    def after(self, leaders: Sequence[int]) -> Iterator[str]:
        """What stands behind the innermost loop, if the fold goes along it."""
        if self.extreme:
            yield f'if ({self.name}_nan) {self.name} = ({self.type})__builtin_nan("");'
        if not self.single:
            yield f"{self.spot(leaders)} = {self.name};"

    def end(self) -> Iterator[str]:
        """What stands behind all loops."""
        result = self.fold.result
        if self.single:
            target = result.memory.name if result.memory.register else f"{result.address}[0]"
            yield f"{target} = {self.name};"
        if self.wide:
            yield (
                f"for (long i = 0; i < {result.elements}; ++i) "
                f"{result.address}[i] = (float){self.held}[i];"
            )


@dataclass(frozen=True)
class Move:
    """A variable and the memory that it comes from or goes to."""

    name: str
    value: Value
    writes: bool

    def code(self, leaders: Sequence[int]) -> str:
        """The statement, in C++.

        :param leaders: of each loop the dimension whose stride it walks by.
        """
        steps = self.value.steps
        parts = [f"i{level} * {steps[dim]}L" for level, dim in enumerate(leaders) if steps[dim]]
        held = f"{self.value.memory.name}[{' + '.join([str(self.value.offset), *parts])}]"
        if self.writes:
            return f"{held} = {self.name};"
        return f"const {self.value.memory.type} {self.name} = {held};"


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
            operand if isinstance(operand, str) else _one(operand) for operand in statement.operands
        ]
        result = statement.result.memory.dtype
        text = str(expression(statement.name, operands, statement.given, result))
    target = statement.result
    left = target.memory.name if target.memory.register else f"{target.address}[0]"
    return f"{left} = ({kind})({text});"


def _one(value: Value) -> str:
    return value.memory.name if value.memory.register else f"{value.address}[0]"
