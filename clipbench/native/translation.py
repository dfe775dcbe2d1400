"""From a traced program to statements, and from statements to the text of a function of C++."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from clipbench.native.elements import C_TYPES, EXPRESSIONS, expression, literal
from clipbench.native.loops import EXTREMES, FOLDS, Loop, Need, needs, number, scheduled
from clipbench.native.values import Call, Element, Fold, Memory, Statement, Value

ALIGNED = 64  # bytes
# a row of a product is read to the end of its last register
SPARE = 64
MOST_CONSTANTS = 2**14  # more make the compiler slow
# settings that say where a result lies, and those that an operation reads
KEYWORDS = frozenset(
    {
        *("dtype", "device", "layout", "pin_memory", "memory_format", "requires_grad"),
        *("correction", "start", "step", "descending", "stable", "dim", "output_dtype"),
    }
)
VIEWS = frozenset(
    {
        *("as_strided", "broadcast_in_dim", "collapse_view", "select", "slice_in_dim"),
        *("split_dim", "squeeze", "squeeze_", "transpose", "unsqueeze_"),
        "view_of",
    }
)


class Untranslated(Exception):  # noqa: N818 - an answer, not an error
    """A program has an operation that has no translation; the message names it."""

    def __str__(self) -> str:
        return f"no translation of {super().__str__()}"


@dataclass(frozen=True)
class Source:
    """A function of C++ for one lane: ``void NAME(const void *const *in, void *const *out)``."""

    text: str
    outputs: tuple[int, ...]
    """Bytes of every result."""
    workspace: int
    """Bytes that it works in."""


def args(node: Node) -> tuple[Any, ...]:
    """The arguments of an operation: nodes, numbers, and lists of them."""
    return node.args


def name_of(node: Node) -> str:
    """The operation of a node: ``mul``; empty if it is none."""
    schema = getattr(node.target, "_schema", None)
    return schema.name.partition("::")[2] if schema is not None else ""


def _origin(node: Any) -> Node:
    """The node whose memory a view shows."""
    while name_of(node) in VIEWS or (name_of(node) in ("copy_", "copy_to")):
        node = args(node)[0]
    return node


class Translation:
    """The statements of one program.

    :param others: the operations that are neither views, element-wise nor folds.
    """

    def __init__(self, graph: GraphModule, others: Mapping[str, Operation]) -> None:
        self.graph, self.others = graph, others
        self.values: dict[Any, Any] = {}
        self.statements: list[Statement] = []
        self.memories: list[Memory] = []
        self.inputs: list[Value] = []
        self.results: list[Value] = []
        self.packed: dict[Any, Value] = {}
        self.rewritten: set[Memory] = set()
        self.changed = {
            _origin(args(node)[0])
            for node in graph.graph.nodes
            if name_of(node) in ("copy_", "copy_to")
        }
        for node in graph.graph.nodes:
            self._node(node)

    # ------------------------------------------------------------------------------ memory

    def memory(self, dtype: torch.dtype, elements: int, register: bool = False) -> Memory:
        """A new piece of memory."""
        if dtype not in C_TYPES:
            raise Untranslated(f"numbers of {str(dtype).removeprefix('torch.')}")
        kind = "r" if register else "m"
        found = Memory(f"{kind}{len(self.memories)}", dtype, elements, register=register)
        self.memories.append(found)
        return found

    def fresh(self, tensor: Tensor, register: bool | None = None) -> Value:
        """A value in a memory of its own, for a tensor without data."""
        span = 1 + sum(
            (size - 1) * stride for size, stride in zip(tensor.size(), tensor.stride(), strict=True)
        )
        alone = tensor.numel() == 1 if register is None else register
        memory = self.memory(tensor.dtype, max(1, span), alone)
        return Value(memory, tuple(tensor.size()), tuple(tensor.stride()))

    def changes(self, node: Any) -> bool:
        """Whether something is written over a node's memory after it is made."""
        return _origin(node) in self.changed

    # --------------------------------------------------------------------------- the nodes

    def _node(self, node: Node) -> None:
        if node.op == "placeholder":
            tensor = node.meta["val"]
            memory = self.memory(tensor.dtype, max(1, tensor.numel()))
            memory.given = True
            self.values[node] = Value(memory, tuple(tensor.size()), tuple(tensor.stride()))
            self.inputs.append(self.values[node])
        elif node.op == "get_attr":
            self._constant(node, getattr(self.graph, str(node.target)))
        elif node.op == "output":
            self._output(node)
        elif node.target is operator.getitem:
            source, index = args(node)
            self.values[node] = self.values[source][index]
        else:
            self._operation(node, name_of(node))

    def _operation(self, node: Node, name: str) -> None:
        if name in VIEWS:
            self.values[node] = self._view(node)
        elif unread := node.kwargs.keys() - KEYWORDS:
            raise Untranslated(f"{name} with {', '.join(sorted(unread))}")
        elif (other := self.others.get(name)) is not None:
            self.values[node] = other(self, node)
        elif name in FOLDS:
            self._fold(node, name)
        elif name in EXPRESSIONS:
            self.values[node] = self.element(name, args(node), node.meta["val"])
        else:
            raise Untranslated(name or str(node.target))

    def _view(self, node: Node) -> Value:
        memory = self.values[args(node)[0]].memory
        view = Value.like(node.meta["val"], memory)
        inside = Value(memory, view.sizes, view.strides, view.offset).extent[1]
        first = Value(memory, (), ()).extent[0]
        if view.elements and inside - first >= memory.elements:
            raise Untranslated("a view that shows more than its memory")
        return view

    def element(self, name: str, arguments: Sequence[Any], tensor: Tensor) -> Value:
        """The value of an element-wise operation."""
        given = self._given(name, arguments, tensor)
        operands = [
            self.values[one]
            if isinstance(one, Node)
            else one
            if isinstance(one, Value)
            else literal(one, given)
            for one in arguments
            if isinstance(one, Node | Value | bool | int | float)
        ]
        if expression(name, ["x"] * len(operands), given, tensor.dtype) is None:
            raise Untranslated(f"{name} of {str(given).removeprefix('torch.')}")
        result = self.fresh(tensor)
        reads = [one for one in operands if isinstance(one, Value)]
        self.statements.append(Element(reads, [result], name, operands, given))
        return result

    def _given(self, name: str, arguments: Sequence[Any], tensor: Tensor) -> torch.dtype:
        if name == "where":
            return tensor.dtype
        for one in arguments:
            if isinstance(one, Node):
                return one.meta["val"].dtype
            if isinstance(one, Value):
                return one.memory.dtype
        return tensor.dtype

    def _fold(self, node: Node, name: str) -> None:
        operand, tensor = self.values[args(node)[0]], node.meta["val"]
        dims = args(node)[1]
        folded = range(len(operand.sizes)) if dims is None else dims
        self.values[node] = self.fold(name, operand, [int(dim) for dim in folded], tensor)

    def fold(self, name: str, operand: Value, dims: Sequence[int], tensor: Tensor) -> Value:
        """The value of a fold over some dimensions of another."""
        if name in EXTREMES and not tensor.dtype.is_floating_point:
            raise Untranslated(f"{name} of {str(tensor.dtype).removeprefix('torch.')}")
        result = self.fresh(tensor)
        strides = iter(result.strides)
        kept = [0 if dim in dims else next(strides) for dim in range(len(operand.sizes))]
        steps = tuple(stride for stride, size in zip(kept, operand.sizes, strict=True) if size != 1)
        self.statements.append(Fold([operand], [result], name, steps))
        return result

    def call(self, reads: Sequence[Value], writes: Sequence[Value], code: str) -> None:
        """Add a statement as it stands, which takes values by their addresses."""
        for value in reads:
            value.memory.register = False
        self.statements.append(Call(list(reads), list(writes), code))

    def _constant(self, node: Node, tensor: Tensor) -> None:
        """A tensor that the function found outside: all of its memory, for a view may show another
        part of it.
        """
        kind = tensor.dtype
        elements = tensor.untyped_storage().nbytes() // tensor.element_size()
        if elements > MOST_CONSTANTS:
            raise Untranslated(f"a constant of {elements} numbers")
        memory = self.memory(kind, max(1, elements))
        whole = Value(memory, (elements,), (1,))
        held = tensor.as_strided((elements,), (1,), 0).tolist()
        numbers = ", ".join(literal(one, kind) for one in held)
        self.call(
            [],
            [whole],
            f"{{ static const {memory.type} given[] = {{{numbers}}}; "
            f"memcpy({memory.name}, given, sizeof given); }}",
        )
        self.values[node] = Value.like(tensor, memory)

    def _output(self, node: Node) -> None:
        for one in _leaves(args(node)[0]):
            value, tensor = self.values[one], one.meta["val"]
            whole = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
            apart = (
                value.memory.given
                or value.memory.inside is not None
                or any(result.memory is value.memory for result in self.results)
                or value.elements != value.memory.elements
                or not value.dense
            )
            if apart:
                copy = self.fresh(whole, register=False)
                self.statements.append(
                    Element([value], [copy], "convert_element_type", [value], tensor.dtype)
                )
                value = copy
            value.memory.register = False
            self.results.append(value)

    # ------------------------------------------------------------------------- the function

    @property
    def plain(self) -> bool:
        """Whether it is made of loops alone."""
        return not any(isinstance(statement, Call) for statement in self.statements)

    def source(self, name: str) -> Source:
        """The function of this name."""
        results = {value.memory for value in self.results}
        self._forget_unread(results)
        order = needs(self.statements)
        groups = scheduled(self.statements, order)
        needed = self._needed(groups, order, results)
        lines = [self._code(group, needed) for group in groups]
        spots, workspace = self._arranged(groups, needed, results)
        given = [
            f"const {value.memory.type} *const {value.memory.name} = "
            f"(const {value.memory.type} *)in[{n}];"
            for n, value in enumerate(self.inputs)
        ]
        given += [
            f"{value.memory.type} *const {value.memory.name} = ({value.memory.type} *)out[{n}];"
            for n, value in enumerate(self.results)
        ]
        own = [
            f"{memory.type} *const {memory.name} = ({memory.type} *)(workspace + {spot});"
            for memory, spot in spots.items()
        ]
        # the whole before its parts, whatever was made first
        own += [
            f"{memory.type} *const {memory.name} = {memory.inside[0].name} + {memory.inside[1]};"
            for memory in sorted(self.memories, key=lambda one: one.depth)
            if memory.inside
        ]
        own += [f"{memory.type} {memory.name};" for memory in self.memories if memory.register]
        text = [
            f"alignas({ALIGNED}) static char workspace[{max(1, workspace)}];",
            f'extern "C" void {name}(const void *const *in, void *const *out) {{',
            *(given + own + lines),
            "}",
        ]
        outputs = tuple(value.elements * value.memory.dtype.itemsize for value in self.results)
        return Source("\n".join(text), outputs, workspace)

    def _forget_unread(self, results: set[Memory]) -> None:
        """Drop the statements that nobody reads."""
        read = {memory.root for memory in results}
        kept = []
        for statement in reversed(self.statements):
            if any(value.memory.root in read for value in statement.writes):
                kept.append(statement)
                read |= {value.memory.root for value in statement.reads}
        self.statements = kept[::-1]

    def _needed(
        self, groups: Sequence[Sequence[Statement]], order: Sequence[Need], results: set[Memory]
    ) -> set[Memory]:
        """The memories that must be there: all but those of values that only their loop reads."""
        home = {statement: number for number, group in enumerate(groups) for statement in group}
        made = {need.reads.memory for need in order if need.reads is not None}
        needed = results | {memory for memory in self.memories if memory.inside is not None}
        needed |= {memory.inside[0] for memory in self.memories if memory.inside is not None}
        for need in order:
            if need.reads is not None and home[need.before] != home[need.after]:
                needed |= {need.reads.memory, *(value.memory for value in need.before.writes)}
        for statement in self.statements:
            if isinstance(statement, Call):
                needed |= {value.memory for value in (*statement.reads, *statement.writes)}
            needed |= {value.memory for value in statement.reads if value.memory not in made}
        return needed

    def _arranged(
        self, groups: Sequence[Sequence[Statement]], needed: set[Memory], results: set[Memory]
    ) -> tuple[dict[Memory, int], int]:
        """Where in the workspace every memory of its own begins, and the bytes of it all: memories
        that are not needed at one time share a place, so that all of them stay in a cache.
        """
        life: dict[Memory, list[int]] = {}
        for at, group in enumerate(groups):
            for statement in group:
                for value in (*statement.reads, *statement.writes):
                    memory = value.memory.root
                    elsewhere = memory.given or memory.register or memory in results
                    if not elsewhere and (value.memory in needed or memory in needed):
                        life.setdefault(memory, []).append(at)
        spots: dict[Memory, int] = {}
        placed: list[tuple[int, int, int, int]] = []  # first and last group, begin and end
        most = 0
        for memory in sorted(life, key=lambda one: (min(life[one]), -one.elements)):
            first, last = min(life[memory]), max(life[memory])
            size = -(-(memory.elements + SPARE) * memory.dtype.itemsize // ALIGNED) * ALIGNED
            begin = 0
            for _, _, low, high in sorted(
                (one for one in placed if one[0] <= last and one[1] >= first),
                key=lambda one: one[2],
            ):
                if low - begin >= size:
                    break
                begin = max(begin, high)
            placed.append((first, last, begin, begin + size))
            spots[memory], most = begin, max(most, begin + size)
        return spots, most

    def _code(self, group: Sequence[Statement], needed: set[Memory]) -> str:
        first = group[0]
        if isinstance(first, Call):
            return first.code
        elementwise = [one for one in group if isinstance(one, Element | Fold)]
        if not first.domain:
            return "\n".join(number(one) for one in elementwise)
        return Loop(elementwise, needed).code()


def _leaves(given: Any) -> Iterable[Node]:
    if isinstance(given, Node):
        yield given
    else:
        for one in given:
            yield from _leaves(one)


Operation: TypeAlias = Callable[[Translation, Node], Any]
