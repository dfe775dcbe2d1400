"""Updates by torch's fused kernels, and one of our own that torch's compiler makes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

FAINT = 1e-6  # below, 1 - coefficient has lost digits that the coefficient had
LARGE = 2**18  # elements from which on memory decides, and a pass less is worth a call of its own

Group = dict[str, Any]
PLAIN: Group = dict(weight_decay=0.0, momentum=0.0, dampening=0.0, nesterov=False, maximize=False, is_first_step=False)


def step(group: Group, params: list[Tensor], grads: list[Tensor], kept: Group, coefficient: float | Tensor) -> None:
    """Step by the gradients times ``coefficient``, a number, or on a device a tensor of shape ``()``."""
    if isinstance(coefficient, float) and "step" not in kept:
        _step_sgd(group, params, grads, kept, coefficient)
    else:
        _step_scaled(group, params, grads, kept, coefficient)


def _step_sgd(group: Group, params: list[Tensor], grads: list[Tensor], kept: Group, coefficient: float) -> None:
    r"""SGD by :math:`k g`, which is SGD by :math:`g` with other settings.

    .. math:: \mu b + (1 - \tau)(k g + \lambda p) = \mu b + (1 - \tau')\bigl(g + \tfrac{\lambda}{k} p\bigr),
              \qquad 1 - \tau' = k (1 - \tau)

    Nesterov's step takes the gradient a second time, and has no such settings.
    """
    share = coefficient * (1 - group["dampening"])
    if coefficient == 1:
        _fused_sgd(group, params, grads, kept)
    elif not share >= FAINT or group["nesterov"]:  # NaN too
        _step_scaled(group, params, grads, kept, coefficient)
    elif group["momentum"]:
        _fused_sgd(group, params, grads, kept, weight_decay=group["weight_decay"] / coefficient, dampening=1 - share)
    else:
        _fused_sgd(group, params, grads, kept, weight_decay=group["weight_decay"] / coefficient, lr=group["lr"] * coefficient)


def _step_scaled(group: Group, params: list[Tensor], grads: list[Tensor], kept: Group, coefficient: float | Tensor) -> None:
    """Any step by scaled gradients; in float32 the kernel scales them itself, by dividing."""
    scale = None
    if isinstance(coefficient, Tensor) or coefficient != 1:
        if params[0].dtype is torch.float32:
            scale = torch.as_tensor(coefficient, dtype=torch.float32, device=params[0].device).reciprocal()
        else:
            torch._foreach_mul_(grads, coefficient)
    if "step" in kept:
        _fused_adam(group, params, grads, kept, scale)
    else:
        _fused_sgd(group, params, grads, kept, grad_scale=scale)


def _fused_sgd(group: Group, params: list[Tensor], grads: list[Tensor], kept: Group, **changes: Any) -> None:
    settings = {name: group[name] for name in ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize")}
    torch._fused_sgd_(params, grads, kept.get("momentum_buffer", []), is_first_step=False, **(settings | changes))


def _fused_adam(group: Group, params: list[Tensor], grads: list[Tensor], kept: Group, scale: Tensor | None) -> None:
    kernel = torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_
    torch._foreach_add_(kept["step"], 1)
    kernel(
        params,
        grads,
        kept["exp_avg"],
        kept["exp_avg_sq"],
        [],
        kept["step"],
        lr=group["lr"],
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        amsgrad=False,
        maximize=group["maximize"],
        grad_scale=scale,
    )


def clamp(grads: list[Tensor], limit: float) -> None:
    """Clamp in place."""
    if grads[0].is_cpu:
        for grad in grads:
            grad.clamp_(-limit, limit)
    else:  # a launch costs more than a second pass
        torch._foreach_clamp_min_(grads, -limit)
        torch._foreach_clamp_max_(grads, limit)


Kernel = Callable[..., None]


def one_pass(group: Group, params: list[Tensor]) -> Kernel | None:
    """The compiled kernel, where it knows this update of these tensors and can be made here."""
    plain = group.get("momentum", 0) and not group["nesterov"] and not group["maximize"]
    return _compiled() if plain and params[0].is_cpu else None


def step_clamped(kernel: Kernel, group: Group, params: list[Tensor], grads: list[Tensor], kept: Group, limit: float) -> None:
    """SGD with momentum by clamped gradients, which are read once and not written."""
    settings = (limit, group["lr"], group["momentum"], 1 - group["dampening"], group["weight_decay"])
    # As tensors: numbers would be compiled into the kernel, and every learning rate be another one. In the weights' dtype: with
    # wider ones every element would be widened.
    *scalars, decay = (torch.tensor(float(value), dtype=params[0].dtype, device=params[0].device) for value in settings)
    for tensors in zip(params, grads, kept["momentum_buffer"], strict=True):
        kernel(*(tensor.view(-1) for tensor in tensors), *scalars, decay if group["weight_decay"] else None)


@cache
def _compiled() -> Kernel | None:
    """The kernel, made and tried once in a process; None, with a warning, where there is no compiler for it."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=DeprecationWarning)  # torch's own of itself
            kernel: Kernel = torch.compile(_clamped_sgd, dynamic=True)
            kernel(*(torch.zeros(size, device="cpu") for size in (LARGE, LARGE, LARGE, (), (), (), ())), None)
    except Exception as error:  # noqa: BLE001 - a compiler that is missing or fails may raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        warnings.warn(f"torch cannot compile here ({reason}): the clip and the step take a pass each.", stacklevel=4)
        return None
    return kernel


def _clamped_sgd(
    param: Tensor, grad: Tensor, buffer: Tensor, limit: Tensor, lr: Tensor, momentum: Tensor, share: Tensor, decay: Tensor | None
) -> None:
    clamped = grad.clamp(-limit, limit)
    if decay is not None:
        clamped = clamped + decay * param
    buffer.mul_(momentum).add_(share * clamped)
    param.sub_(lr * buffer)
