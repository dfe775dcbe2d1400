"""Optimizers: each an update rule as pure functions of trees, and the ``torch.optim`` object that says the same.

``init(params) -> state``; ``update(grads, state, params) -> (direction, state)``; and p ← p − lr · direction, where the learning
rate belongs to the cell. ``torch(params, lr)`` builds what a user's loop would step. The two are witnesses of each other: a
stranger's rule may have either, and one without ``torch`` runs in the loop as a `Rule`.

Under ``torch.func.vmap`` a float setting is a tensor, one number a lane: no rule branches on one. So weight decay is always added,
and momentum always kept, at 0 as well.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from clipbench import registry, trees
from clipbench.registry import Decay, NonNegative, UsageError, nearest, optimizer
from clipbench.trees import Tree

State = dict[str, Any]


# ------------------------------------------------------------------------------------------------------------------ the rules


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

    weight_decay: NonNegative = 0.0

    def init(self, params: Tree) -> State:
        return {}

    def update(self, grads: Tree, state: State, params: Tree) -> tuple[Tree, State]:
        return _decayed(grads, params, self.weight_decay), state

    def torch(self, params: Iterable[Tensor], lr: float) -> Optimizer:
        return torch.optim.SGD(params, lr=lr, weight_decay=self.weight_decay)


@optimizer("momentum")
class Momentum:
    r"""Step along a decaying sum of past gradients; a steady gradient is taken 1/(1 − μ) times over.

    .. math:: b_t = \mu b_{t-1} + g_t + \lambda p_t, \qquad d_t = b_t

    :param momentum: μ, [0, 1).
    :param weight_decay: λ, the strength of the L2 penalty, [0, ∞].

    **Shapes**: any, kept. **Errors**: none. **Source**: Polyak 1964, in the form of ``torch.optim.SGD`` (the lr outside the sum).

    >>> grads = params = {"w": torch.tensor([2.0])}
    >>> Momentum().update(grads, {"sum": {"w": torch.tensor([10.0])}}, params)[0]
    {'w': tensor([11.])}
    """

    momentum: Decay = 0.9
    weight_decay: NonNegative = 0.0

    def init(self, params: Tree) -> State:
        return {"sum": trees.zeros_like(params)}

    def update(self, grads: Tree, state: State, params: Tree) -> tuple[Tree, State]:
        grads = _decayed(grads, params, self.weight_decay)
        total = trees.map(lambda b, g: self.momentum * b + g, state["sum"], grads)
        return total, {"sum": total}

    def torch(self, params: Iterable[Tensor], lr: float) -> Optimizer:
        return torch.optim.SGD(params, lr=lr, momentum=self.momentum, weight_decay=self.weight_decay)


@optimizer("nesterov")
class Nesterov:
    r"""Momentum that looks one step ahead along its own sum.

    .. math:: b_t = \mu b_{t-1} + g_t + \lambda p_t, \qquad d_t = g_t + \lambda p_t + \mu b_t

    :param momentum: μ, [0, 1).
    :param weight_decay: λ, the strength of the L2 penalty, [0, ∞].

    **Shapes**: any, kept. **Errors**: none. **Source**: Nesterov 1983, in the form of Sutskever et al. 2013; ``torch.optim.SGD``.

    >>> grads = params = {"w": torch.tensor([2.0])}
    >>> Nesterov(momentum=0.5).update(grads, {"sum": {"w": torch.tensor([4.0])}}, params)[0]
    {'w': tensor([4.])}
    """

    momentum: Decay = 0.9
    weight_decay: NonNegative = 0.0

    def init(self, params: Tree) -> State:
        return {"sum": trees.zeros_like(params)}

    def update(self, grads: Tree, state: State, params: Tree) -> tuple[Tree, State]:
        grads = _decayed(grads, params, self.weight_decay)
        total = trees.map(lambda b, g: self.momentum * b + g, state["sum"], grads)
        return trees.map(lambda g, b: g + self.momentum * b, grads, total), {"sum": total}

    def torch(self, params: Iterable[Tensor], lr: float) -> Optimizer:
        ahead = self.momentum > 0  # torch refuses nesterov without momentum, where the two are the same
        return torch.optim.SGD(params, lr=lr, momentum=self.momentum, nesterov=ahead, weight_decay=self.weight_decay)


@optimizer("rmsprop")
class RMSprop:
    r"""Divide each element by the root of a running mean of its squares, so that every element moves at a like pace.

    .. math:: v_t = \alpha v_{t-1} + (1 - \alpha) g_t^2, \qquad d_t = \frac{g_t}{\sqrt{v_t} + \varepsilon}

    The mean starts at 0 without a correction: the first step is 1/√(1 − α) times lr in every element, ten times at .99.

    :param alpha: α, [0, 1).
    :param eps: ε, in units of the gradient, [0, ∞]; at 0 a zero gradient gives NaN.
    :param weight_decay: λ, [0, ∞]; λp is added to the gradient first.

    **Shapes**: any, kept. **Errors**: none. **Source**: Tieleman & Hinton 2012; ``torch.optim.RMSprop``.

    >>> rule, params = RMSprop(), {"w": torch.tensor([2.0])}
    >>> rule.update({"w": torch.tensor([-3.0])}, rule.init(params), params)[0]["w"].round(decimals=3)
    tensor([-10.])
    """

    alpha: Decay = 0.99
    eps: NonNegative = 1e-8
    weight_decay: NonNegative = 0.0

    def init(self, params: Tree) -> State:
        return {"square": trees.zeros_like(params)}

    def update(self, grads: Tree, state: State, params: Tree) -> tuple[Tree, State]:
        grads = _decayed(grads, params, self.weight_decay)
        square = trees.map(lambda v, g: self.alpha * v + (1 - self.alpha) * g * g, state["square"], grads)
        return trees.map(lambda g, v: g / (v.sqrt() + self.eps), grads, square), {"square": square}

    def torch(self, params: Iterable[Tensor], lr: float) -> Optimizer:
        return torch.optim.RMSprop(params, lr=lr, alpha=self.alpha, eps=self.eps, weight_decay=self.weight_decay)


@optimizer("adam")
class Adam:
    r"""Divide a running mean of the gradient by the root of a running mean of its square, both corrected for their start at 0.

    .. math:: m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t, \quad v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2, \quad
              d_t = \frac{m_t / (1 - \beta_1^t)}{\sqrt{v_t / (1 - \beta_2^t)} + \varepsilon}

    :param beta1: β₁, [0, 1).
    :param beta2: β₂, [0, 1).
    :param eps: ε, in units of the gradient, [0, ∞]; at 0 a zero gradient gives NaN, and the gradient's scale does not matter.
    :param weight_decay: λ, [0, ∞]; λp is added to the gradient first.

    **Shapes**: any, kept. **Errors**: none. **Source**: Kingma & Ba 2015; ``torch.optim.Adam``.

    >>> rule, params = Adam(), {"w": torch.tensor([2.0])}
    >>> rule.update({"w": torch.tensor([-3.0])}, rule.init(params), params)[0]["w"].round(decimals=3)
    tensor([-1.])
    """

    beta1: Decay = 0.9
    beta2: Decay = 0.999
    eps: NonNegative = 1e-8
    weight_decay: NonNegative = 0.0

    def init(self, params: Tree) -> State:
        return _moments(params)

    def update(self, grads: Tree, state: State, params: Tree) -> tuple[Tree, State]:
        return _adam(_decayed(grads, params, self.weight_decay), state, self.beta1, self.beta2, self.eps)

    def torch(self, params: Iterable[Tensor], lr: float) -> Optimizer:
        betas = (self.beta1, self.beta2)
        return torch.optim.Adam(params, lr=lr, betas=betas, eps=self.eps, weight_decay=self.weight_decay)


@optimizer("adamw")
class AdamW:
    r"""Adam whose weight decay goes round the division: it shrinks every weight alike.

    .. math:: d_t = \operatorname{adam}(g_t) + \lambda p_t

    :param beta1: β₁, [0, 1).
    :param beta2: β₂, [0, 1).
    :param eps: ε, in units of the gradient, [0, ∞]; at 0 a zero gradient gives NaN.
    :param weight_decay: λ, a share of the weight per unit of lr, [0, ∞].

    **Shapes**: any, kept. **Errors**: none. **Source**: Loshchilov & Hutter 2019; ``torch.optim.AdamW``.

    >>> rule, params = AdamW(weight_decay=0.5), {"w": torch.tensor([2.0])}
    >>> rule.update({"w": torch.tensor([3.0])}, rule.init(params), params)[0]["w"].round(decimals=3)
    tensor([2.])
    """

    beta1: Decay = 0.9
    beta2: Decay = 0.999
    eps: NonNegative = 1e-8
    weight_decay: NonNegative = 0.01

    def init(self, params: Tree) -> State:
        return _moments(params)

    def update(self, grads: Tree, state: State, params: Tree) -> tuple[Tree, State]:
        direction, state = _adam(grads, state, self.beta1, self.beta2, self.eps)
        return _decayed(direction, params, self.weight_decay), state

    def torch(self, params: Iterable[Tensor], lr: float) -> Optimizer:
        betas = (self.beta1, self.beta2)
        return torch.optim.AdamW(params, lr=lr, betas=betas, eps=self.eps, weight_decay=self.weight_decay)


def _decayed(grads: Tree, params: Tree, weight_decay: float) -> Tree:
    return trees.map(lambda g, p: g + weight_decay * p, grads, params)


def _moments(params: Tree) -> State:
    # The step is float64 whatever the parameters are: in float32 1 - .999 is 2e-5 off, and so would the first steps be.
    return {"mean": trees.zeros_like(params), "square": trees.zeros_like(params), "step": trees.zero(params).double()}


def _adam(grads: Tree, state: State, beta1: float, beta2: float, eps: float) -> tuple[Tree, State]:
    step = state["step"] + 1
    mean = trees.map(lambda m, g: beta1 * m + (1 - beta1) * g, state["mean"], grads)
    square = trees.map(lambda v, g: beta2 * v + (1 - beta2) * g * g, state["square"], grads)
    dtype = next(iter(grads.values())).dtype
    scale, root = (1 - beta1**step).to(dtype), (1 - beta2**step).sqrt().to(dtype)
    direction = trees.map(lambda m, v: m / scale / (v.sqrt() / root + eps), mean, square)
    return direction, {"mean": mean, "square": square, "step": step}


# ----------------------------------------------------------------------------------------------- rules and classes in the loop


class Rule(Optimizer):
    """A pure rule as a torch optimizer, for the loop to step where a component has no ``torch``.

    :param component: what has ``init`` and ``update``.
    :param named: the parameters and their names, as ``module.named_parameters()`` gives them.

    A parameter without a gradient counts as one whose gradient is zero, as it does in lanes.
    """

    def __init__(self, component: Any, named: Iterable[tuple[str, Tensor]], lr: float) -> None:
        super().__init__(list(named), {"lr": lr})
        self.component = component
        # Under a key of its own in torch's table, so that state_dict() carries it.
        self.state["rule"] = component.init(self._tree(lambda param: param.detach()))  # type: ignore[index]

    def _tree(self, leaf: Callable[[Tensor], Tensor]) -> Tree:
        (group,) = self.param_groups
        return {name: leaf(param) for name, param in zip(group["param_names"], group["params"], strict=True)}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter; the loss, where a ``closure`` computes one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        grads = self._tree(lambda param: torch.zeros_like(param) if param.grad is None else param.grad)
        params = self._tree(lambda param: param.detach())
        direction, self.state["rule"] = self.component.update(grads, self.state["rule"], params)  # type: ignore[index]
        for name, param in params.items():
            param.add_(direction[name], alpha=-self.param_groups[0]["lr"])
        return loss


@dataclasses.dataclass(frozen=True)
class TorchOptimizer:
    """Any class of ``torch.optim``, or made like one, known by its dotted path; it runs in the loop only.

    :param path: such as ``"torch.optim.NAdam"``.
    :param settings: the class's keyword arguments, as `validate_torch` returns them.
    """

    path: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)

    kind = "optimizer"
    version = 1

    @property
    def name(self) -> str:
        return self.path

    def torch(self, params: Iterable[Tensor], lr: float) -> Optimizer:
        cls = torch_class(self.path)
        return cls(params, lr=lr, **_keywords(cls, self.settings))


@dataclasses.dataclass(frozen=True)
class TorchComponent:
    """Any optimizer class of torch, or made like one, as it is."""

    name: str

    @property
    def version(self) -> int | str:
        """1 for torch's own classes; for anybody else's the hash of the file."""
        cls = torch_class(self.name)
        return 1 if cls.__module__.startswith("torch.") else registry.digest_of(Path(inspect.getfile(cls)))

    def validated(self, settings: Mapping[str, Any], where: str) -> dict[str, Any]:
        return validate_torch(self.name, settings, where)

    def __call__(self, **settings: Any) -> TorchOptimizer:
        return TorchOptimizer(self.name, settings)


@registry.dotted("optimizer")
def at_path(path: str, where: str) -> TorchComponent:
    """What the registry finds at a dotted path such as ``torch.optim.NAdam``.

    :raises UsageError: no optimizer class is there, or none that the loop could step.
    """
    torch_class(path, where)
    return TorchComponent(path)


def torch_optimizer(
    component: Any, params: Iterable[Tensor], lr: float, named: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]
) -> Optimizer:
    """The object the loop steps: the component's own over ``params``, or its pure rule over ``named`` as a `Rule`."""
    return component.torch(params, lr) if hasattr(component, "torch") else Rule(component, dict(named).items(), lr)


def torch_class(path: str, where: str = "optimizer") -> Callable[..., Optimizer]:
    """The optimizer class at a dotted path.

    :raises UsageError: nothing is there, it is no such class, or the loop could not step it.
    """
    module_name, _, class_name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ModuleNotFoundError, AttributeError, TypeError, ValueError):  # the last two of a path such as ".NAdam"
        raise UsageError(f'{where}: there is no optimizer class "{path}".{nearest(path, _torch_names())}') from None
    except Exception as error:  # a stranger's module may fail in any way
        raise UsageError(f"{where}: {module_name} failed to import: {type(error).__name__}: {error}.") from error
    if not (isinstance(found, type) and issubclass(found, Optimizer) and found is not Optimizer):
        raise UsageError(f'{where}: "{path}" is no subclass of torch.optim.Optimizer.{nearest(path, _torch_names())}')
    closure = inspect.signature(found.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise UsageError(
            f'{where}: "{path}" evaluates the loss several times a step, by a closure, and so has no place beside the others.'
        )
    if "lr" not in inspect.signature(found).parameters:
        raise UsageError(f'{where}: "{path}" takes no `lr`, which every cell must set.')
    return found


def validate_torch(path: str, settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """``settings`` of the class at ``path``, those at their default left out; ``beta1`` and ``beta2`` stand for ``betas``.

    :raises UsageError: no such class, an unknown or unfit setting, or one that the class itself refuses.
    """
    cls = torch_class(path, where)
    defaults = _defaults(cls)
    clean: dict[str, Any] = {}
    for name, value in settings.items():
        if name not in defaults:
            known = ", ".join(defaults) or "no settings"
            raise UsageError(f'{where}: "{path}" has no setting `{name}`. It has: {known}.{nearest(name, defaults)}')
        fitting = _fit(value, defaults[name], f'{where}: "{path}" setting `{name}`')
        if fitting != defaults[name]:
            clean[name] = fitting
    try:
        # Two by two, because some classes take matrices only.
        cls([torch.nn.Parameter(torch.zeros(2, 2))], lr=0.1, **_keywords(cls, clean))
    except Exception as error:  # a stranger's class may refuse in any way
        given = ", ".join(f"{name} = {value!r}" for name, value in settings.items()) or "no settings"
        raise UsageError(f'{where}: "{path}" refuses {given}: {str(error).rstrip(".") or type(error).__name__}.') from error
    return clean


def _torch_names() -> list[str]:
    classes = {name: item for name, item in vars(torch.optim).items() if isinstance(item, type) and issubclass(item, Optimizer)}
    return [f"torch.optim.{name}" for name, item in classes.items() if item is not Optimizer]


def _defaults(cls: Callable[..., Optimizer]) -> dict[str, Any]:
    """Setting → default, ``inspect.Parameter.empty`` where it has none; a pair of betas as two settings."""
    defaults: dict[str, Any] = {}
    for parameter in list(inspect.signature(cls).parameters.values())[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or parameter.name == "lr":
            continue
        if parameter.name == "betas" and isinstance(parameter.default, tuple) and len(parameter.default) == 2:
            defaults["beta1"], defaults["beta2"] = parameter.default
        else:
            defaults[parameter.name] = parameter.default
    return defaults


def _keywords(cls: Callable[..., Optimizer], settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the class is called with: ``beta1`` and ``beta2`` joined again."""
    keywords = dict(settings)
    if "betas" in inspect.signature(cls).parameters and not keywords.keys().isdisjoint({"beta1", "beta2"}):
        defaults = _defaults(cls)
        keywords["betas"] = tuple(keywords.pop(name, defaults[name]) for name in ("beta1", "beta2"))
    return keywords


def _fit(value: Any, default: Any, what: str) -> Any:
    """``value`` in the type of the default it replaces; where that says nothing, any number, flag or text."""
    if isinstance(value, float) and math.isnan(value):
        raise UsageError(f"{what} is nan, and must be a number.")
    if isinstance(default, bool):
        return registry.fit(value, bool, what)
    if isinstance(default, int | float):
        # torch writes `weight_decay=0` and means any number; and 1 and 1.0 are one setting.
        number = registry.fit(value, float, what)
        return int(number) if isinstance(default, int) and number.is_integer() else number
    if isinstance(default, str):
        return registry.fit(value, str, what)
    if isinstance(default, tuple):
        raise UsageError(f"{what} is a tuple of {len(default)} in torch, which a study cannot give: there a list is an axis.")
    if not isinstance(value, bool | int | float | str):
        raise UsageError(f"{what} is {value!r}, and must be a number, true, false or text.")
    return value
