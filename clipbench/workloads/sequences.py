"""Workloads on sequences: what happened long ago decides, and the gradient has to travel back to it."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Generator, Tensor, nn

from clipbench import metrics
from clipbench.registry import Count, UsageError, workload

SYMBOLS = 6  # A and B, which inform, and four distractors
CLASSES = 4  # AA, AB, BA, BB


@workload("temporal-order")
class TemporalOrder:
    r"""A test of exploding gradients through time: unclipped descent falls off the cliff that a norm clip climbs down.

    Sequences drawn anew at every step, after Hochreiter and Schmidhuber (1997) as Pascanu, Mikolov and Bengio (2013) took them
    up. Of T symbols two inform, each A or B, at random steps in [T/10, 2T/10] and [4T/10, 5T/10] (rounded down, ends included);
    all others are distractors. Four classes by the order: AA, AB, BA, BB. Validation and test are 500 sequences each, by the seed.

    .. math:: h_t = \tanh(W_x x_t + W_h h_{t-1} + b), \qquad z = W_z h_T + c

    All weights from N(0, .1²), biases zero; cross entropy at the last step. Inputs are one-hot, N×T×6. The outcome is bimodal,
    solved or at chance: a run counts as a success from 99 % accuracy.

    :param width: hidden units, at least 1.
    :param length: T, in steps, at least 3: below, the two places would fall together.
    """

    width: Count = 50
    length: Count = 20

    metric = metrics.accuracy
    success = 0.99
    target = 8.91e-4
    reference_loss = math.log(CLASSES)
    version = 1

    def data(self, generator: Generator) -> dict[str, tuple[Tensor, Tensor]]:
        return {split: self.sample(generator, 500) for split in ("validation", "test")}

    def sample(self, generator: Generator, batch: int) -> tuple[Tensor, Tensor]:
        places, informative, one_hot = _plans(self.length)
        # One call draws it all: the number of plans is a multiple of four, so its remainders are fair distractors.
        draw = torch.randint(len(places), (batch, self.length + 1), generator=generator)
        plan = draw[:, -1]
        symbols = (draw[:, :-1] % 4).add_(2).scatter_(1, places[plan], informative[plan])
        return nn.functional.embedding(symbols, one_hot), plan % CLASSES

    def model(self) -> nn.Module:
        return TanhRnn(self.width)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output, target)


class TanhRnn(nn.Module):
    """A plain recurrent network that classifies a sequence, N×T×6, by its last state: N×4 logits.

    Written out, because a step with ``nn.RNN`` takes half as long again (in lanes a quarter).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.input = nn.Linear(SYMBOLS, width)
        self.recurrent = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, CLASSES)
        for layer in (self.input, self.recurrent, self.output):
            nn.init.normal_(layer.weight, std=0.1)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        steps = self.input(inputs).unbind(1)  # all steps in one product; unbound at once, or each would fill its own zero gradient
        weight = self.recurrent.weight.t()
        state = steps[0].tanh()
        for step in steps[1:]:
            state = torch.addmm(step, state, weight).tanh()
        return self.output(state)


@lru_cache(maxsize=8)
def _plans(length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Every way to place two informative symbols: their two steps, the two symbols (A is 0, B is 1), and the one-hot rows.

    The plan's remainder by four is its class.
    """
    first = torch.arange(length // 10, 2 * length // 10 + 1)
    second = torch.arange(4 * length // 10, 5 * length // 10 + 1)
    if first[-1] >= second[0]:
        raise UsageError(f'workload "temporal-order": the length is {length}, and must be at least 3.')
    places = torch.cartesian_prod(first, second).repeat_interleave(CLASSES, 0)
    labels = torch.arange(len(places)) % CLASSES
    return places, torch.stack([labels // 2, labels % 2], 1), torch.eye(SYMBOLS)
