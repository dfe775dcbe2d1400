"""A step whose gradient is compared element by element, before the clips and after them.

It needs memory, of which it takes no more than it is given; it measures as the engines do.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from clipbench.measures import COLUMNS
from clipbench.recording.gradients import Gradients
from clipbench.recording.taps import NORM, OTHER, VALUE
from clipbench.step import Meter

VECTORS = 6  # as long as what is compared, that a comparison keeps
STRAIGHT = 1 - 1e-6  # the cosine of a gradient that only got shorter


class Comparison:
    """Compares the gradients of as many parameters as fit into a memory, in bytes. A gradient may
    have a graph of its own, of which it makes no part.
    """

    def __init__(self, gradients: Gradients, memory: int) -> None:
        dtype = getattr(torch, gradients.dtype)
        room = memory // (VECTORS * dtype.itemsize)
        first = gradients.params[0].device if gradients.params else None
        self.params = []
        for param in gradients.params:
            if param.device == first and not param.is_complex() and param.numel() <= room:
                self.params.append(param)
                room -= param.numel()
        self.whole = len(self.params) == len(gradients.params)
        """Whether they are all parameters."""
        self.any = bool(self.params)
        """Whether there is room for any."""
        self._meter = Meter(self.params, dtype) if self.params else None
        self._left: Tensor | None = None
        self._zero = torch.zeros((), device=first)

    @torch.no_grad()
    def raw(self) -> None:
        """Keep the gradients as they are, before any clip."""
        if self._meter:
            self._meter.raw()

    @torch.no_grad()
    def clipped(self) -> None:
        """Keep the gradients as the clips left them, and the parameters before the step."""
        if self._meter:
            self._meter.clipped()
            self._meter.before()

    @torch.no_grad()
    def what_clipped(self) -> tuple[str, float | None] | None:
        """The kind of clip that makes what came out of what was kept, and its threshold if that is
        a value; None if nothing was changed.
        """
        pair = self._meter.handed_and_clipped if self._meter else None
        if pair is None or torch.equal(*pair):
            return None
        raw, clipped = pair
        largest = clipped.abs().max()
        if torch.equal(clipped, raw.clamp(-largest, largest)):
            return VALUE, float(largest)
        cosine = torch.nn.functional.cosine_similarity(raw.double(), clipped.double(), dim=0)
        return (NORM if cosine > STRAIGHT else OTHER), None

    @torch.no_grad()
    def step(self, keep: bool) -> None:
        """Measure the step that was taken.

        :param keep: whether to keep what it left of the gradient.
        """
        if self._meter:
            self._meter.step(self._zero)
            self._left = self._meter.now() if keep else None

    def rows(self) -> np.ndarray:
        """The measures of the steps since the last call, steps × measures; waits for the device."""
        return self._meter.rows() if self._meter else np.empty((0, len(COLUMNS)))

    @torch.no_grad()
    def altered_since_step(self) -> bool:
        """Whether somebody has changed, and not zeroed, the gradient since the step that was
        measured last. Asked once; waits for the device.
        """
        left, self._left = self._left, None
        if left is None or self._meter is None or all(one.grad is None for one in self.params):
            return False
        return _altered(left, self._meter.now())

    def forget_step(self) -> None:
        """Forget what the last step left of the gradient."""
        self._left = None

    @torch.no_grad()
    def altered_since_raw(self) -> bool:
        """Whether somebody has changed, and not zeroed, the gradient since it was kept as raw;
        waits for the device.
        """
        return self._meter is not None and _altered(self._meter.kept, self._meter.now())


def _altered(before: Tensor, now: Tensor) -> bool:
    return not torch.equal(before, now) and bool(now.any())
