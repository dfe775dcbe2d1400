"""Optimizers: each an update rule as pure functions of trees, and the ``torch.optim`` object that
says the same.

``init(params) -> state``; ``update(grads, state, params) -> (direction, state)``; and p ← p − lr ·
direction, where the learning rate belongs to the cell. ``torch(params, lr)`` builds what a user's
loop would step. The two are witnesses of each other: a user-defined rule may have either, and one
without ``torch`` runs in the loop as a `Rule`.

Under ``torch.func.vmap`` a float setting is a tensor, one number a lane: no rule branches on one.
So weight decay is always added, and momentum always kept, at 0 as well.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from clipbench import trees
from clipbench.registry import Decay, NonNegative, optimizer
from clipbench.trees import Tree

State = dict[str, Any]


@optimizer("sgd")
class SGD:
    r"""Step against the gradient.

    .. math:: d = g + \lambda p

    :param weight_decay: λ, the strength of the L2 penalty, [0, ∞].

    **Shapes**: any, kept. **Errors**: none. **Source**: Robbins & Monro 1951; ``torch.optim.SGD``.

    >>> grads = params = {"w": torch.tensor([2.0])}
    >>> SGD(weight_decay=0.5).update(grads, {}, params)[0]
    {'w': tensor([3.])}
    """

    flat = True

    weight_decay: NonNegative = 0.0

    def init(self, params: Tree) -> State:
        return {}

    def update(self, grads: Tree, state: State, params: Tree) -> tuple[Tree, State]:
        return _with_weight_decay(grads, params, self.weight_decay), state

    def torch(self, params: Iterable[Tensor], lr: float) -> Optimizer:
        return torch.optim.SGD(params, lr=lr, weight_decay=self.weight_decay)


@optimizer("momentum")
class Momentum:
    r"""Step along a decaying sum of past gradients; a steady gradient is taken 1/(1 − μ) times
    over.

    .. math:: b_t = \mu b_{t-1} + g_t + \lambda p_t, \qquad d_t = b_t

    :param momentum: μ, [0, 1).
    :param weight_decay: λ, the strength of the L2 penalty, [0, ∞].

    **Shapes**: any, kept. **Errors**: none. **Source**: Polyak 1964, in the form of
    ``torch.optim.SGD`` (the lr outside the sum).

    >>> grads = params = {"w": torch.tensor([2.0])}
    >>> Momentum().update(grads, {"sum": {"w": torch.tensor([10.0])}}, params)[0]
    {'w': tensor([11.])}
    """

    flat = True

    momentum: Decay = 0.9
    weight_decay: NonNegative = 0.0

    def init(self, params: Tree) -> State:
        return {"sum": trees.zeros_like(params)}

    def update(self, grads: Tree, state: State, params: Tree) -> tuple[Tree, State]:
        grads = _with_weight_decay(grads, params, self.weight_decay)
        total = trees.map(lambda b, g: self.momentum * b + g, state["sum"], grads)
        return total, {"sum": total}

    def torch(self, params: Iterable[Tensor], lr: float) -> Optimizer:
        return torch.optim.SGD(
            params, lr=lr, momentum=self.momentum, weight_decay=self.weight_decay
        )


@optimizer("nesterov")
class Nesterov:
    r"""Momentum that looks one step ahead along its own sum.

    .. math:: b_t = \mu b_{t-1} + g_t + \lambda p_t, \qquad d_t = g_t + \lambda p_t + \mu b_t

    :param momentum: μ, [0, 1).
    :param weight_decay: λ, the strength of the L2 penalty, [0, ∞].

    **Shapes**: any, kept. **Errors**: none. **Source**: Nesterov 1983, in the form of Sutskever et
    al. 2013; ``torch.optim.SGD``.

    >>> grads = params = {"w": torch.tensor([2.0])}
    >>> Nesterov(momentum=0.5).update(grads, {"sum": {"w": torch.tensor([4.0])}}, params)[0]
    {'w': tensor([4.])}
    """

    flat = True

    momentum: Decay = 0.9
    weight_decay: NonNegative = 0.0

    def init(self, params: Tree) -> State:
        return {"sum": trees.zeros_like(params)}

    def update(self, grads: Tree, state: State, params: Tree) -> tuple[Tree, State]:
        grads = _with_weight_decay(grads, params, self.weight_decay)
        total = trees.map(lambda b, g: self.momentum * b + g, state["sum"], grads)
        return trees.map(lambda g, b: g + self.momentum * b, grads, total), {"sum": total}

    def torch(self, params: Iterable[Tensor], lr: float) -> Optimizer:
        # torch refuses nesterov without momentum, where the two are the same
        ahead = self.momentum > 0
        return torch.optim.SGD(
            params, lr=lr, momentum=self.momentum, nesterov=ahead, weight_decay=self.weight_decay
        )


@optimizer("rmsprop")
class RMSprop:
    r"""Divide each element by the root of a running mean of its squares, so that every element
    moves at a like pace.

    .. math:: v_t = \alpha v_{t-1} + (1 - \alpha) g_t^2, \qquad
              d_t = \frac{g_t}{\sqrt{v_t} + \varepsilon}

    The mean starts at 0 without a correction: the first step is 1/√(1 − α) times lr in every
    element, ten times at .99.

    :param alpha: α, [0, 1).
    :param eps: ε, in units of the gradient, [0, ∞]; at 0 a zero gradient gives NaN.
    :param weight_decay: λ, [0, ∞]; λp is added to the gradient first.

    **Shapes**: any, kept. **Errors**: none. **Source**: Tieleman & Hinton 2012;
    ``torch.optim.RMSprop``.

    >>> rule, params = RMSprop(), {"w": torch.tensor([2.0])}
    >>> direction, _ = rule.update({"w": torch.tensor([-3.0])}, rule.init(params), params)
    >>> direction["w"].round(decimals=3)
    tensor([-10.])
    """

    flat = True

    alpha: Decay = 0.99
    eps: NonNegative = 1e-8
    weight_decay: NonNegative = 0.0

    def init(self, params: Tree) -> State:
        return {"square": trees.zeros_like(params)}

    def update(self, grads: Tree, state: State, params: Tree) -> tuple[Tree, State]:
        grads = _with_weight_decay(grads, params, self.weight_decay)
        square = trees.map(
            lambda v, g: self.alpha * v + (1 - self.alpha) * g * g, state["square"], grads
        )
        return trees.map(lambda g, v: g / (v.sqrt() + self.eps), grads, square), {"square": square}

    def torch(self, params: Iterable[Tensor], lr: float) -> Optimizer:
        return torch.optim.RMSprop(
            params, lr=lr, alpha=self.alpha, eps=self.eps, weight_decay=self.weight_decay
        )


@optimizer("adam")
class Adam:
    r"""Divide a running mean of the gradient by the root of a running mean of its square, both
    corrected for their start at 0.

    .. math:: m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t, \quad
              v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2, \quad
              d_t = \frac{m_t / (1 - \beta_1^t)}{\sqrt{v_t / (1 - \beta_2^t)} + \varepsilon}

    :param beta1: β₁, [0, 1).
    :param beta2: β₂, [0, 1).
    :param eps: ε, in units of the gradient, [0, ∞]; at 0 a zero gradient gives NaN, and the
        gradient's scale does not matter.
    :param weight_decay: λ, [0, ∞]; λp is added to the gradient first.

    **Shapes**: any, kept. **Errors**: none. **Source**: Kingma & Ba 2015; ``torch.optim.Adam``.

    >>> rule, params = Adam(), {"w": torch.tensor([2.0])}
    >>> direction, _ = rule.update({"w": torch.tensor([-3.0])}, rule.init(params), params)
    >>> direction["w"].round(decimals=3)
    tensor([-1.])
    """

    flat = True

    beta1: Decay = 0.9
    beta2: Decay = 0.999
    eps: NonNegative = 1e-8
    weight_decay: NonNegative = 0.0

    def init(self, params: Tree) -> State:
        return _moments(params)

    def update(self, grads: Tree, state: State, params: Tree) -> tuple[Tree, State]:
        return _adam(
            _with_weight_decay(grads, params, self.weight_decay),
            state,
            self.beta1,
            self.beta2,
            self.eps,
        )

    def torch(self, params: Iterable[Tensor], lr: float) -> Optimizer:
        betas = (self.beta1, self.beta2)
        return torch.optim.Adam(
            params, lr=lr, betas=betas, eps=self.eps, weight_decay=self.weight_decay
        )


@optimizer("adamw")
class AdamW:
    r"""Adam whose weight decay goes round the division: it shrinks every weight alike.

    .. math:: d_t = \operatorname{adam}(g_t) + \lambda p_t

    :param beta1: β₁, [0, 1).
    :param beta2: β₂, [0, 1).
    :param eps: ε, in units of the gradient, [0, ∞]; at 0 a zero gradient gives NaN.
    :param weight_decay: λ, a share of the weight per unit of lr, [0, ∞].

    **Shapes**: any, kept. **Errors**: none. **Source**: Loshchilov & Hutter 2019;
    ``torch.optim.AdamW``.

    >>> rule, params = AdamW(weight_decay=0.5), {"w": torch.tensor([2.0])}
    >>> rule.update({"w": torch.tensor([3.0])}, rule.init(params), params)[0]["w"].round(decimals=3)
    tensor([2.])
    """

    flat = True

    beta1: Decay = 0.9
    beta2: Decay = 0.999
    eps: NonNegative = 1e-8
    weight_decay: NonNegative = 0.01

    def init(self, params: Tree) -> State:
        return _moments(params)

    def update(self, grads: Tree, state: State, params: Tree) -> tuple[Tree, State]:
        direction, state = _adam(grads, state, self.beta1, self.beta2, self.eps)
        return _with_weight_decay(direction, params, self.weight_decay), state

    def torch(self, params: Iterable[Tensor], lr: float) -> Optimizer:
        betas = (self.beta1, self.beta2)
        return torch.optim.AdamW(
            params, lr=lr, betas=betas, eps=self.eps, weight_decay=self.weight_decay
        )


def _with_weight_decay(grads: Tree, params: Tree, weight_decay: float) -> Tree:
    return trees.map(lambda g, p: g + weight_decay * p, grads, params)


def _moments(params: Tree) -> State:
    # The powers are float64 whatever the parameters are: in float32 1 - .999 is 2e-5 off, and so
    # would the first steps be. They are carried along, for pow rounds differently in a vector
    # register and outside it, and so in one lane and another.
    one = torch.ones_like(trees.zero(params), dtype=torch.float64)
    return {
        "mean": trees.zeros_like(params),
        "square": trees.zeros_like(params),
        "power1": one,
        "power2": one,
    }


def _adam(grads: Tree, state: State, beta1: float, beta2: float, eps: float) -> tuple[Tree, State]:
    power1, power2 = state["power1"] * beta1, state["power2"] * beta2
    mean = trees.map(lambda m, g: beta1 * m + (1 - beta1) * g, state["mean"], grads)
    square = trees.map(lambda v, g: beta2 * v + (1 - beta2) * g * g, state["square"], grads)
    dtype = next(iter(grads.values())).dtype
    scale, root = (1 - power1).to(dtype), (1 - power2).sqrt().to(dtype)
    direction = trees.map(lambda m, v: m / scale / (v.sqrt() / root + eps), mean, square)
    return direction, {"mean": mean, "square": square, "power1": power1, "power2": power2}
