"""Plans: what a step needs to know of an optimizer's tensors, looked up once and kept as long as
it holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise, repeat
from operator import attrgetter, is_, itemgetter
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from clipbench.fast import kernels, one_pass
from clipbench.fast.kernels import PLAIN, Group
from clipbench.fast.one_pass import Row

# half precision rounds between the clip and the step, and one kernel would not
DTYPES = (torch.float32, torch.float64)
GRAD, BYTES = attrgetter("grad"), attrgetter("nbytes")
LARGEST = {dtype: torch.finfo(dtype).max for dtype in DTYPES}
NUMBERS = repeat((float, int))
# elements; below, a tensor's norm costs more to ask for than to copy the tensor beside its
# neighbours
SMALL = 4096
EPSILON = 1e-6  # torch's guard in clip_grad_norm_
# elements that share one norm: its rounding error grows with their number, and is 1e-7 here
BUCKET = 16384


def steps_plainly(optimizer: Optimizer) -> bool:
    """Whether ``optimizer.step()`` is torch's own, without hooks and not traced."""
    own = vars(optimizer)
    return (
        type(optimizer) in (SGD, Adam, AdamW)
        and _is_torchs(type(optimizer).step)  # whoever replaces it wants to be asked
        and ("step" not in own or _is_torchs(own["step"]))  # a learning-rate scheduler's
        and not own["_optimizer_step_pre_hooks"]
        and not own["_optimizer_step_post_hooks"]
        and not _global_optimizer_pre_hooks
        and not _global_optimizer_post_hooks
        and not torch.compiler.is_compiling()
        and not torch.is_inference_mode_enabled()
    )


def _is_torchs(step: Callable[..., Any]) -> bool:
    """Whether every layer of the function is torch's. ``functools.wraps`` copies names and
    attributes, but no globals.
    """
    layers = [step]
    while (inner := getattr(layers[-1], "__wrapped__", None)) is not None:
        layers.append(inner)
    return all(
        getattr(layer, "__globals__", {}).get("__name__", "").startswith("torch.optim.")
        for layer in layers
    )


def _is_plain(group: Group) -> bool:
    """Whether the group's settings are numbers, and of the kinds that the fused kernels know."""
    if group["differentiable"] or group.get("capturable") or group.get("amsgrad"):
        return False
    numbers = (
        group["lr"],
        group["weight_decay"],
        *group.get("betas", ()),
        group.get("momentum", 0),
        group.get("dampening", 0),
    )
    flags = (group["maximize"], group.get("nesterov", False))
    return all(map(isinstance, numbers, NUMBERS)) and all(
        flag is True or flag is False for flag in flags
    )


def _keys(optimizer: Optimizer, group: Group) -> tuple[str, ...]:
    """The names of the optimizer's state for every parameter of the group; all but ``step`` have
    the parameter's shape.
    """
    if isinstance(optimizer, Adam):
        return ("exp_avg", "exp_avg_sq", "step")
    return ("momentum_buffer",) if group["momentum"] else ()


def _layout(tensor: Tensor) -> tuple[tuple[int, int], ...]:
    """Sizes and strides; a dimension of size 1 may have any stride."""
    return tuple(pair for pair in zip(tensor.shape, tensor.stride(), strict=True) if pair[0] != 1)


def _is_dense(tensor: Tensor) -> bool:
    """Whether the elements lie without gap and overlap, in whatever order: then they are one
    vector.
    """
    size = 1
    for length, stride in sorted(_layout(tensor), key=lambda pair: pair[1]):
        if stride != size:
            return False
        size *= length
    return True


def _vector(tensor: Tensor) -> Tensor:
    """The memory of a dense tensor as one vector, if the tensor is not contiguous: torch's fused
    kernels take up to seven times as long over ``channels_last``, and leave the same bits.
    """
    return tensor if tensor.is_contiguous() else tensor.as_strided((tensor.numel(),), (1,))


def _are_apart(tensors: list[Tensor]) -> bool:
    """Whether no two of the tensors, all dense, share memory: threads may then step them in any
    order.
    """
    spans = sorted(
        (tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes)
        for tensor in tensors
        if tensor.numel()
    )
    return all(end <= start for (_, end), (start, _) in pairwise(spans))


def _same(left: Iterable[Any], right: Iterable[Any]) -> bool:
    return all(map(is_, left, right))


@dataclass(frozen=True)
class _GroupPlan:
    """What a plan knows of a parameter group: its settings, all its parameters, and its span of
    those that have a gradient.
    """

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
        """The vector, filled with those of all gradients that belong to it."""
        mine = grads if self.takes_all else [grads[index] for index in self.indices]
        if self.flat:
            return torch.cat(mine, out=self.vector)
        # place = 0 + gradient: for tensors of any shape no other of torch's operations on lists
        # costs as little
        self.vector.zero_()
        torch._fused_sgd_(self.places, mine, [], lr=-1.0, **PLAIN)
        return self.vector


class Plan:
    """What a step needs to know of one optimizer's tensors, and what stays the same from step to
    step.

    The fused kernels look neither at sizes nor at strides. So a plan is made for tensors that were
    looked at, keeps detached aliases of weights and state, whose geometry nobody else can change,
    and holds only while the optimizer still has the same tensors, these have the same memory, and
    each gradient lies as its parameter does.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        groups: list[_GroupPlan],
        params: list[Tensor],
        slots: list[Group],
    ) -> None:
        self.groups, self.params = groups, params
        self.idle = [param for group in groups for param in group.params if param.grad is None]
        self.owners = list(optimizer.state)
        self.state = {
            key: [entry.get(key) for entry in optimizer.state.values()]
            for group in groups
            for key in group.keys
        }
        self.on_cpu = params[0].is_cpu
        alias = (lambda tensor: _vector(tensor.detach())) if self.on_cpu else Tensor.detach
        self.kept = [
            {key: [alias(slot[key]) for slot in slots[group.span]] for key in group.keys}
            for group in groups
        ]
        self.aliases = list(map(alias, params))
        vectors = [
            slot[key]
            for group in groups
            for key in group.keys
            if key != "step"
            for slot in slots[group.span]
        ]
        self.watched = params + vectors
        self.pointers = list(map(Tensor.data_ptr, self.watched))
        self.bytes = list(map(BYTES, params))
        self.sizes = one_pass.sizes(params)
        self.layouts = list(map(_layout, params))
        self.contiguous = all(map(Tensor.is_contiguous, params))
        # in place, at the same address
        self.turnable = [param for param in params if len(_layout(param)) > 1]
        # backward may leave such a gradient negated
        self.lonely = [index for index, size in enumerate(self.sizes) if size == 1]
        # of gradients and weights alike; a gradient may be another tensor at every step, and no
        # alias of one is kept
        self.turned = [
            index for index, param in enumerate(params) if self.on_cpu and not param.is_contiguous()
        ]
        self.places = one_pass.addresses(params)
        self.buffers = [one_pass.addresses(kept.get("momentum_buffer", ())) for kept in self.kept]
        small = (
            [index for index, size in enumerate(self.sizes) if size <= SMALL] if self.on_cpu else []
        )
        self.large = sorted(set(range(len(params))) - set(small))
        self.buckets = [_Bucket(self.aliases, row) for row in self._rows(small)]

    @classmethod
    def of(cls, optimizer: Optimizer) -> Plan | None:
        """A plan for the gradients and the state as they are; None if there can be none, as
        before the first step.
        """
        groups: list[_GroupPlan] = []
        params: list[Tensor] = []
        for group in optimizer.param_groups:
            having = [param for param in group["params"] if param.grad is not None]
            span = slice(len(params), len(params) + len(having))
            groups.append(_GroupPlan(group, list(group["params"]), span, _keys(optimizer, group)))
            params += having
        slots = [optimizer.state.get(param, {}) for param in params]
        fit = all(
            _fits(param, slot, planned.keys)
            for planned in groups
            for param, slot in zip(params[planned.span], slots[planned.span], strict=True)
        )
        one_kind = len({(param.dtype, param.device) for param in params}) == 1
        unique = len(set(map(id, params))) == len(params)
        return (
            cls(optimizer, groups, params, slots)
            if fit and one_kind and unique and _are_apart(params)
            else None
        )

    def _rows(self, indices: list[int]) -> list[list[int]]:
        """Indices of tensors in rows, each of which fits one bucket."""
        rows: list[list[int]] = []
        for index in indices:
            if (
                not rows
                or sum(self.sizes[other] for other in rows[-1]) + self.sizes[index] > BUCKET
            ):
                rows.append([])
            rows[-1].append(index)
        return rows

    def grads(self, optimizer: Optimizer) -> list[Tensor] | None:
        """The gradients, if the plan still holds for them and for all the optimizer has; else
        None.
        """
        if not (self._has_groups(optimizer) and self._has_state(optimizer)):
            return None
        if self.idle and any(param.grad is not None for param in self.idle):
            return None
        grads: list[Any] = list(map(GRAD, self.params))
        holds = (
            set(map(type, grads)) == {Tensor}
            and list(map(Tensor.data_ptr, self.watched)) == self.pointers
            and list(map(BYTES, grads)) == self.bytes
            and (
                all(map(Tensor.is_contiguous, grads))
                and all(map(Tensor.is_contiguous, self.turnable))
                if self.contiguous
                else list(map(_layout, grads)) == self.layouts
                and list(map(_layout, self.params)) == self.layouts
            )
            and not any(grads[index].is_neg() for index in self.lonely)
        )
        return grads if holds else None

    def _has_groups(self, optimizer: Optimizer) -> bool:
        """Whether the groups have the same parameters as in the plan, and settings that it can
        follow.
        """
        if len(optimizer.param_groups) != len(self.groups):
            return False
        # all() over a generator would cost as much as what it asks
        for group, planned in zip(optimizer.param_groups, self.groups, strict=True):
            params = group["params"]
            if (
                group is not planned.group
                or len(params) != len(planned.params)
                or not _same(params, planned.params)
            ):
                return False
            if not _is_plain(group) or _keys(optimizer, group) != planned.keys:
                return False
        return True

    def _has_state(self, optimizer: Optimizer) -> bool:
        """Whether the state has the same tensors as in the plan."""
        entries = optimizer.state.values()
        if len(entries) != len(self.owners) or not _same(optimizer.state, self.owners):
            return False
        try:
            for key, tensors in self.state.items():
                if not _same(map(itemgetter(key), entries), tensors):
                    return False
        except KeyError:
            return False
        return True

    def step_to_norm(self, grads: list[Tensor], limit: float, compiled: bool) -> Tensor:
        """The norm of the gradients, of shape ``()``; a step is taken by them, scaled to a norm
        of at most ``limit``.
        """
        if (ours := self._kernels(compiled)) is not None:
            places = one_pass.addresses(grads)
            total = ours.norm(self.sizes, places)
            self._step_in_one_pass(ours, places, coefficient=_coefficient(limit, total))
            return total
        grads = self._vectors(grads)
        total = self._norm(grads)
        # On a CPU the coefficient is a number at once; on a device it stays there, for reading it
        # would wait for the device.
        self._step(
            grads,
            _coefficient(limit, total)
            if self.on_cpu
            else (limit / (total + EPSILON)).clamp_(max=1.0),
        )
        return total

    def step_clamped(self, grads: list[Tensor], limit: float, compiled: bool) -> None:
        """Step by the gradients, clamped to ``limit``."""
        if (ours := self._kernels(compiled)) is not None:
            self._step_in_one_pass(ours, one_pass.addresses(grads), limit=limit)
        else:
            grads = self._vectors(grads)
            kernels.clamp(grads, limit)
            self._step(grads, 1.0)

    def _vectors(self, grads: list[Tensor]) -> list[Tensor]:
        """The gradients as the plan has weights and state: as vectors where they are not
        contiguous.
        """
        for index in self.turned:
            grads[index] = _vector(grads[index])
        return grads

    def _norm(self, grads: list[Tensor]) -> Tensor:
        """The norm of the tensors' norms, as torch takes it, but that small tensors lie side by
        side for one norm.
        """
        vectors = [bucket.fill(grads) for bucket in self.buckets]
        vectors += [grads[index] for index in self.large]
        norms = torch._foreach_norm(vectors)  # noqa: SLF001 - it has no other name
        return torch.linalg.vector_norm(torch.stack(norms)) if len(norms) > 1 else norms[0]

    def _step(self, grads: list[Tensor], coefficient: float | Tensor) -> None:
        """Step by the gradients times ``coefficient``, a number, or on a device a tensor of
        shape ``()``.
        """
        for planned, kept in zip(self.groups, self.kept, strict=True):
            if params := self.aliases[planned.span]:
                kernels.step(planned.group, params, grads[planned.span], kept, coefficient)
        torch.autograd.graph.increment_version(self.params)

    def _kernels(self, wanted: bool) -> one_pass.Kernels | None:
        """Our own kernels; None if they are not wanted, do not have the rule, or could not be
        made.
        """
        knows = (
            wanted and self.on_cpu and not any("step" in planned.keys for planned in self.groups)
        )
        return one_pass.kernels().get(self.params[0].dtype) if knows else None

    def _step_in_one_pass(
        self, ours: one_pass.Kernels, grads: Row, coefficient: float = 1.0, limit: float = math.inf
    ) -> None:
        """SGD of all parameters by our own kernel."""
        for planned, buffers in zip(self.groups, self.buffers, strict=True):
            span = planned.span
            ours.step(
                planned.group,
                self.sizes[span],
                self.places[span],
                grads[span],
                buffers,
                coefficient,
                limit,
            )
        torch.autograd.graph.increment_version(self.params)


def _coefficient(limit: float, norm: Tensor) -> float:
    """The factor of the gradients; NaN if limit and norm are both infinite in the norm's own
    dtype.
    """
    limit = limit if limit <= LARGEST[norm.dtype] else math.inf
    return min(limit / (norm.item() + EPSILON), 1.0)


def _fits(param: Tensor, slot: Group, keys: tuple[str, ...]) -> bool:
    """Whether the parameter is plain and dense, and its gradient and its state are there and lie
    as it does.
    """
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
            and (tensor.layout, tensor.dtype, tensor.device)
            == (param.layout, param.dtype, param.device)
            and _layout(tensor) == _layout(param)
            for tensor in beside
        )
        and (
            step is None
            or (
                type(step) is Tensor and step.dtype is torch.float32 and step.device == param.device
            )
        )
    )
