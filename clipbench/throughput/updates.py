"""The clip and the optimizer's step alone, on given gradients: what an implementation changes,
at any model size.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from clipbench import registry, trees
from clipbench.throughput.footprint import Footprint, footprint
from clipbench.throughput.implementations import IMPLEMENTATIONS, flattened
from clipbench.throughput.sizes import Shape


class Given:
    """Weights and gradients of some shapes, the same for every implementation; elements have a
    standard deviation of .01.
    """

    def __init__(self, shapes: Sequence[Shape], dtype: torch.dtype, device: str) -> None:
        self.shapes, self.sizes = list(shapes), [prod(shape) for shape in shapes]
        generator, count = trees.generator("throughput", 0, "given"), sum(self.sizes)
        self.weights, self.grads = (
            torch.randn(count, generator=generator).mul_(0.01).to(device, dtype) for _ in range(2)
        )

    def params(self) -> list[nn.Parameter]:
        """Parameters with gradients, each tensor in its own memory, as in a model."""
        params = [nn.Parameter(tensor.clone()) for tensor in self._parts(self.weights)]
        for param, grad in zip(params, self._parts(self.grads), strict=True):
            param.grad = grad.clone()
        return params

    def drawn(self, flat: bool) -> list[Tensor]:
        """The gradients, as one tensor or as many."""
        return [self.grads] if flat else self._parts(self.grads)

    def _parts(self, whole: Tensor) -> list[Tensor]:
        return [
            tensor.view(shape)
            for tensor, shape in zip(whole.split(self.sizes), self.shapes, strict=True)
        ]


def halved(clip: Any, settings: Mapping[str, Any], inputs: Given) -> dict[str, Any]:
    """A clip's settings with the threshold at half the size of the gradients, so that it fires;
    unchanged if it has no size.
    """
    threshold = registry.threshold_field(clip)
    if threshold is None or not hasattr(clip, "size"):
        return dict(settings)
    size = clip(**{**settings, threshold: 1.0}).size({"p": inputs.grads})
    return {**settings, threshold: float(f"{float(size) / 2:.3g}")}


class Weights:
    """Weights and an optimizer in one implementation, shared by the clips that are timed on them.

    :raises Unfit: the implementation does not have the optimizer.
    """

    def __init__(self, implementation: str, rule: Any, lr: float, inputs: Given) -> None:
        kind, params = IMPLEMENTATIONS[implementation], inputs.params()
        self.built = kind([flattened(params)] if kind.flat else params, rule, lr)
        self.drawn, self.device = inputs.drawn(kind.flat), inputs.grads.device.type

    @torch.no_grad()
    def renew(self) -> None:
        """Set the gradients back: a clip that has fired would not fire again on what it left."""
        torch._foreach_copy_(self.built.grads, self.drawn)


class Update:
    """One clip on some weights.

    :raises Unfit: the implementation does not have the clip.
    """

    def __init__(self, weights: Weights, clip: Any) -> None:
        self.weights, self.update = weights, weights.built.update(clip)

    def block(self, steps: int) -> float:
        """Seconds for ``steps`` updates; the gradients are renewed before each of them, outside
        the clock.
        """
        if self.weights.device == "cuda":
            return self._on_device(steps)
        seconds = 0.0
        for _ in range(steps):
            self.weights.renew()
            start = time.perf_counter()
            self.update()
            seconds += time.perf_counter() - start
        return seconds

    def _on_device(self, steps: int) -> float:
        pairs = [
            (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            for _ in range(steps)
        ]
        torch.cuda.synchronize()
        for start, end in pairs:
            self.weights.renew()
            start.record()
            self.update()
            end.record()
        torch.cuda.synchronize()
        return sum(start.elapsed_time(end) for start, end in pairs) / 1e3

    def footprint(self) -> Footprint:
        """Memory and, on CUDA, kernels and waits of one update."""
        self.weights.renew()
        return footprint(self.update, self.weights.built.held(), self.weights.device)
