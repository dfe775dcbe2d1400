"""The steps that claims look at: drawn trees of gradients and parameters, and what a component
makes of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from clipbench import trees
from clipbench.conformance.findings import Fault, word
from clipbench.trees import Tree

# A convolution, a vector, a matrix and a scalar: the shapes a clip per unit or per tensor has to
# tell apart.
SHAPES: dict[str, tuple[int, ...]] = {
    "conv.weight": (4, 2, 3, 3),
    "conv.bias": (4,),
    "head.weight": (3, 5),
    "scale": (),
}
SIZES = (1.0, 30.0, 1e-3, 1.0, 3e3, 0.1)  # of the gradients, step by step
WARM = 30  # gradients that fill the memory of a clip


def tree(stream: str, dtype: torch.dtype, size: float = 1.0, lanes: tuple[int, ...] = ()) -> Tree:
    """A drawn tree, the same for the same stream: a gradient, or parameters."""
    draw = trees.generator("conformance", 0, stream)
    return {
        name: (size * torch.randn((*lanes, *shape), generator=draw, dtype=torch.float64)).to(dtype)
        for name, shape in SHAPES.items()
    }


def start(component: Any, params: Tree) -> Any:
    """The state before the first step."""
    return component.init(params) if hasattr(component, "init") else {}


def update(component: Any, grads: Tree, state: Any, params: Tree) -> tuple[Tree, Any]:
    """What ``update`` returns.

    :raises Fault: it is no pair of a tree of the parameters' names and a state.
    """
    returned = component.update(grads, state, params)
    if not (isinstance(returned, tuple) and len(returned) == 2):
        raise Fault(f"update returned {word(returned)}, not a pair of a tree and a state")
    result, state = returned
    if not isinstance(result, dict) or result.keys() != SHAPES.keys():
        raise Fault(f"update returned {word(result)}, not a tree of the parameters' names")
    leaves(result, "update")
    return result, state


def leaves(value: Any, path: str) -> dict[str, Tensor]:
    """Path → tensor of nested dictionaries, lists and tuples."""
    if isinstance(value, Tensor):
        return {path: value}
    if not isinstance(value, dict | list | tuple):
        raise Fault(f"{path} is a {type(value).__name__}, not a tensor")
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {
        at: leaf for key, item in items for at, leaf in leaves(item, f"{path}[{key!r}]").items()
    }


def copy(value: Any) -> Any:
    """A copy of nested dictionaries, lists and tuples, its tensors too."""
    if isinstance(value, dict):
        return {key: copy(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(copy(item) for item in value)
    return value.clone() if isinstance(value, Tensor) else value


def lane(stacked: Tree, number: int) -> Tree:
    """The tree of one lane, of a tree of many."""
    return {name: leaf[number].clone() for name, leaf in stacked.items()}


def parameters(stream: str) -> dict[str, nn.Parameter]:
    """A drawn tree as torch's optimizers take it."""
    return {name: nn.Parameter(leaf) for name, leaf in tree(stream, torch.float64).items()}


def walk(
    cls: type[Any],
    settings: Mapping[str, Any],
    dtype: torch.dtype,
    sizes: tuple[float, ...] = SIZES,
) -> Iterator[tuple[Tree, Tree, Any]]:
    """``grads, result, state`` of some steps, the state threaded; before them ``{}, {}`` and the
    first state.
    """
    component, params = cls(**settings), tree("params", dtype)
    state = start(component, copy(params))
    yield {}, {}, state
    for step, size in enumerate(sizes):
        grads = tree(f"grads {step}", dtype, size)
        result, state = update(component, copy(grads), state, copy(params))
        yield grads, result, state


def answers(
    component: Any, state: Any, gradients: list[Tree], params: Tree
) -> tuple[list[Tree], Any]:
    """What some gradients, handed one after the other, come back as; and the state after them."""
    results = []
    for grads in gradients:
        result, state = update(component, copy(grads), state, copy(params))
        results.append(result)
    return results, state


def grows(component: Any, params: Tree) -> bool:
    """Whether the state changes its form with a step, which `shapes_kept` tells; after thirty
    steps it could be of any size.
    """
    state = start(component, copy(params))
    _, after = update(component, tree("grads 0", torch.float32), state, copy(params))
    return forms(state) != forms(after)


def forms(state: Any) -> dict[str, Any]:
    """Path → shape of a state's tensors."""
    return {at: leaf.shape for at, leaf in leaves(state, "").items()}
