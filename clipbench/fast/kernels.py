"""Updates by torch's fused kernels, and one of our own that torch's compiler makes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

FAINT = 1e-6  # below, 1 - coefficient has lost digits that the coefficient had
LARGE = 2**15  # elements from which on memory decides, and not the number of calls

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


# ------------------------------------------------------------------------------------------------------- clamp and step in one


def one_pass(group: Group, params: list[Tensor]) -> list[int]:
    """Which of these tensors a compiled program may clamp and step at once: large ones on a CPU, of SGD with momentum."""
    plain = group.get("momentum", 0) and not group["nesterov"] and not group["maximize"]
    return [index for index, param in enumerate(params) if param.numel() >= LARGE] if plain and params[0].is_cpu else []


def step_clamped(group: Group, params: list[Tensor], grads: list[Tensor], kept: Group, limit: float) -> bool:
    """SGD with momentum by clamped gradients, which are read once and not written. Where it cannot be had: False, nothing done."""
    key = (tuple(param.numel() for param in params), params[0].dtype, bool(group["weight_decay"]))
    if key in _refused:
        return False
    settings = (limit, group["lr"], group["momentum"], 1 - group["dampening"], group["weight_decay"])
    # As tensors: numbers would be compiled into the program, and every learning rate be another one. In the weights' dtype: with
    # wider ones every element would be widened.
    scalars = [torch.tensor(float(value), dtype=params[0].dtype, device="cpu") for value in settings]
    vectors = ([tensor.view(-1) for tensor in tensors] for tensors in (params, grads, kept["momentum_buffer"]))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=DeprecationWarning)  # torch's own of itself
            _program(key)(*vectors, *scalars)
    except Exception as error:  # noqa: BLE001 - a compiler that is missing or fails may raise anything, before a step is made
        _refused.add(key)
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        warnings.warn(f"torch cannot compile here ({reason}): the clip and the step take a pass each.", stacklevel=4)
        return False
    return True


Key = tuple[tuple[int, ...], torch.dtype, bool]
_refused: set[Key] = set()


@lru_cache(maxsize=16)
def _program(key: Key) -> Callable[..., None]:
    """One program over all tensors of these sizes: a call for each would cost what torch takes to look its arguments up."""
    *_, decays = key

    def step(
        params: list[Tensor], grads: list[Tensor], buffers: list[Tensor],
        limit: Tensor, lr: Tensor, momentum: Tensor, share: Tensor, decay: Tensor,
    ) -> None:  # fmt: skip
        for param, grad, buffer in zip(params, grads, buffers, strict=True):
            clamped = grad.clamp(-limit, limit)
            buffer.mul_(momentum).add_(share * (clamped + decay * param if decays else clamped))
            param.sub_(lr * buffer)

    # torch allows one code object few programs.
    step.__code__ = step.__code__.replace(co_name=f"step_{abs(hash(key))}")
    return torch.compile(step, dynamic=False)
