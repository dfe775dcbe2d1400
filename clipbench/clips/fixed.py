"""Clips whose threshold stands still."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from clipbench import trees
from clipbench.registry import Positive, clip
from clipbench.trees import Tree

State = dict[str, Any]

EPSILON = 1e-6  # torch's guard against 0/0: a norm equal to the threshold is still scaled, by 1 - 1e-6/norm


@clip("none")
class Unclipped:
    r"""Leave the gradient as it is: the arm that every clip is compared with.

    .. math:: g \leftarrow g

    **Shapes**: any. **Returns** the very tree it was given, so that ``is`` tells that nothing changed. **Errors**: none.

    >>> grads = {"w": torch.tensor([3.0, 4.0])}
    >>> Unclipped().update(grads, {}, {})[0] is grads
    True
    """

    flat = True

    def update(self, grads: Tree, state: State, params: Tree) -> tuple[Tree, State]:
        return grads, state


@clip("value")
class Value:
    r"""Cut every element of the gradient back to ``[-c, c]``: its direction changes, its signs do not.

    .. math:: g_i \leftarrow \max(-c, \min(c, g_i))

    :param max_value: c, in units of the gradient, (0, ∞]; .01 to 1 are usual.

    **Shapes**: any, kept. **Errors**: ``clip_`` raises ``RuntimeError`` where no parameter has a gradient, as torch does.
    An infinite element becomes ±c, so that an overflow is masked; NaN stays NaN.

    **Source**: Mikolov 2012 (thesis, truncated gradients); ``torch.nn.utils.clip_grad_value_``.

    >>> grads = {"w": torch.tensor([3.0, -0.5, float("inf"), float("nan")])}
    >>> Value(max_value=1.0).update(grads, {}, {})[0]["w"]
    tensor([ 1.0000, -0.5000,  1.0000,     nan])
    """

    flat = True

    max_value: Positive

    def update(self, grads: Tree, state: State, params: Tree) -> tuple[Tree, State]:
        limit = trees.like(self.max_value, grads)
        return trees.map(lambda grad: torch.clamp(grad, -limit, limit), grads), state

    def clip_(self, params: Iterable[Tensor]) -> None:
        clip_grad_value_(params, self.max_value)

    def size(self, grads: Tree) -> Tensor:
        return trees.norm(grads, torch.inf)


@clip("norm")
class Norm:
    r"""Shorten the gradient to length ``c`` where it is longer, one norm over all parameters: its direction stays.

    .. math:: g \leftarrow g \min\Bigl(1,\ \frac{c}{\lVert g \rVert + 10^{-6}}\Bigr)

    :param max_norm: c, in units of the gradient, (0, ∞]; .1 to 35 are usual, 1 in language models.
    :param norm_type: 2, or ``"inf"`` for the largest absolute element.

    **Shapes**: any, kept. **Errors**: none is raised, and three pass in silence, as in torch. One NaN makes the whole gradient NaN.
    One infinite element becomes NaN and every other element 0. Finite elements whose norm overflows (2e19 in float32) all become 0.

    **Source**: Pascanu, Mikolov & Bengio 2013; ``torch.nn.utils.clip_grad_norm_``.

    >>> grads = {"w": torch.tensor([3.0]), "b": torch.tensor([4.0])}
    >>> Norm(max_norm=1.0).update(grads, {}, {})[0]
    {'w': tensor([0.6000]), 'b': tensor([0.8000])}
    """

    flat = True

    max_norm: Positive
    norm_type: Literal[2, "inf"] = 2

    def update(self, grads: Tree, state: State, params: Tree) -> tuple[Tree, State]:
        return trees.scale(grads, factor(self.max_norm, self.size(grads))), state

    def clip_(self, params: Iterable[Tensor]) -> None:
        clip_grad_norm_(params, self.max_norm, float(self.norm_type))

    def size(self, grads: Tree) -> Tensor:
        return trees.norm(grads, float(self.norm_type))


@clip("layer")
class Layer:
    r"""Shorten each tensor's gradient to length ``c`` where it is longer: its direction stays, that of the whole changes.

    .. math:: g^{(l)} \leftarrow g^{(l)} \min\Bigl(1,\ \frac{c}{\lVert g^{(l)} \rVert + 10^{-6}}\Bigr), \quad l = 1, 2, \dots

    :param max_norm: c, in units of the gradient, (0, ∞].
    :param norm_type: 2, or ``"inf"`` for the largest absolute element.

    **Shapes**: any, kept. **Errors**: none is raised; NaN, infinity and overflow act as in ``norm``, within their own tensor only.

    **Source**: Keras' ``clipnorm`` (Chollet et al. 2015), with torch's epsilon: one tensor alone is clipped as by ``norm``.

    >>> grads = {"w": torch.tensor([3.0, 4.0]), "b": torch.tensor([0.5])}
    >>> Layer(max_norm=1.0).update(grads, {}, {})[0]
    {'w': tensor([0.6000, 0.8000]), 'b': tensor([0.5000])}
    """

    max_norm: Positive
    norm_type: Literal[2, "inf"] = 2

    def update(self, grads: Tree, state: State, params: Tree) -> tuple[Tree, State]:
        return trees.map(lambda grad: grad * factor(self.max_norm, self._length(grad)), grads), state

    def clip_(self, params: Iterable[Tensor]) -> None:
        for param in params:
            clip_grad_norm_([param], self.max_norm, float(self.norm_type))

    def size(self, grads: Tree) -> Tensor:
        """The largest of the tensors' norms: below it the clip is idle, so that 1 is where it begins to act."""
        return torch.stack([self._length(grad) for grad in grads.values()]).amax()

    def _length(self, grad: Tensor) -> Tensor:
        return torch.linalg.vector_norm(grad, float(self.norm_type))


def factor(limit: float, length: Tensor) -> Tensor:
    """torch's factor for a gradient of some length, at most 1; NaN for a NaN length, and for an infinite limit and length both."""
    return torch.clamp(limit / (length + EPSILON), max=1.0)
