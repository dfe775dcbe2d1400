"""Clip and step at once: the weights that ``clip_grad_norm_`` and ``optimizer.step()`` would leave, in a fraction of their time.

The pair reads and writes every gradient once more than it must, and asks Python about every tensor a dozen times. Here the
coefficient goes into the update itself, for SGD is linear in the gradient, and one fused kernel takes all tensors. What must be
known of them is looked up once and kept in a :class:`_Plan`; before every step the plan looks whether it still holds, and is made
anew where it does not. Where the fast way does not apply, torch's own pair runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import repeat
from operator import is_, itemgetter
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils import clip_grad_value_ as _clip_grad_value_
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from clipbench.registry import UsageError

DTYPES = (torch.float32, torch.float64)  # half precision rounds between the clip and the step, and one kernel would not
SMALL = 4096  # elements; below, a tensor's norm costs more to ask for than to copy the tensor beside its neighbours
BUCKET = 16384  # elements that share one norm: its rounding error grows with their number, and is 1e-7 here
FAINT = 1e-6  # below, 1 - coefficient has lost digits that the coefficient had

Group = dict[str, Any]


def norm_clipped_step(optimizer: Optimizer, max_norm: float) -> Tensor:
    """Clip all gradients to one global 2-norm and step: ``clip_grad_norm_(params, max_norm); optimizer.step()`` in one.

    Weights and the optimizer's state come out as the pair leaves them, up to rounding; checkpoints, learning-rate schedulers and a
    return to ``optimizer.step()`` work as ever. Fast for :class:`torch.optim.SGD`, ``Adam`` and ``AdamW`` with float32 or float64
    tensors on one device, from the second step on; everything else is given to the pair itself. Nothing waits for a CUDA device.

    What ``.grad`` holds afterwards is not promised: the pair leaves it clipped, the fast way may leave it as it was. With a
    ``GradScaler``, whose own ``step`` may skip one, keep the pair.

    :param optimizer: any torch optimizer; the clip is over all its parameters that have a gradient.
    :param max_norm: from 0 to infinity, in units of the gradient.
    :returns: the norm before the clip, a tensor of shape ``()`` on the gradients' device.
    :raises UsageError: where ``max_norm`` is negative or no number.

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
    with torch.no_grad():
        ready = _ready(optimizer)
        if ready is None:
            total = clip_grad_norm_(_params(optimizer), limit)
            optimizer.step()
            return total
        plan, grads = ready
        total = plan.norm(grads)
        # On a CPU the coefficient is a number at once; on a device it stays there, for reading it would wait for the device.
        coefficient = min(limit / (total.item() + 1e-6), 1.0) if plan.on_cpu else (limit / (total + 1e-6)).clamp_(max=1.0)
        plan.step(grads, coefficient)
        return total


def value_clipped_step(optimizer: Optimizer, max_value: float) -> None:
    """Clamp every element of the gradients and step: ``clip_grad_value_(params, max_value); optimizer.step()`` in one.

    As :func:`norm_clipped_step`, but that ``.grad`` is clipped afterwards, as the pair leaves it.

    :param max_value: from 0 to infinity, in units of the gradient.
    :raises UsageError: where ``max_value`` is negative or no number.

    >>> weight = torch.nn.Parameter(torch.zeros(2))
    >>> optimizer = torch.optim.SGD([weight], lr=1.0, momentum=0.9)
    >>> weight.grad = torch.tensor([3.0, -0.5])
    >>> value_clipped_step(optimizer, max_value=1.0)
    >>> weight.data
    tensor([-1.0000,  0.5000])
    """
    limit = _threshold("value_clipped_step: max_value", max_value)
    with torch.no_grad():
        ready = _ready(optimizer)
        if ready is None:
            _clip_grad_value_(_params(optimizer), limit)
            optimizer.step()
        else:
            plan, grads = ready
            _clamp(grads, limit)
            plan.step(grads, 1.0)


def clip_grad_value_(params: Tensor | Iterable[Tensor], max_value: float) -> None:
    """Clamp every element of the gradients in place, as :func:`torch.nn.utils.clip_grad_value_`, in one pass instead of two.

    :param max_value: from 0 to infinity, in units of the gradient.
    :raises UsageError: where ``max_value`` is negative or no number.

    >>> weight = torch.nn.Parameter(torch.zeros(3))
    >>> weight.grad = torch.tensor([3.0, -0.5, float("nan")])
    >>> clip_grad_value_([weight], max_value=1.0)
    >>> weight.grad
    tensor([ 1.0000, -0.5000,     nan])
    """
    limit = _threshold("clip_grad_value_: max_value", max_value)
    params = [params] if isinstance(params, Tensor) else list(params)
    grads = [grad for param in params if (grad := param.grad) is not None]
    if grads and all(type(grad) is Tensor and grad.is_cpu and grad.layout is torch.strided for grad in grads):
        with torch.no_grad():
            _clamp(grads, limit)
    else:
        _clip_grad_value_(params, limit)


def _threshold(where: str, given: float) -> float:
    try:
        limit = float(given)
    except (TypeError, ValueError):
        limit = -1.0
    if not limit >= 0:
        raise UsageError(f"{where} is {given!r}; it has to be a number of at least 0.")
    return limit


def _clamp(grads: list[Tensor], limit: float) -> None:
    if grads[0].is_cpu:
        for grad in grads:
            grad.clamp_(-limit, limit)
    else:  # a launch costs more than a second pass
        torch._foreach_clamp_min_(grads, -limit)
        torch._foreach_clamp_max_(grads, limit)


def _params(optimizer: Optimizer) -> list[Tensor]:
    return [param for group in optimizer.param_groups for param in group["params"]]


# ------------------------------------------------------------------------------------------------------------------- the plans

_plans: WeakKeyDictionary[Optimizer, _Plan] = WeakKeyDictionary()


def _ready(optimizer: Optimizer) -> tuple[_Plan, list[Tensor]] | None:
    """The plan for this step and the gradients it is for; None where torch's pair has to do it."""
    if not _steps_plainly(optimizer):
        return None
    plan = _plans.get(optimizer)
    grads = plan.grads(optimizer) if plan is not None else None
    if grads is None:
        _plans.pop(optimizer, None)
        plan = _Plan.of(optimizer)
        grads = plan.grads(optimizer) if plan is not None else None
        if plan is not None and grads is not None:
            _plans[optimizer] = plan
    if plan is None or grads is None:
        return None
    if "step" in vars(optimizer):  # wrapped by a learning-rate scheduler, which wants to know that there was a step
        vars(optimizer)["_opt_called"] = True
    return plan, grads


def _steps_plainly(optimizer: Optimizer) -> bool:
    """Whether ``optimizer.step()`` is torch's own, and nobody listens to it or traces it."""
    own = vars(optimizer)
    return (
        type(optimizer) in (SGD, Adam, AdamW)
        and ("step" not in own or hasattr(own["step"], "_wrapped_by_lr_sched"))
        and not own["_optimizer_step_pre_hooks"]
        and not own["_optimizer_step_post_hooks"]
        and not _global_optimizer_pre_hooks
        and not _global_optimizer_post_hooks
        and not torch.compiler.is_compiling()
    )


def _is_plain(group: Group) -> bool:
    """Whether the group's settings are numbers, and of the kinds that the fused kernels know."""
    numbers = (group["lr"], group["weight_decay"], *group.get("betas", ()))
    if group["differentiable"] or group.get("capturable") or group.get("amsgrad"):
        return False
    return all(map(isinstance, numbers, repeat((float, int))))


def _keys(optimizer: Optimizer, group: Group) -> tuple[str, ...]:
    """What the optimizer keeps of every parameter of the group, all of it in the parameter's shape but ``step``."""
    if isinstance(optimizer, Adam):
        return ("exp_avg", "exp_avg_sq", "step")
    return ("momentum_buffer",) if group["momentum"] else ()


def _layout(tensor: Tensor) -> tuple[tuple[int, int], ...]:
    """Sizes and strides; a dimension of size 1 may have any stride."""
    return tuple(pair for pair in zip(tensor.shape, tensor.stride(), strict=True) if pair[0] != 1)


def _is_dense(tensor: Tensor) -> bool:
    """Whether the elements lie without gap and overlap, in whatever order: then they are one vector."""
    size = 1
    for length, stride in sorted(_layout(tensor), key=lambda pair: pair[1]):
        if stride != size:
            return False
        size *= length
    return True


def _same(left: Iterable[Any], right: Iterable[Any]) -> bool:
    return all(map(is_, left, right))


@dataclass(frozen=True)
class _Part:
    """A parameter group: its settings, all its parameters, and its span of those that have a gradient."""

    group: Group
    params: list[Tensor]
    span: slice
    keys: tuple[str, ...]


class _Bucket:
    """A vector in which some gradients lie side by side, for one norm of all of them."""

    def __init__(self, tensors: list[Tensor], indices: list[int]) -> None:
        mine = [tensors[index] for index in indices]
        self.indices = indices
        self.takes_all = len(mine) == len(tensors)
        self.flat = all(tensor.dim() == 1 for tensor in mine)
        self.vector = mine[0].new_zeros(sum(tensor.numel() for tensor in mine))
        self.places = self.vector.split([tensor.numel() for tensor in mine])

    def fill(self, grads: list[Tensor]) -> Tensor:
        """The vector, filled with its own among all gradients."""
        mine = grads if self.takes_all else [grads[index] for index in self.indices]
        if self.flat:
            return torch.cat(mine, out=self.vector)
        # place = 0 + gradient: for tensors of any shape no other of torch's operations on lists costs as little
        self.vector.zero_()
        torch._fused_sgd_(self.places, mine, [], lr=-1.0, **PLAIN)
        return self.vector


class _Plan:
    """What one optimizer's step needs to know of its tensors, as far as it stays the same from step to step.

    The fused kernels look neither at sizes nor at strides. So a plan is made for tensors that were looked at, keeps these (the
    parameters as detached aliases, whose geometry nobody else can change), and holds only while the optimizer still has the same
    ones and each gradient has its parameter's layout.
    """

    def __init__(self, optimizer: Optimizer, parts: list[_Part], params: list[Tensor], slots: list[Group]) -> None:
        self.parts, self.params = parts, params
        self.idle = [param for part in parts for param in part.params if param.grad is None]
        self.state = {key: [entry.get(key) for entry in optimizer.state.values()] for part in parts for key in part.keys}
        self.kept = [{key: [slot[key] for slot in slots[part.span]] for key in part.keys} for part in parts]
        self.aliases = [param.detach() for param in params]
        self.pointers = [param.data_ptr() for param in params]
        self.sizes = [param.numel() for param in params]
        self.layouts = [_layout(param) for param in params]
        self.contiguous = all(param.is_contiguous() for param in params)
        self.on_cpu = params[0].is_cpu
        small = [index for index, size in enumerate(self.sizes) if size <= SMALL] if self.on_cpu else []
        self.large = sorted(set(range(len(params))) - set(small))
        self.buckets = [_Bucket(self.aliases, row) for row in self._rows(small)]

    @classmethod
    def of(cls, optimizer: Optimizer) -> _Plan | None:
        """A plan for the gradients and the state as they are; None where there can be none, as before the first step."""
        parts: list[_Part] = []
        params: list[Tensor] = []
        for group in optimizer.param_groups:
            having = [param for param in group["params"] if param.grad is not None]
            span = slice(len(params), len(params) + len(having))
            parts.append(_Part(group, list(group["params"]), span, _keys(optimizer, group)))
            params += having
        slots = [optimizer.state.get(param, {}) for param in params]
        fit = all(
            _fits(param, slot, part.keys) for part in parts for param, slot in zip(params[part.span], slots[part.span], strict=True)
        )
        one_kind = len({(param.dtype, param.device) for param in params}) == 1
        unique = len(set(map(id, params))) == len(params)
        return cls(optimizer, parts, params, slots) if fit and one_kind and unique else None

    def _rows(self, indices: list[int]) -> list[list[int]]:
        """Indices of tensors in rows, each of which fits one bucket."""
        rows: list[list[int]] = []
        for index in indices:
            if not rows or sum(self.sizes[other] for other in rows[-1]) + self.sizes[index] > BUCKET:
                rows.append([])
            rows[-1].append(index)
        return rows

    def grads(self, optimizer: Optimizer) -> list[Tensor] | None:
        """The gradients, where the plan still holds for them and for all the optimizer has; else None."""
        if not (self._has_groups(optimizer) and self._has_state(optimizer)):
            return None
        grads: list[Any] = [param.grad for param in self.params]
        if any(map(is_, grads, repeat(None))) or (self.idle and any(param.grad is not None for param in self.idle)):
            return None
        lie_alike = (
            list(map(Tensor.data_ptr, self.params)) == self.pointers
            and list(map(Tensor.numel, grads)) == self.sizes
            and (all(map(Tensor.is_contiguous, grads)) if self.contiguous else list(map(_layout, grads)) == self.layouts)
        )
        return grads if lie_alike else None

    def _has_groups(self, optimizer: Optimizer) -> bool:
        """Whether the groups have the very parameters of the plan, and settings it can follow."""
        return len(optimizer.param_groups) == len(self.parts) and all(
            group is part.group
            and len(group["params"]) == len(part.params)
            and _same(group["params"], part.params)
            and _is_plain(group)
            and _keys(optimizer, group) == part.keys
            for group, part in zip(optimizer.param_groups, self.parts, strict=True)
        )

    def _has_state(self, optimizer: Optimizer) -> bool:
        """Whether the state has the very tensors of the plan."""
        entries = optimizer.state.values()
        try:
            return all(
                len(entries) == len(tensors) and _same(map(itemgetter(key), entries), tensors)
                for key, tensors in self.state.items()
            )
        except KeyError:
            return False

    def norm(self, grads: list[Tensor]) -> Tensor:
        """The norm of the tensors' norms, as torch takes it, but that small tensors lie side by side for one norm."""
        norms = torch._foreach_norm([*(bucket.fill(grads) for bucket in self.buckets), *(grads[index] for index in self.large)])  # noqa: SLF001 - it has no other name
        return torch.linalg.vector_norm(torch.stack(norms)) if len(norms) > 1 else norms[0]

    def step(self, grads: list[Tensor], coefficient: float | Tensor) -> None:
        """Step by the gradients times ``coefficient``, a number, or on a device a tensor of shape ``()``."""
        for part, kept in zip(self.parts, self.kept, strict=True):
            params, own = self.aliases[part.span], grads[part.span]
            if not params:
                continue
            if isinstance(coefficient, float) and "step" not in kept:
                _step_sgd(part.group, params, own, kept, coefficient)
            else:
                _step_scaled(part.group, params, own, kept, coefficient)
        torch.autograd.graph.increment_version(self.params)


def _fits(param: Tensor, slot: Group, keys: tuple[str, ...]) -> bool:
    """Whether the parameter is plain and dense, and its gradient and its state are there and lie as it does."""
    if not all(key in slot for key in keys):
        return False
    beside = [param.grad, *(slot[key] for key in keys if key != "step")]
    step = slot["step"] if "step" in keys else None
    return (
        type(param) in (Tensor, torch.nn.Parameter)
        and param.dtype in DTYPES
        and param.device.type in ("cpu", "cuda")
        and param.layout is torch.strided
        and not param.is_inference()
        and _is_dense(param)
        and all(
            type(tensor) is Tensor
            and (tensor.layout, tensor.dtype, tensor.device) == (param.layout, param.dtype, param.device)
            and _layout(tensor) == _layout(param)
            for tensor in beside
        )
        and (step is None or (type(step) is Tensor and step.dtype is torch.float32 and step.device == param.device))
    )


# --------------------------------------------------------------------------------------------------------------- the kernels

PLAIN: Group = dict(weight_decay=0.0, momentum=0.0, dampening=0.0, nesterov=False, maximize=False, is_first_step=False)


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
            scale = torch.as_tensor(coefficient, dtype=torch.float32).reciprocal()
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
