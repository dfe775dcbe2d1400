"""The programs of lanes: a module as a function of one flat vector of weights, and the update of a
structure as a function of its lanes' numbers.

Traced for some number of lanes, each becomes a program; `Programs` remembers those of one workload.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from clipbench import feed, step, trees
from clipbench.engines import program
from clipbench.engines.program import Nested, NoLanes
from clipbench.engines.structure import PLAIN, Lane, Pass, Structure
from clipbench.measures import REMEMBERED
from clipbench.native import Function
from clipbench.trees import Tree
from clipbench.vocabulary import APART, UPDATE


class Model:
    """A workload's module as a function of one flat vector of trained weights, and of the
    tensors that are not trained.
    """

    def __init__(self, workload: Any, dtype: torch.dtype, device: str, how: Pass = PLAIN) -> None:
        self.workload, self.how, self.dtype = workload, how, dtype
        self.weighs = hasattr(workload, "weight")
        if reason := feed.sparse_at_first(workload):
            raise NoLanes(f'workload "{workload.name}": {reason}')
        if how.pieces and self.weighs:
            raise NoLanes(
                f'workload "{workload.name}" weighs its examples, which a clip on some of them '
                f"knows in the loop only"
            )
        self.module = feed.model(workload, 0, dtype, device, how.mixed)
        named = dict(self.module.named_parameters())
        self.shapes = {name: param.shape for name, param in named.items() if param.requires_grad}
        self.fixed = [name for name, param in named.items() if not param.requires_grad] + [
            n for n, _ in self.module.named_buffers()
        ]
        self.sizes = [size.numel() for size in self.shapes.values()]
        self.elements = sum(self.sizes)

    def tree(self, flat: Tensor) -> Tree:
        """The named weights in one flat vector: views of it."""
        return {
            name: leaf.view(size)
            for (name, size), leaf in zip(self.shapes.items(), flat.split(self.sizes), strict=True)
        }

    def flat(self, module: nn.Module) -> Tensor:
        """The trained weights of a module like this one, as one vector."""
        params = dict(module.named_parameters())
        return torch.cat([params[name].detach().reshape(-1) for name in self.shapes])

    def flat_grad(self, module: nn.Module) -> Tensor:
        """The gradients of the trained weights of a module like this one, as one vector; zeros
        for a weight without one.
        """
        params = (dict(module.named_parameters())[name] for name in self.shapes)
        return torch.cat(
            [
                (torch.zeros_like(param) if param.grad is None else param.grad).reshape(-1)
                for param in params
            ]
        )

    def kept(self, module: nn.Module) -> list[Tensor]:
        """What is not trained in a module like this one: frozen weights and buffers."""
        held = dict(module.named_parameters()) | dict(module.named_buffers())
        return [held[name].detach() for name in self.fixed]

    def output(self, flat: Tensor, inputs: Tensor, fixed: Sequence[Tensor]) -> Tensor:
        weights = self.tree(flat) | dict(zip(self.fixed, fixed, strict=True))
        return torch.func.functional_call(self.module, weights, (inputs,))

    def loss(
        self, flat: Tensor, inputs: Tensor, targets: Tensor, fixed: Sequence[Tensor] = ()
    ) -> Tensor:
        if self.how.parts == 1:
            return feed.loss_of(self.workload, self.output(flat, inputs, fixed), targets)
        losses = [
            share * feed.loss_of(self.workload, self.output(flat, some, fixed), wanted)
            for share, some, wanted in feed.parts(self.workload, inputs, targets, self.how.parts)
        ]
        return torch.stack(losses).sum()

    def gradient(
        self, flat: Tensor, inputs: Tensor, targets: Tensor, fixed: Sequence[Tensor] = ()
    ) -> tuple[Tensor, Tensor]:
        """The gradient and the loss of a batch; pieces × elements and the mean loss if every piece
        is taken by itself.
        """
        one = torch.func.grad_and_value(self.loss)
        if self.how.parts > 1 and self.weighs:
            return self._weighed_gradient(flat, inputs, targets, fixed)
        if not self.how.pieces:
            return one(flat, inputs, targets, fixed)
        apart = (tensor.unflatten(0, (self.how.pieces, -1)) for tensor in (inputs, targets))
        grads, losses = torch.vmap(lambda some, wanted: one(flat, some, wanted, fixed))(*apart)
        return grads, losses.mean()

    def _weighed_gradient(
        self, flat: Tensor, inputs: Tensor, targets: Tensor, fixed: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The gradient and the loss of a batch: the sums over its parts, each times the weight
        that the workload gives it.
        """

        def loss(flat: Tensor, some: Tensor, wanted: Tensor) -> Tensor:
            return feed.loss_of(self.workload, self.output(flat, some, fixed), wanted)

        pieces = list(zip(inputs.chunk(self.how.parts), targets.chunk(self.how.parts), strict=True))
        weights = torch.stack([feed.weight(self.workload, wanted) for _, wanted in pieces])
        total = torch.zeros_like(flat), flat.new_zeros(())
        for share, piece in zip((weights / weights.sum()).unbind(), pieces, strict=True):
            # A part whose share is 0 may have a loss and a gradient of NaN.
            weighed = (
                torch.where(share == 0, 0.0, share * one)
                for one in torch.func.grad_and_value(loss)(flat, *piece)
            )
            total = tuple(
                (so_far + one).to(flat.dtype) for so_far, one in zip(total, weighed, strict=True)
            )  # type: ignore[assignment]
        return total

    def like_gradient(self, weights: Tensor, inputs: Tensor) -> Tensor:
        """Zeros in the shape of the gradient of many lanes, for weights of lanes × elements and
        their inputs.
        """
        return (
            weights.new_zeros(len(weights), self.how.pieces, self.elements)
            if self.how.pieces
            else torch.zeros_like(weights)
        )


@lru_cache(maxsize=8)
def _model(workload: Any, dtype: torch.dtype, device: str, how: Pass) -> Model:
    return Model(workload, dtype, device, how)


class Programs:
    """The programs of one workload, batch size, dtype and device, traced when they are first
    needed, and then remembered.
    """

    def __init__(self, workload: Any, dtype: torch.dtype, device: str, how: Pass = PLAIN) -> None:
        self.model = _model(workload, dtype, device, how)
        self.what = f'workload "{workload.name}"'
        self.grain: dict[Structure | None, int] = {}  # None is the model's own
        # how the leaves of a state hang together
        self.states: dict[Structure, pytree.TreeSpec] = {}
        self.traced: dict[tuple[Any, ...], GraphModule] = {}
        self.native: dict[Any, Function] = {}  # what is built for this machine

    def gradient(self, *arguments: Nested) -> GraphModule:
        """``(weights, inputs, targets, fixed) → (gradients, losses)``, of all lanes."""
        return self._program(
            "gradient", lambda: torch.vmap(self.model.gradient), arguments, self.what
        )

    def output(self, *arguments: Nested) -> GraphModule:
        """``(weights, inputs, fixed) → outputs``, of all lanes, as one evaluates."""

        def evaluated() -> Callable[..., Any]:
            self.model.module.eval()
            return torch.vmap(
                lambda flat, inputs, fixed=(): torch.atleast_1d(
                    self.model.output(flat, inputs, fixed)
                )
            )

        try:
            return self._program("output", evaluated, arguments, self.what)
        finally:
            self.model.module.train()

    def begun(self, structure: Structure, weights: Tensor, lane: Lane) -> Lane:
        """The lanes of one structure, whose numbers are given, with their state before the first
        step.
        """

        def state_of(flat: Tensor, optimizer: Iterable[Any], clip: Iterable[Any]) -> Any:
            pair = structure.components(optimizer, clip)
            return [
                component.init(self._tree_for(component, flat))
                if hasattr(component, "init")
                else {}
                for component in pair
            ]

        try:
            # In the dtypes that plain numbers give: as tensors of float64 they may spread to a
            # state that is none.
            numbers = (
                [float(number[0]) for number in some] for some in (lane.optimizer, lane.clip)
            )
            plain = pytree.tree_leaves(state_of(weights[0], *numbers))
            state = torch.vmap(state_of)(weights, lane.optimizer, lane.clip)
        except Exception as error:
            raise NoLanes(
                f'"{structure.label}" cannot begin in lanes ({" ".join(str(error).split())[:200]})'
            ) from error
        leaves, self.states[structure] = pytree.tree_flatten(state)
        state = tuple(
            leaf.to(dtype=one.dtype, copy=True, memory_format=torch.contiguous_format)
            for leaf, one in zip(leaves, plain, strict=True)
        )
        return lane._replace(
            state=state, memory=tuple(torch.full_like(weights, math.nan) for _ in REMEMBERED)
        )

    def update(self, structure: Structure, *arguments: Nested, wide: bool = False) -> GraphModule:
        """``(weights, gradients, lane) → (weights, products, lane)``, of the lanes of one
        structure, which have begun.

        :param wide: whether the products are taken in float64.
        """
        return self._program(
            (structure, "update", wide),
            lambda: self.step_function(structure, wide=wide),
            arguments,
            f'"{structure.label}"',
        )

    def step_function(
        self, structure: Structure, *, one_pass: bool = False, wide: bool = False
    ) -> Callable[..., tuple[Any, ...]]:
        """``(weights, gradients, lane) → (weights, products, lane)``, to be traced.

        :param one_pass: whether each product is a plain sum or maximum, for a compiler.
        :param wide: whether the products are taken in float64.
        """
        touched = True

        def one(flat: Tensor, grads: Tensor, lane: Lane) -> tuple[Any, ...]:
            optimizer, clip = structure.components(lane.optimizer, lane.clip)
            states = pytree.tree_unflatten(lane.state, self.states[structure])

            def clipped_of(vector: Tensor) -> Tensor:
                nonlocal touched
                seen = self._tree_for(clip, vector)
                result, states[1] = clip.update(seen, states[1], self._tree_for(clip, flat))
                touched = result is not seen
                return self._flat_of(result).to(vector.dtype) if touched else vector

            def direction_of(vector: Tensor) -> Tensor:
                tree, states[0] = optimizer.update(
                    self._tree_for(optimizer, vector), states[0], self._tree_for(optimizer, flat)
                )
                return self._flat_of(tree).to(flat.dtype)

            if structure.on == UPDATE:
                raw, handed = grads, direction_of(grads)
                clipped = direction = clipped_of(handed)
            else:
                raw = handed = grads.mean(0) if structure.on in APART else grads
                clipped = (
                    torch.vmap(clipped_of)(grads).mean(0)
                    if structure.on in APART
                    else clipped_of(grads)
                )
                direction = direction_of(clipped)
            leaves, after = pytree.tree_flatten(states)
            if after != self.states[structure]:
                raise ValueError("the state changes its form from step to step")
            # A lane's numbers are tensors of float64, which a rule may have spread to what it
            # returns.
            state = tuple(
                leaf.to(before.dtype) for leaf, before in zip(leaves, lane.state, strict=True)
            )
            return flat - lane.lr * direction, raw, handed, clipped, state

        def stepped(
            weights: Tensor, grads: Tensor, lane: Lane
        ) -> tuple[Tensor, tuple[Tensor, ...], Lane]:
            moved, raw, handed, clipped, state = torch.vmap(one)(weights, grads, lane)
            before_clip = handed if structure.on == UPDATE else None
            seen = raw, before_clip, clipped if touched else None, lane.memory
            products, memory = step.products(weights, moved, *seen, one_pass=one_pass, wide=wide)
            return moved, products, lane._replace(state=state, memory=memory)

        return stepped

    def _tree_for(self, component: Any, flat: Tensor) -> Tree:
        """The tree that a component is handed for a flat vector: the vector whole if the
        component is ``flat``, else tensors.
        """
        return {"": flat} if getattr(component, "flat", False) else self.model.tree(flat)

    def _flat_of(self, tree: Tree) -> Tensor:
        """A component's tree as one flat vector, in the order of the model's tensors, not of the
        tree.

        :raises ValueError: the tree has other names than the parameters.
        """
        if tree.keys() not in ({""}, self.model.shapes.keys()):
            raise ValueError(
                f"a tree of {', '.join(map(repr, tree))} does not have the parameters' names"
            )
        return (
            tree[""]
            if "" in tree
            else trees.flatten({name: tree[name] for name in self.model.shapes})
        )

    def _program(
        self,
        key: Any,
        build: Callable[[], Callable[..., Any]],
        arguments: Sequence[Nested],
        what: str,
    ) -> GraphModule:
        key = (key, *(tensor.shape for tensor in program.flat(arguments)))
        if (traced := self.traced.get(key)) is None:
            traced = self.traced[key] = program.trace(build(), arguments, what)
        return traced


@lru_cache(maxsize=16)
def programs(workload: Any, dtype: torch.dtype, device: str, how: Pass = PLAIN) -> Programs:
    """The programs of this process."""
    return Programs(workload, dtype, device, how)
