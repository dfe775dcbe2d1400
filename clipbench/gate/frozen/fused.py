"""The frozen reference of a fast step: fused kernels on many small tensors, and what has to be
looked at before each.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import repeat
from operator import attrgetter, is_, itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from . import Work

MANY = ((8, 8),) * 100  # where calls decide


def momentum_of_many() -> torch.optim.SGD:
    """Momentum .9 of `MANY` tensors after a step. All memory is one piece: how it lies would
    move the time by 4 % and more.
    """
    # large enough to begin with a page, in every process and for every arm
    memory = torch.empty(2**20)
    sizes = [torch.Size(shape).numel() for shape in MANY]
    drawn = memory[: 3 * sum(sizes)].normal_(generator=torch.Generator().manual_seed(0))
    params, grads, buffers = (
        [part.view(shape) for part, shape in zip(some.split(sizes), MANY, strict=True)]
        for some in drawn.split(sum(sizes))
    )
    optimizer = torch.optim.SGD([nn.Parameter(param) for param in params], lr=1e-6, momentum=0.9)
    for param, grad, buffer in zip(
        optimizer.param_groups[0]["params"], grads, buffers, strict=True
    ):
        param.grad = grad
        optimizer.state[param]["momentum_buffer"] = buffer
    optimizer.step()
    return optimizer


def _is_torchs(step: Callable[..., Any]) -> bool:
    layers = [step]
    while (inner := getattr(layers[-1], "__wrapped__", None)) is not None:
        layers.append(inner)
    return all(
        getattr(layer, "__globals__", {}).get("__name__", "").startswith("torch.optim.")
        for layer in layers
    )


class _FusedMomentum:
    """The same by torch's fused kernel, which looks at neither sizes nor places: that is done
    here.
    """

    def __init__(self) -> None:
        self.optimizer = momentum_of_many()
        self.params: list[nn.Parameter] = self.optimizer.param_groups[0]["params"]
        self.known = {self.optimizer: self}
        self.groups = [
            (group, list(group["params"]), slice(0, len(self.params)))
            for group in self.optimizer.param_groups
        ]
        self.buffers = [self.optimizer.state[param]["momentum_buffer"] for param in self.params]
        self.aliases = [param.detach() for param in self.params]
        self.watched = [*self.params, *self.buffers]
        self.places, self.sizes = (
            [tensor.data_ptr() for tensor in self.watched],
            [param.nbytes for param in self.params],
        )
        self.matrices = [param for param in self.params if param.dim() > 1]

    def gradients(self) -> list[Tensor]:
        """The gradients, where all is as it was when the kernel's lists were made."""
        own = vars(self.optimizer)
        plain = (
            type(self.optimizer) in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
            and _is_torchs(type(self.optimizer).step)
            and ("step" not in own or _is_torchs(own["step"]))
            and not own["_optimizer_step_pre_hooks"]
            and not own["_optimizer_step_post_hooks"]
            and not torch.compiler.is_compiling()
            and not torch.is_inference_mode_enabled()
        )
        if (
            not plain
            or self.known.get(self.optimizer) is not self
            or not (self._same_groups() and self._same_state())
        ):
            raise RuntimeError("something moved")
        grads: list[Any] = list(map(attrgetter("grad"), self.params))
        if not (
            set(map(type, grads)) == {Tensor}
            and list(map(Tensor.data_ptr, self.watched)) == self.places
            and list(map(attrgetter("nbytes"), grads)) == self.sizes
            and all(map(Tensor.is_contiguous, grads))
            and all(map(Tensor.is_contiguous, self.matrices))
        ):
            raise RuntimeError("something moved")
        return grads

    def _same_groups(self) -> bool:
        if len(self.optimizer.param_groups) != len(self.groups):
            return False
        for group, (known, params, _) in zip(self.optimizer.param_groups, self.groups, strict=True):
            if (
                group is not known
                or len(group["params"]) != len(params)
                or not all(map(is_, group["params"], params))
            ):
                return False
            numbers = (
                group["lr"],
                group["weight_decay"],
                *group.get("betas", ()),
                group["momentum"],
                group["dampening"],
            )
            if (
                group["differentiable"]
                or group.get("capturable")
                or not all(map(isinstance, numbers, repeat((float, int))))
            ):
                return False
            if not all(
                flag is True or flag is False for flag in (group["maximize"], group["nesterov"])
            ):
                return False
        return True

    def _same_state(self) -> bool:
        entries = self.optimizer.state.values()
        same = len(entries) == len(self.buffers) and all(
            map(is_, self.optimizer.state, self.params)
        )
        return same and all(map(is_, map(itemgetter("momentum_buffer"), entries), self.buffers))

    def step(self, grads: list[Tensor]) -> None:
        """By the gradients as they are."""
        for group, _, span in self.groups:
            params, own, buffers = self.aliases[span], grads[span], self.buffers[span]
            torch._fused_sgd_(
                params,
                own,
                buffers,
                weight_decay=group["weight_decay"],
                momentum=group["momentum"],
                lr=group["lr"],
                dampening=group["dampening"],
                nesterov=group["nesterov"],
                maximize=group["maximize"],
                is_first_step=False,
            )
        torch.autograd.graph.increment_version(self.params)


def fast_value_step() -> Work:
    """Value clip at .1 and momentum .9 of many small tensors: two calls for all, and a fused
    step.
    """
    model = _FusedMomentum()

    def work() -> None:
        with torch.no_grad():
            grads = model.gradients()
            small = [grad for grad in grads if grad.numel() <= 8192]
            torch._foreach_clamp_min_(small, -0.1)
            torch._foreach_clamp_max_(small, 0.1)
            model.step(grads)

    return work
