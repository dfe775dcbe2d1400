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
from clipbench.native.loops import FOLDS, Loop, number, scheduled, written_by
from clipbench.native.values import Call, Element, Fold, Memory, Statement, Value

ALIGNED = 64  # bytes
# a row of a product is read to the end of its last register
SPARE = 64
VIEWS = frozenset(
    "as_strided broadcast_in_dim collapse_view select slice_in_dim split_dim squeeze transpose "
    "view_of".split()
)


class Untranslated(Exception):  # noqa: N818 - an answer, not an error
    """A program has an operation that has no translation; the message names it."""


@dataclass(frozen=True)
class Source:
    """A function of C++ for one lane: ``void NAME(const void *const *in, void *const *out)``."""

    text: str
    inputs: tuple[int, ...]
    """Bytes of every argument."""
    outputs: tuple[int, ...]
    """Bytes of every result."""
    workspace: int
    """Bytes that it works in."""


def name_of(node: Node) -> str:
    """The operation of a node: ``mul``; empty if it is none."""
    schema = getattr(node.target, "_schema", None)
    return schema.name.partition("::")[2] if schema is not None else ""


class Translation:
    """The statements of one program.

    :param others: the operations that are neither views, element-wise nor folds.
    """

    def __init__(self, graph: GraphModule, others: Mapping[str, Operation]) -> None:
        self.graph, self.others = graph, others
        self.values: dict[Node, Any] = {}
        self.statements: list[Statement] = []
        self.memories: list[Memory] = []
        self.inputs: list[Value] = []
        self.results: list[Value] = []
        self.packed: dict[Any, Value] = {}
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
            (size - 1) * stride
            for size, stride in zip(tensor.size(), tensor.stride(), strict=True)
        )
        if not tensor.numel():
            raise Untranslated("a tensor of no elements")
        alone = tensor.numel() == 1 if register is None else register
        memory = self.memory(tensor.dtype, span, alone)
        return Value(memory, tuple(tensor.size()), tuple(tensor.stride()))

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
            source, index = node.args
            self.values[node] = self.values[source][index]  # type: ignore[index]
        else:
            self._operation(node, name_of(node))

    def _operation(self, node: Node, name: str) -> None:
        if name in VIEWS:
            self.values[node] = Value.like(node.meta["val"], self.values[node.args[0]].memory)
        elif (other := self.others.get(name)) is not None:
            self.values[node] = other(self, node)
        elif name in FOLDS:
            self._fold(node, name)
        elif name in EXPRESSIONS:
            self.values[node] = self.element(name, node.args, node.meta["val"])
        else:
            raise Untranslated(name or str(node.target))

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
        operand, tensor = self.values[node.args[0]], node.meta["val"]
        dims = node.args[1]
        folded = range(len(operand.sizes)) if dims is None else dims
        self.values[node] = self.fold(name, operand, [int(dim) for dim in folded], tensor)

    def fold(self, name: str, operand: Value, dims: Sequence[int], tensor: Tensor) -> Value:
        """The value of a fold over some dimensions of another."""
        result = self.fresh(tensor)
        strides = iter(result.strides)
        kept = [
            0 if dim in dims else next(strides) for dim in range(len(operand.sizes))
        ]
        steps = tuple(
            stride for stride, size in zip(kept, operand.sizes, strict=True) if size != 1
        )
        self.statements.append(Fold([operand], [result], name, steps))
        return result

    def call(self, reads: Sequence[Value], writes: Sequence[Value], code: str) -> None:
        """Add a statement as it stands, which takes values by their addresses."""
        for value in reads:
            value.memory.register = False
        self.statements.append(Call(list(reads), list(writes), code))

    def _constant(self, node: Node, tensor: Tensor) -> None:
        value = self.fresh(tensor.contiguous(), register=False)
        numbers = ", ".join(literal(one, tensor.dtype) for one in tensor.reshape(-1).tolist())
        self.call(
            [],
            [value],
            f"{{ static const {value.memory.type} given[] = {{{numbers}}}; "
            f"memcpy({value.address}, given, sizeof given); }}",
        )
        self.values[node] = value

    def _output(self, node: Node) -> None:
        for one in _leaves(node.args[0]):
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

    def source(self, name: str) -> Source:
        """The function of this name."""
        results = {value.memory for value in self.results}
        groups = scheduled(self.statements)
        home = {statement: n for n, group in enumerate(groups) for statement in group}
        writers = written_by(self.statements)
        needed = set(results)
        for statement in self.statements:
            for value in statement.reads:
                if any(home[one] != home[statement] for one in writers.get(value.memory, ())):
                    needed.add(value.memory)
        for memory in self.memories:
            if memory.inside is not None:
                needed.add(memory)
        lines = [self._code(group, needed) for group in groups]
        own = [
            memory
            for memory in self.memories
            if not (memory.given or memory.register or memory.inside or memory in results)
            and (memory in needed or any(memory.name in line for line in lines))
        ]
        declared = [
            f"const {value.memory.type} *const {value.memory.name} = "
            f"(const {value.memory.type} *)in[{n}];"
            for n, value in enumerate(self.inputs)
        ]
        declared += [
            f"{value.memory.type} *const {value.memory.name} = ({value.memory.type} *)out[{n}];"
            for n, value in enumerate(self.results)
        ]
        # the whole before its parts, whatever was made first
        parts = sorted(
            (memory for memory in self.memories if memory.inside), key=lambda one: one.depth
        )
        declared += [
            f"{memory.type} *const {memory.name} = {memory.inside[0].name} + {memory.inside[1]};"
            for memory in parts
        ]
        declared += [
            f"{memory.type} {memory.name};" for memory in self.memories if memory.register
        ]
        fixed = [
            f"alignas({ALIGNED}) static {memory.type} {memory.name}[{memory.elements + SPARE}];"
            for memory in own
        ]
        return Source(
            "\n".join(
                [
                    *fixed,
                    f'extern "C" void {name}(const void *const *in, void *const *out) {{',
                    *declared,
                    *lines,
                    "}",
                ]
            ),
            tuple(value.elements * value.memory.dtype.itemsize for value in self.inputs),
            tuple(value.elements * value.memory.dtype.itemsize for value in self.results),
            sum((memory.elements + SPARE) * memory.dtype.itemsize for memory in own),
        )

    def _code(self, group: Sequence[Statement], needed: set[Memory]) -> str:
        first = group[0]
        if isinstance(first, Call):
            return first.code
        if not first.domain:  # type: ignore[attr-defined]
            return "\n".join(number(one) for one in group)  # type: ignore[arg-type]
        return Loop(group, needed).code()  # type: ignore[arg-type]


def _leaves(given: Any) -> Iterable[Node]:
    if isinstance(given, Node):
        yield given
    else:
        for one in given:
            yield from _leaves(one)


Operation: TypeAlias = Callable[[Translation, Node], Any]
