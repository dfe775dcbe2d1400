"""The pilot: how large a workload's raw gradients are, so that a threshold can be a multiple of
it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from clipbench import feed, registry, trees
from clipbench.cell import Cell, Part
from clipbench.engines.loop import Trainer
from clipbench.engines.record import Components
from clipbench.errors import UsageError

PILOT_SEED = 2_000_000
PILOT_STEPS = 100
PILOT_LR = 1e-3
MEDIAN = 50.0  # the percentile
# from 1, up or down: up to here the 1e-8 that Adam adds is less than a thousandth of the size
FAR = 2.0**12


class Gauge:
    """A clip that notes the raw gradient's size, as other clips measure it, and hands it on in a
    unit that Adam can use.

    Adam squares the gradient and adds 1e-8 to its size: with a very small gradient it would stand
    still. So if the largest element of the first gradient is far from 1, the unit is the power of
    two below it.
    """

    def __init__(self, clips: Mapping[str, Any]) -> None:
        self.clips, self.unit = clips, 1.0
        self.sizes: dict[str, list[float]] = {label: [] for label in clips}
        self.seen = False

    def update(
        self, grads: dict[str, Tensor], state: Any, params: Any
    ) -> tuple[dict[str, Tensor], Any]:
        if not self.seen:
            self._choose_unit(grads)
        for label, clip in self.clips.items():
            self.sizes[label].append(self._size(clip, grads))
        return (grads if self.unit == 1 else trees.scale(grads, 1 / self.unit)), state

    def _choose_unit(self, grads: dict[str, Tensor]) -> None:
        largest = max(
            (float(grad.abs().max()) for grad in grads.values() if grad.numel()), default=0.0
        )
        if math.isfinite(largest) and largest > 0:
            self.seen = True
            if not 1 / FAR <= largest <= FAR:
                self.unit = 2.0 ** (math.frexp(largest)[1] - 1)

    def _size(self, clip: Any, grads: dict[str, Tensor]) -> float:
        """The size in float64, whose range squares of float32 do not leave; if squares of
        float64 do, in the gradient's unit.
        """
        wide = {name: grad.double() for name, grad in grads.items()}
        size = float(clip.size(wide))
        if 0 < size < math.inf:
            return size
        return float(clip.size(trees.scale(wide, 1 / self.unit))) * self.unit


def pilot(
    cell: Cell,
    clips: Mapping[str, Any],
    percentiles: Mapping[str, float] | None = None,
    needed: Collection[str] | None = None,
) -> dict[str, float]:
    """The size of the raw gradient over 100 Adam steps at lr 1e-3, to three digits, as each of
    ``clips`` measures size.

    :param cell: any cell of the workload, batch, device and dtype in question.
    :param percentiles: which percentile of its sizes each clip is given, 0 to 100, with linear
        interpolation between two of them; the median if not given.
    :param needed: labels without whose size a cell cannot run, all if not given; another size that
        is zero or not finite is left out.
    :returns: label of the clip → size.
    :raises UsageError: a size that is needed is zero or not finite.
    """
    percentiles = percentiles or {}
    gauge = Gauge(clips)
    adam = Cell(
        cell.workload,
        Part("adam", 1),
        Part("none", 1),
        PILOT_LR,
        PILOT_SEED,
        PILOT_STEPS,
        cell.batch,
        cell.device,
        cell.dtype,
    )
    workload = registry.build("workload", cell.workload.name, cell.workload.own)
    trainer = Trainer(Components(workload, registry.build("optimizer", "adam", {}), gauge), adam)
    with trees.seeded(workload.name, PILOT_SEED, "training", cell.device):
        for batch in feed.batches(
            workload, PILOT_SEED, cell.batch, PILOT_STEPS, trainer.dtype, cell.device
        ):
            trainer.step(*batch)
    wanted = {
        label: float(np.percentile(sizes, percentiles.get(label, MEDIAN)))
        for label, sizes in gauge.sizes.items()
    }
    unfit = [label for label, size in wanted.items() if not (math.isfinite(size) and size > 0)]
    for label in unfit:
        if needed is None or label in needed:
            raise UsageError(
                f'the pilot of "{cell.problem}" met gradients of size {wanted[label]:g}; give '
                f"{label} a plain number."
            )
    return {
        label: float(f"{size:.3g}") for label, size in wanted.items() if label not in set(unfit)
    }
