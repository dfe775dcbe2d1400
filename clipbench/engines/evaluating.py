"""How well lanes do: their outputs over whole splits, together, and the grades of each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from clipbench import feed
from clipbench.engines.program import FEWEST_LANES, flat, grain
from clipbench.engines.record import CHUNK, Job, graded
from clipbench.engines.stacked import Programs
from clipbench.events import Evaluation


class Trained(Protocol):
    """Lanes, as far as their evaluation needs them."""

    workload: Any
    jobs: list[Job]
    seeds: list[int]
    dtype: torch.dtype
    device: str
    programs: Programs
    seed_index: Tensor
    weights: Tensor
    fixed: tuple[Tensor, ...]


@torch.no_grad()
def evaluate(lanes: Trained, which: Iterable[int], updates: int) -> dict[int, list[Evaluation]]:
    """Lane → loss and metrics over whole splits, graded by the host: a device is waited for
    once a split, and not for each number.
    """
    splits, on_host = (
        [feed.splits(lanes.workload, seed, lanes.dtype, device) for seed in lanes.seeds]
        for device in (lanes.device, "cpu")
    )
    evaluations: dict[int, list[Evaluation]] = {lane: [] for lane in which}
    last, seed_of = updates == lanes.jobs[0].cell.steps, lanes.seed_index.tolist()
    for split in feed.SPLITS:
        data = [splits[seed][split] for seed in seed_of]
        # Seeds may draw splits of different sizes: lanes of one size go together.
        sizes: dict[Any, list[int]] = {}
        for lane, (inputs, _) in enumerate(data):
            sizes.setdefault(inputs.shape, []).append(lane)
        for group in sizes.values():
            inputs = [data[lane][0] for lane in group]
            outputs = _outputs(lanes, group, inputs).cpu()
            for lane, output in zip(group, outputs, strict=False):
                if lane in evaluations:
                    _, targets = on_host[seed_of[lane]][split]
                    evaluations[lane] += graded(
                        lanes.workload, output, targets, updates, split, last
                    )
    return evaluations


def _outputs(lanes: Trained, which: Sequence[int], inputs: Sequence[Tensor]) -> Tensor:
    """What the models of some lanes make of the inputs of each; there may be more lanes than are
    asked for, so that a lane has the same bits at every position.
    """
    outputs = []
    for chunk in zip(*(tensor.split(CHUNK) for tensor in inputs), strict=True):
        arguments = _arguments(lanes, which, chunk, FEWEST_LANES)
        program = lanes.programs.output(*arguments)
        if len(arguments[1]) % (wanted := grain(program)):
            arguments = _arguments(lanes, which, chunk, wanted)
            program = lanes.programs.output(*arguments)
        outputs.append(program(*flat(arguments))[: len(which)])
    return torch.cat(outputs, 1)


def _arguments(
    lanes: Trained, which: Sequence[int], inputs: Sequence[Tensor], grain: int
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Weights, inputs and what is not trained of a multiple of so many lanes, the last of them once
    more for each that lacks.
    """
    more = -len(which) % grain
    index = torch.tensor([*which, *[which[-1]] * more], device=lanes.device)
    fixed = tuple(tensor[index] for tensor in lanes.fixed)
    return lanes.weights[index], torch.stack([*inputs, *[inputs[-1]] * more]), fixed
