"""Updates by torch's fused kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# below, 1 - coefficient has lost digits that the dtype would keep
FAINT = {torch.float32: 1e-6, torch.float64: 1e-2}
CACHED = 2**13  # elements up to which a second pass costs less than a call

Group = dict[str, Any]
PLAIN: Group = dict(
    weight_decay=0.0,
    momentum=0.0,
    dampening=0.0,
    nesterov=False,
    maximize=False,
    is_first_step=False,
)


def step(
    group: Group,
    params: list[Tensor],
    grads: list[Tensor],
    kept: Group,
    coefficient: float | Tensor,
) -> None:
    """Step by the gradients times ``coefficient``, a number, or on a device a tensor of shape
    ``()``.
    """
    if isinstance(coefficient, float) and "step" not in kept:
        _step_sgd(group, params, grads, kept, coefficient)
    else:
        _step_scaled(group, params, grads, kept, coefficient)


def _step_sgd(
    group: Group, params: list[Tensor], grads: list[Tensor], kept: Group, coefficient: float
) -> None:
    r"""SGD by :math:`k g`, which is SGD by :math:`g` with other settings.

    .. math:: \mu b + (1 - \tau)(k g + \lambda p) = \mu b + (1 - \tau')\bigl(g + \tfrac{\lambda}{k}
              p\bigr),
              \qquad 1 - \tau' = k (1 - \tau)

    Nesterov's step takes the gradient a second time, and has no such settings.
    """
    lr, dampening, decay = group["lr"], group["dampening"], group["weight_decay"]
    if coefficient != 1:
        share = coefficient * (1 - dampening)
        if not share >= FAINT[params[0].dtype] or group["nesterov"]:  # NaN too
            _step_scaled(group, params, grads, kept, coefficient)
            return
        decay /= coefficient
        if group["momentum"]:
            dampening = 1 - share
        else:
            lr *= coefficient
    _fused_sgd(group, params, grads, kept, lr, dampening, decay)


def _step_scaled(
    group: Group,
    params: list[Tensor],
    grads: list[Tensor],
    kept: Group,
    coefficient: float | Tensor,
) -> None:
    """Any step by scaled gradients; in float32 the kernel scales them itself, by dividing."""
    scale = None
    if isinstance(coefficient, Tensor) or coefficient != 1:
        if params[0].dtype is torch.float32:
            scale = torch.as_tensor(
                coefficient, dtype=torch.float32, device=params[0].device
            ).reciprocal()
        else:
            torch._foreach_mul_(grads, coefficient)
    if "step" in kept:
        _fused_adam(group, params, grads, kept, scale)
    else:
        _fused_sgd(
            group,
            params,
            grads,
            kept,
            group["lr"],
            group["dampening"],
            group["weight_decay"],
            scale,
        )


def _fused_sgd(
    group: Group,
    params: list[Tensor],
    grads: list[Tensor],
    kept: Group,
    lr: float,
    dampening: float,
    weight_decay: float,
    scale: Tensor | None = None,
) -> None:
    torch._fused_sgd_(
        params,
        grads,
        kept.get("momentum_buffer", []),
        weight_decay=weight_decay,
        momentum=group["momentum"],
        lr=lr,
        dampening=dampening,
        nesterov=group["nesterov"],
        maximize=group["maximize"],
        is_first_step=False,
        grad_scale=scale,
    )


def _fused_adam(
    group: Group, params: list[Tensor], grads: list[Tensor], kept: Group, scale: Tensor | None
) -> None:
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
    """Clamp in place: large tensors of a CPU in one pass, the rest in two calls for all, each of
    which costs more than a pass.
    """
    large = [grad for grad in grads if grad.numel() > CACHED] if grads[0].is_cpu else []
    rest = [grad for grad in grads if grad.numel() <= CACHED] if large else grads
    for grad in large:
        grad.clamp_(-limit, limit)
    if rest:
        torch._foreach_clamp_min_(rest, -limit)
        torch._foreach_clamp_max_(rest, limit)
