"""The optimizers that the loop steps: a component's own ``torch.optim`` object, its pure rule as
one, or any class of torch.
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
from clipbench.errors import UsageError, nearest
from clipbench.trees import Tree


class Rule(Optimizer):
    """A pure rule as a torch optimizer, which the loop steps if a component has no ``torch``.

    :param component: what has ``init`` and ``update``.
    :param named: the parameters and their names, as ``module.named_parameters()`` gives them.

    A parameter without a gradient counts as one whose gradient is zero, as it does in lanes.
    ``between``, if it is set, is handed the direction and the parameters, and returns the direction
    of the step.
    """

    def __init__(self, component: Any, named: Iterable[tuple[str, Tensor]], lr: float) -> None:
        super().__init__(list(named), {"lr": lr})
        self.component = component
        self.between: Callable[[Tree, Tree], Tree] | None = None
        # Under a key of its own in torch's table, so that state_dict() carries it.
        self.state["rule"] = component.init(self._tree(lambda param: param.detach().clone()))  # type: ignore[index]

    def _tree(self, leaf: Callable[[Tensor], Tensor]) -> Tree:
        (group,) = self.param_groups
        return {
            name: leaf(param)
            for name, param in zip(group["param_names"], group["params"], strict=True)
        }

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """The loss, if a ``closure`` computes one; every parameter is updated once."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        grads = self._tree(
            lambda param: torch.zeros_like(param) if param.grad is None else trees.dense(param.grad)
        )
        # which the rule may keep, as they are before the step
        params = self._tree(lambda param: param.detach().clone())
        direction, self.state["rule"] = self.component.update(grads, self.state["rule"], params)  # type: ignore[index]
        if self.between is not None:
            direction = self.between(direction, params)
        for name, param in self._tree(lambda param: param).items():
            param.add_(direction[name], alpha=-self.param_groups[0]["lr"])
        return loss


@dataclasses.dataclass(frozen=True)
class TorchOptimizer:
    """Any class of ``torch.optim``, or made like one, known by its dotted path; it runs in the loop
    only.

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
        """1 for torch's own classes; the hash of the file for a user-defined one."""
        cls = torch_class(self.name)
        return (
            1
            if cls.__module__.startswith("torch.")
            else registry.digest_of(Path(inspect.getfile(cls)))
        )

    def validated(self, settings: Mapping[str, Any], where: str) -> dict[str, Any]:
        return validate_torch(self.name, settings, where)

    def __call__(self, **settings: Any) -> TorchOptimizer:
        return TorchOptimizer(self.name, settings)


@registry.dotted("optimizer")
def at_path(path: str, where: str) -> TorchComponent:
    """The component at a dotted path such as ``torch.optim.NAdam``, for the registry.

    :raises UsageError: there is no optimizer class, or the loop could not step it.
    """
    torch_class(path, where)
    return TorchComponent(path)


def torch_optimizer(
    component: Any,
    params: Iterable[Tensor],
    lr: float,
    named: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
) -> Optimizer:
    """The object that the loop steps: the component's own over ``params``, or its pure rule over
    ``named`` as a `Rule`.
    """
    return (
        component.torch(params, lr)
        if hasattr(component, "torch")
        else Rule(component, dict(named).items(), lr)
    )


def torch_class(path: str, where: str = "optimizer") -> Callable[..., Optimizer]:
    """The optimizer class at a dotted path.

    :raises UsageError: nothing is there, it is no such class, or the loop could not step it.
    """
    module_name, _, class_name = path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module_name), class_name)
    # the last two of a path such as ".NAdam"
    except (ModuleNotFoundError, AttributeError, TypeError, ValueError):
        raise UsageError(
            f'{where}: there is no optimizer class "{path}".{nearest(path, _torch_names())}'
        ) from None
    except Exception as error:  # a user-defined module may fail in any way
        raise UsageError(
            f"{where}: {module_name} failed to import: {type(error).__name__}: {error}."
        ) from error
    if not (isinstance(cls, type) and issubclass(cls, Optimizer) and cls is not Optimizer):
        raise UsageError(
            f'{where}: "{path}" is no subclass of '
            f"torch.optim.Optimizer.{nearest(path, _torch_names())}"
        )
    closure = inspect.signature(cls.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise UsageError(
            f'{where}: "{path}" evaluates the loss several times a step, by a closure, and so has '
            f"no place beside the others."
        )
    if "lr" not in inspect.signature(cls).parameters:
        raise UsageError(f'{where}: "{path}" takes no `lr`, which every cell must set.')
    return cls


def validate_torch(path: str, settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """``settings`` of the class at ``path``, those at their default left out; ``beta1`` and
    ``beta2`` stand for ``betas``.

    :raises UsageError: no such class, an unknown or unfit setting, or one that the class itself
        refuses.
    """
    cls = torch_class(path, where)
    defaults = _defaults(cls)
    clean: dict[str, Any] = {}
    for name, value in settings.items():
        if name not in defaults:
            known = ", ".join(defaults) or "no settings"
            raise UsageError(
                f'{where}: "{path}" has no setting `{name}`. It has: '
                f"{known}.{nearest(name, defaults)}"
            )
        fitting = _fit(value, defaults[name], f'{where}: "{path}" setting `{name}`')
        if fitting != defaults[name]:
            clean[name] = fitting
    try:
        # Two by two, because some classes take matrices only.
        cls([torch.nn.Parameter(torch.zeros(2, 2))], lr=0.1, **_keywords(cls, clean))
    except Exception as error:  # a user-defined class may refuse in any way
        words = (
            ", ".join(f"{name} = {value!r}" for name, value in settings.items()) or "no settings"
        )
        raise UsageError(
            f'{where}: "{path}" refuses {words}: {str(error).rstrip(".") or type(error).__name__}.'
        ) from error
    return clean


def _torch_names() -> list[str]:
    classes = {
        name: item
        for name, item in vars(torch.optim).items()
        if isinstance(item, type) and issubclass(item, Optimizer)
    }
    return [f"torch.optim.{name}" for name, item in classes.items() if item is not Optimizer]


def _defaults(cls: Callable[..., Optimizer]) -> dict[str, Any]:
    """Setting → default, ``inspect.Parameter.empty`` if it has none; a pair of betas as two
    settings.
    """
    defaults: dict[str, Any] = {}
    for parameter in list(inspect.signature(cls).parameters.values())[1:]:
        if (
            parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            or parameter.name == "lr"
        ):
            continue
        if (
            parameter.name == "betas"
            and isinstance(parameter.default, tuple)
            and len(parameter.default) == 2
        ):
            defaults["beta1"], defaults["beta2"] = parameter.default
        else:
            defaults[parameter.name] = parameter.default
    return defaults


def _keywords(cls: Callable[..., Optimizer], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of the class: ``beta1`` and ``beta2`` are joined again."""
    keywords = dict(settings)
    if "betas" in inspect.signature(cls).parameters and not keywords.keys().isdisjoint(
        {"beta1", "beta2"}
    ):
        defaults = _defaults(cls)
        keywords["betas"] = tuple(keywords.pop(name, defaults[name]) for name in ("beta1", "beta2"))
    return keywords


def _fit(value: Any, default: Any, what: str) -> Any:
    """``value`` in the type of the default that it replaces; if that has no clear type, any
    number, flag or text.
    """
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
        raise UsageError(
            f"{what} is a tuple of {len(default)} in torch, which a study cannot give: there a "
            f"list is an axis."
        )
    if not isinstance(value, bool | int | float | str):
        raise UsageError(f"{what} is {value!r}, and must be a number, true, false or text.")
    return value
