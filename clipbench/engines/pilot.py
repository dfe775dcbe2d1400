"""The pilot: how large a workload's raw gradients are, so that a threshold can be a multiple of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from clipbench import feed, registry, trees
from clipbench.cell import Cell, Part
from clipbench.engines.loop import Trainer
from clipbench.engines.record import Components

PILOT_SEED = 2_000_000
PILOT_STEPS = 100
PILOT_LR = 1e-3


class Gauge:
    """A clip that changes nothing and notes the raw gradient's size, as other clips measure it."""

    def __init__(self, clips: Mapping[str, Any]) -> None:
        self.clips = clips
        self.sizes: dict[str, list[Tensor]] = {label: [] for label in clips}

    def update(self, grads: dict[str, Tensor], state: Any, params: Any) -> tuple[dict[str, Tensor], Any]:
        for label, clip in self.clips.items():
            self.sizes[label].append(clip.size(grads))
        return grads, state


def pilot(cell: Cell, clips: Mapping[str, Any]) -> dict[str, float]:
    """The median size of the raw gradient over 100 Adam steps at lr 1e-3, to three digits, as each of ``clips`` measures size.

    :param cell: any cell of the workload, batch, device and dtype in question.
    :returns: label of the clip → median size.
    """
    gauge = Gauge(clips)
    adam = Cell(
        cell.workload, Part("adam", 1), Part("none", 1), PILOT_LR, PILOT_SEED, PILOT_STEPS, cell.batch, cell.device, cell.dtype
    )
    workload = registry.build("workload", cell.workload.name, cell.workload.own)
    trainer = Trainer(Components(workload, registry.build("optimizer", "adam", {}), gauge), adam)
    with trees.seeded(workload.name, PILOT_SEED, "training", cell.device):
        for batch in feed.batches(workload, PILOT_SEED, cell.batch, PILOT_STEPS, trainer.dtype, cell.device):
            trainer.step(*batch)
    medians = {label: float(torch.stack(sizes).double().quantile(0.5)) for label, sizes in gauge.sizes.items()}
    unfit = [label for label, size in medians.items() if not (math.isfinite(size) and size > 0)]
    if unfit:
        raise registry.UsageError(
            f'the pilot of "{cell.problem}" met gradients of size {medians[unfit[0]]:g}; give {unfit[0]} a plain number.'
        )
    return {label: float(f"{size:.3g}") for label, size in medians.items()}
