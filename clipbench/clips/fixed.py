"""Clips with a constant threshold."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from clipbench import trees
from clipbench.registry import Finite, Positive, clip
from clipbench.trees import Tree

State = dict[str, Any]

# torch's guard against 0/0: a norm equal to the threshold is still scaled, by 1 - 1e-6/norm
EPSILON = 1e-6


@clip("none")
class Unclipped:
    r"""Leave the gradient as it is: the arm that every clip is compared with.

    .. math:: g \leftarrow g

    **Shapes**: any. **Returns** the very tree it was given, so that ``is`` tells that nothing
    changed. **Errors**: none.

    >>> grads = {"w": torch.tensor([3.0, 4.0])}
    >>> Unclipped().update(grads, {}, {})[0] is grads
    True
    """

    flat = True

    def update(self, grads: Tree, state: State, params: Tree) -> tuple[Tree, State]:
        return grads, state


@clip("value")
class Value:
    r"""Cut every element of the gradient back to ``[-c, c]``: its direction changes, its signs do
    not.

    .. math:: g_i \leftarrow \max(-c, \min(c, g_i))

    :param max_value: c, in units of the gradient, (0, ∞]; .01 to 1 are usual.

    **Shapes**: any, kept. **Errors**: ``clip_`` raises ``RuntimeError`` where no parameter has a
    gradient, as torch does. An infinite element becomes ±c, so that an overflow is masked; NaN
    stays NaN.

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
    r"""Shorten the gradient to length ``c`` where it is longer, one norm over all parameters: its
    direction stays.

    .. math:: g \leftarrow g \min\Bigl(1,\ \frac{c}{\lVert g \rVert + 10^{-6}}\Bigr)

    :param max_norm: c, in units of the gradient, (0, ∞]; .1 to 35 are usual, 1 in language models.
    :param norm_type: 2, or ``"inf"`` for the largest absolute element.

    **Shapes**: any, kept. **Errors**: none is raised, and three pass in silence, as in torch. One
    NaN makes the whole gradient NaN. One infinite element becomes NaN and every other element 0.
    Finite elements whose norm overflows (2e19 in float32) all become 0.

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
        clip_grad_norm_(_measurable(params, self.norm_type), self.max_norm, float(self.norm_type))

    def size(self, grads: Tree) -> Tensor:
        return trees.norm(grads, float(self.norm_type))


@clip("layer")
class Layer:
    r"""Shorten each tensor's gradient to length ``c`` where it is longer: its direction stays, that
    of the whole changes.

    .. math:: g^{(l)} \leftarrow g^{(l)} \min\Bigl(1,\ \frac{c}{\lVert g^{(l)} \rVert +
              10^{-6}}\Bigr), \quad l = 1, 2, \dots

    :param max_norm: c, in units of the gradient, (0, ∞].
    :param norm_type: 2, or ``"inf"`` for the largest absolute element.

    **Shapes**: any, kept. **Errors**: none is raised; NaN, infinity and overflow act as in
    ``norm``, within their own tensor only.

    **Source**: Keras' ``clipnorm`` (Chollet et al. 2015), with torch's epsilon: one tensor alone is
    clipped as by ``norm``.

    >>> grads = {"w": torch.tensor([3.0, 4.0]), "b": torch.tensor([0.5])}
    >>> Layer(max_norm=1.0).update(grads, {}, {})[0]
    {'w': tensor([0.6000, 0.8000]), 'b': tensor([0.5000])}
    """

    max_norm: Positive
    norm_type: Literal[2, "inf"] = 2

    def update(self, grads: Tree, state: State, params: Tree) -> tuple[Tree, State]:
        return trees.map(
            lambda grad: grad * factor(self.max_norm, self._length(grad)), grads
        ), state

    def clip_(self, params: Iterable[Tensor]) -> None:
        for param in _measurable(params, self.norm_type):
            clip_grad_norm_([param], self.max_norm, float(self.norm_type))

    def size(self, grads: Tree) -> Tensor:
        """The largest of the tensors' norms: below it the clip is idle, so that 1 is where it
        begins to act.
        """
        return torch.stack([self._length(grad) for grad in grads.values()]).amax()

    def _length(self, grad: Tensor) -> Tensor:
        return trees.length(grad, float(self.norm_type))


@clip("block-rms")
class BlockRMS:
    r"""Shorten each tensor's gradient to root mean square ``c`` where it is larger: a longer tensor
    may have a longer gradient.

    .. math:: g^{(l)} \leftarrow \frac{g^{(l)}}{\max\bigl(1,\ \mathrm{rms}(g^{(l)}) / c\bigr)},
              \quad
              \mathrm{rms}(g) = \lVert g \rVert / \sqrt{n}

    :param max_rms: c, in units of the gradient, (0, ∞].

    **Shapes**: any, kept. **Errors**: none is raised; NaN, infinity and overflow act as in
    ``norm``, within their own tensor only.

    **Source**: ``optax.clip_by_block_rms``, whose threshold has no default; Shazeer & Stern 2018
    clip Adafactor's updates so, at 1.

    >>> grads = {"w": torch.tensor([[3.0, 4.0], [0.0, 0.0]]), "b": torch.tensor([0.5])}
    >>> BlockRMS(max_rms=1.0).update(grads, {}, {})[0]
    {'w': tensor([[1.2000, 1.6000], [0.0000, 0.0000]]), 'b': tensor([0.5000])}
    """

    max_rms: Positive = 1.0

    def update(self, grads: Tree, state: State, params: Tree) -> tuple[Tree, State]:
        return trees.map(
            lambda grad: grad / torch.clamp(_rms(grad) / self.max_rms, min=1.0), grads
        ), state

    def size(self, grads: Tree) -> Tensor:
        """The largest of the tensors' root mean squares: below it the clip is idle, so that 1 is
        where it begins to act.
        """
        return torch.stack([_rms(grad) for grad in grads.values()]).amax()


@clip("adaptive")
class Adaptive:
    r"""Shorten each unit's gradient to a share of its weights' length: what is small may be moved
    by little.

    .. math:: g_i \leftarrow g_i \min\Bigl(1,\ \frac{\lambda \max(\lVert w_i \rVert,
              \varepsilon)}{\lVert g_i \rVert}\Bigr), \quad
              i = 1, 2, \dots \text{ units}

    A unit is what ends in one output: a row of a matrix, a filter of a convolution, all dimensions
    but the first. A vector, such as a bias, and a scalar are one unit. So a transposed convolution,
    whose first dimension is the input, is cut by its inputs.

    :param max_ratio: λ, the gradient's length by the weights', (0, ∞]; the paper's .01 is for
        batches of 4096.
    :param eps: ε, in units of the weights, (0, ∞]: the length that weights have at least, so that
        those at 0 can leave it.

    **Shapes**: any, kept. **Errors**: none is raised; a NaN passes as it is, infinity and overflow
    act as in ``norm``; all of them within their own unit only.

    **Source**: Brock et al. 2021 (AGC). They leave the last layer unclipped; here, as in
    ``optax.adaptive_grad_clip`` and timm's ``adaptive_clip_grad``, it is clipped. Both of these
    divide by 1e-6 where a gradient is shorter, and cut it to less than the limit; in the paper and
    here nothing is. optax takes a matrix of one column for one unit; in timm and here its rows are
    units.

    >>> grads = {"w": torch.tensor([[3.0, 4.0], [0.3, 0.4]])}
    >>> params = {"w": torch.tensor([[1.0, 0.0], [0.0, 5.0]])}
    >>> Adaptive(max_ratio=0.1).update(grads, {}, params)[0]
    {'w': tensor([[0.0600, 0.0800], [0.3000, 0.4000]])}
    """

    max_ratio: Positive = 0.01
    eps: Positive = 1e-3

    def update(self, grads: Tree, state: State, params: Tree) -> tuple[Tree, State]:
        least = trees.like(self.eps, params)

        def shortened(grad: Tensor, param: Tensor) -> Tensor:
            length, limit = (
                _unit_norms(grad),
                self.max_ratio * torch.clamp(_unit_norms(param), min=least),
            )
            return grad * torch.where(length > limit, limit / length, 1.0)

        return trees.map(shortened, grads, params), state


@clip("normalised")
class Normalised:
    r"""Give every gradient nearly the length 1, whatever it had: its direction stays, and lr alone
    says how far a step goes.

    .. math:: g \leftarrow \frac{g}{\lVert g \rVert + \beta}

    :param beta: β, in units of the gradient, (0, ∞): a gradient of this length leaves half as long
        as a large one. Zhang et al. leave it open, and show what it stands for: within a factor of
        2 this at lr βη is ``norm`` with threshold β at lr η. The default is torch's guard against
        0/0: plain normalised descent.

    **Shapes**: any, kept. **Errors**: none is raised; NaN, infinity and overflow act as in
    ``norm``. A gradient shorter than 1 − β is lengthened.

    **Source**: Zhang et al. 2020; without β, Nesterov 1984 and Hazan, Levy & Shalev-Shwartz 2015.

    >>> grads = {"w": torch.tensor([3.0]), "b": torch.tensor([4.0])}
    >>> Normalised(beta=5.0).update(grads, {}, {})[0]
    {'w': tensor([0.3000]), 'b': tensor([0.4000])}
    """

    flat = True
    lengthens = True

    beta: Finite = EPSILON

    def update(self, grads: Tree, state: State, params: Tree) -> tuple[Tree, State]:
        return trees.scale(grads, 1 / (self.size(grads) + self.beta)), state

    def size(self, grads: Tree) -> Tensor:
        return trees.norm(grads)


def factor(limit: float, length: Tensor) -> Tensor:
    """torch's factor for a gradient of some length, at most 1; NaN for a NaN length, and for an
    infinite limit and length both.
    """
    return torch.clamp(limit / (length + EPSILON), max=1.0)


def _measurable(params: Iterable[Tensor], norm_type: Literal[2, "inf"]) -> Iterable[Tensor]:
    """Those whose gradient torch can take the norm of: it has no largest of no elements."""
    return params if norm_type == 2 else [param for param in params if param.numel()]


def _rms(grad: Tensor) -> Tensor:
    return trees.length(grad) / math.sqrt(max(grad.numel(), 1))


def _unit_norms(tensor: Tensor) -> Tensor:
    """The length of each unit, in a shape that spreads over ``tensor``: all dimensions but the
    first, or all of a vector.
    """
    return torch.linalg.vector_norm(
        tensor, dim=tuple(range(1, tensor.ndim)) if tensor.ndim > 1 else None, keepdim=True
    )
