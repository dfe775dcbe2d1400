"""Clip and step at once: the weights that ``clip_grad_norm_`` and ``optimizer.step()`` would leave,
in a fraction of their time.

The pair reads and writes every gradient once more than it must, and asks Python about every tensor
a dozen times. Here the coefficient goes into the update itself, for SGD is linear in the gradient,
and one fused kernel takes all tensors. Their sizes, memory and state are looked up once and kept in
a plan, with the optimizer; before every step the plan is checked, and made anew if it no longer
holds. (If weights have moved to other memory, the old memory is held until then.) If the fast way
does not apply, torch's own pair runs.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils import clip_grad_value_ as _clip_grad_value_
from torch.optim import Optimizer

from clipbench.errors import UsageError
from clipbench.fast import kernels, one_pass
from clipbench.fast.plan import Plan, steps_plainly

__all__ = ["clip_grad_value_", "norm_clipped_step", "value_clipped_step"]


def norm_clipped_step(optimizer: Optimizer, max_norm: float, *, compiled: bool = False) -> Tensor:
    """Clip all gradients to one global 2-norm and step: ``clip_grad_norm_(params, max_norm);
    optimizer.step()`` in one.

    Weights and the optimizer's state come out as the pair leaves them, up to rounding; checkpoints,
    learning-rate schedulers and a return to ``optimizer.step()`` work as before. It is fast for
    :class:`torch.optim.SGD`, ``Adam`` and ``AdamW`` with float32 or float64 tensors on one device,
    from the second step on; the pair itself does everything else. Nothing waits for a CUDA device.

    What ``.grad`` holds afterwards is not promised: the pair leaves it clipped, the fast way may
    leave it as it was. With a ``GradScaler``, whose own ``step`` may skip one, and with gradients
    that share memory, keep the pair.

    :param optimizer: any torch optimizer; the clip is over all its parameters that have a gradient.
    :param max_norm: from 0 to infinity, in units of the gradient.
    :param compiled: take kernels of our own for SGD on a CPU. This machine's C++ compiler makes
        them at the first such step of a process, in a fraction of a second; if it cannot, a warning
        says so, and torch's are used. Here they save calls, which matters if tensors are many and
        small.
    :returns: the norm before the clip, a tensor of shape ``()`` on the gradients' device.
    :raises UsageError: ``max_norm`` is negative or no number.

    Source: Pascanu et al. 2013; :func:`torch.nn.utils.clip_grad_norm_`.

    >>> weight = torch.nn.Parameter(torch.zeros(2))
    >>> optimizer = torch.optim.SGD([weight], lr=1.0, momentum=0.9)
    >>> weight.grad = torch.tensor([3.0, 4.0])
    >>> norm_clipped_step(optimizer, max_norm=1.0)
    tensor(5.)
    >>> weight.data
    tensor([-0.6000, -0.8000])
    """
    limit = _threshold("norm_clipped_step: max_norm", max_norm)
    ready = _ready(optimizer)
    if ready is None:
        total = clip_grad_norm_(_params(optimizer), limit)
        optimizer.step()
        return total
    plan, grads = ready
    with torch.no_grad():
        return plan.step_to_norm(grads, limit, compiled)


def value_clipped_step(optimizer: Optimizer, max_value: float, *, compiled: bool = False) -> None:
    """Clamp every element of the gradients and step: ``clip_grad_value_(params, max_value);
    optimizer.step()`` in one.

    As :func:`norm_clipped_step`, but that ``.grad`` is clipped afterwards, as the pair leaves it,
    unless ``compiled``.

    :param max_value: from 0 to infinity, in units of the gradient.
    :param compiled: as there; here our own kernel saves a pass over memory as well, for it clamps
        and steps at once.
    :raises UsageError: ``max_value`` is negative or no number.

    >>> weight = torch.nn.Parameter(torch.zeros(2))
    >>> optimizer = torch.optim.SGD([weight], lr=1.0, momentum=0.9)
    >>> weight.grad = torch.tensor([3.0, -0.5])
    >>> value_clipped_step(optimizer, max_value=1.0)
    >>> weight.data
    tensor([-1.0000,  0.5000])
    """
    limit = _threshold("value_clipped_step: max_value", max_value)
    ready = _ready(optimizer)
    if ready is None:
        _clip_grad_value_(_params(optimizer), limit)
        optimizer.step()
    else:
        plan, grads = ready
        with torch.no_grad():
            plan.step_clamped(grads, limit, compiled)


def clip_grad_value_(
    params: Tensor | Iterable[Tensor], max_value: float, *, compiled: bool = False
) -> None:
    """Clamp every element of the gradients in place, as :func:`torch.nn.utils.clip_grad_value_`, in
    one pass instead of two.

    :param max_value: from 0 to infinity, in units of the gradient.
    :param compiled: as for :func:`norm_clipped_step`; one call for all tensors that are contiguous
        and of one dtype.
    :raises UsageError: ``max_value`` is negative or no number.

    >>> weight = torch.nn.Parameter(torch.zeros(3))
    >>> weight.grad = torch.tensor([3.0, -0.5, float("nan")])
    >>> clip_grad_value_([weight], max_value=1.0)
    >>> weight.grad
    tensor([ 1.0000, -0.5000,     nan])
    """
    limit = _threshold("clip_grad_value_: max_value", max_value)
    params = [params] if isinstance(params, Tensor) else list(params)
    grads = [grad for param in params if (grad := param.grad) is not None]
    if set(map(type, grads)) != {Tensor} or not all(
        grad.is_cpu and grad.layout is torch.strided for grad in grads
    ):
        _clip_grad_value_(params, limit)
        return
    with torch.no_grad():
        if not (compiled and _clamp_in_one_call(grads, limit)):
            kernels.clamp(grads, limit)


def _clamp_in_one_call(grads: list[Tensor], limit: float) -> bool:
    """Whether our own kernel knows such gradients, and has clamped them."""
    if (
        len({grad.dtype for grad in grads}) > 1
        or not all(map(Tensor.is_contiguous, grads))
        or any(map(Tensor.is_neg, grads))
    ):
        return False
    ours = one_pass.kernels().get(grads[0].dtype)
    if ours is None:
        return False
    ours.clamp(one_pass.sizes(grads), one_pass.addresses(grads), limit)
    torch.autograd.graph.increment_version(grads)
    return True


def _threshold(where: str, value: float) -> float:
    try:
        limit = float(value)
    except (TypeError, ValueError):
        limit = -1.0
    if not limit >= 0:
        raise UsageError(f"{where} is {value!r}; it has to be a number of at least 0.")
    return limit


def _params(optimizer: Optimizer) -> list[Tensor]:
    return [param for group in optimizer.param_groups for param in group["params"]]


# kept with the optimizer, which neither copies nor pickles it: both go together, whoever refers to
# whom
_PLAN = "_clipbench_plan"


def held(optimizer: Optimizer) -> list[Tensor]:
    """The tensors kept for an optimizer besides its own state: vectors in which small gradients
    lie side by side for a norm.
    """
    plan = vars(optimizer).get(_PLAN)
    return [bucket.vector for bucket in plan.buckets] if plan is not None else []


def _ready(optimizer: Optimizer) -> tuple[Plan, list[Tensor]] | None:
    """The plan for this step and the gradients that it is for; None if torch's pair must take
    the step.
    """
    if not steps_plainly(optimizer):
        return None
    plan = vars(optimizer).get(_PLAN)
    grads = plan.grads(optimizer) if plan is not None else None
    if grads is None:
        vars(optimizer).pop(_PLAN, None)
        plan = Plan.of(optimizer)
        grads = plan.grads(optimizer) if plan is not None else None
        if plan is not None and grads is not None:
            vars(optimizer)[_PLAN] = plan
    if plan is None or grads is None:
        return None
    # wrapped by a learning-rate scheduler, which wants to know that there was a step
    if "step" in vars(optimizer):
        vars(optimizer)["_opt_called"] = True
    return plan, grads
