"""Workloads on sequences: the answer depends on early steps, and the gradient has to travel back
to them.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Generator, Tensor, nn

from clipbench import metrics
from clipbench.errors import UsageError
from clipbench.registry import Count, workload

SYMBOLS = 6  # A and B, which inform, and four distractors
CLASSES = 4  # AA, AB, BA, BB


@workload("temporal-order")
class TemporalOrder:
    r"""A test of exploding gradients through time: unclipped descent falls off the cliff that a
    norm clip climbs down.

    Sequences drawn anew at every step. Of T symbols two inform, each A or B, at random steps in
    [T/10, 2T/10] and [4T/10, 5T/10] (rounded down, ends included); all others are distractors. Four
    classes by the order: AA, AB, BA, BB. Validation and test are 500 sequences each, by the seed.

    .. math:: h_t = \tanh(W_x x_t + W_h h_{t-1} + b), \qquad z = W_z h_T + c

    All weights from N(0, .1²), biases zero; cross entropy at the last step. Inputs are one-hot,
    N×T×6. The outcome is bimodal, solved or at chance: a run counts as a success from 99 %
    accuracy.

    :param width: hidden units, at least 1.
    :param length: T, in steps, at least 3: below, the two places would fall together.

    **Source**: Hochreiter & Schmidhuber 1997, as Pascanu, Mikolov & Bengio 2013 took it up.
    """

    width: Count = 50
    length: Count = 20

    metric = metrics.accuracy
    success = 0.99
    chance = 1 / CLASSES
    target = 8.91e-4
    target_metric = 1.0
    margin = 0.14  # a quarter of what Adam gains over SGD
    reference_loss = math.log(CLASSES)
    version = 2  # 2: weights drawn in float64
    step_seconds = 9.4e-4
    lanes = True

    def data(self, generator: Generator) -> dict[str, tuple[Tensor, Tensor]]:
        return {split: self.sample(generator, 500) for split in ("validation", "test")}

    def sample(self, generator: Generator, batch: int) -> tuple[Tensor, Tensor]:
        places, informative, one_hot = _plans(self.length)
        # One call draws it all: the number of plans is a multiple of four, so its remainders are
        # fair distractors.
        draw = torch.randint(len(places), (batch, self.length + 1), generator=generator)
        plan = draw[:, -1]
        symbols = (draw[:, :-1] % 4).add_(2).scatter_(1, places[plan], informative[plan])
        return nn.functional.embedding(symbols, one_hot), plan % CLASSES

    def samples(self, generator: Generator, batch: int, count: int) -> tuple[Tensor, Tensor]:
        inputs, targets = self.sample(generator, count * batch)
        return inputs.unflatten(0, (count, batch)), targets.unflatten(0, (count, batch))

    def model(self) -> nn.Module:
        return TanhRnn(self.width)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output, target)


class TanhRnn(nn.Module):
    """A plain recurrent network that classifies a sequence, N×T×6, by its last state: N×4
    logits.
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
        # In full precision always: autocast does not know of products that are written into a
        # tensor at hand.
        with torch.autocast(inputs.device.type, enabled=False):
            last, _ = Recurrence.apply(
                inputs.transpose(0, 1), self.input.weight, self.input.bias, self.recurrent.weight
            )
        return self.output(last)


class Recurrence(torch.autograd.Function):
    r"""The last state of a tanh network, :math:`h_t = \tanh(W_x x_t + b + W_h h_{t-1})` from zero,
    as one node of autograd.

    Written out for any number of lanes, here as …: torch's own rules give every step a node, a copy
    and a sum of its own, which takes nearly twice as long.

    :param inputs: x, of …×T×N×I.
    :param across: W_x, of …×H×I.
    :param bias: b, of …×H.
    :param along: W_h, of …×H×H.
    :returns: the last state, of …×N×H, and all of them, of …×T×N×H, which nothing can be
    differentiated through.
    """

    @staticmethod
    def forward(
        inputs: Tensor, across: Tensor, bias: Tensor, along: Tensor
    ) -> tuple[Tensor, Tensor]:
        lead, (length, count, _), width = along.shape[:-2], inputs.shape[-3:], along.shape[-1]
        along = along.reshape(-1, width, width).mT
        rows = inputs.reshape(len(along), length * count, -1)
        # What the inputs give every step, in one product; then each state into its place behind the
        # one before.
        steps = torch.baddbmm(
            bias.reshape(-1, 1, width), rows, across.reshape(len(along), width, -1).mT
        )
        steps = steps.view(-1, length, count, width)
        states = torch.empty_like(steps)
        for now, (step, state) in enumerate(zip(steps.unbind(1), states.unbind(1), strict=True)):
            # tanh z = 2 sigmoid 2z − 1, to the last bit of 1: on a CPU torch's tanh takes eight
            # times as long as its sigmoid.
            doubled = (
                torch.baddbmm(step, states[:, now - 1], along, beta=2, alpha=2) if now else 2 * step
            )
            torch.sigmoid(doubled, out=state).mul_(2).sub_(1)
        return states[:, -1].reshape(*lead, count, width), states.view(*lead, length, count, width)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(inputs[0], inputs[3], output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[None, Tensor, Tensor, Tensor]:
        return None, *RecurrenceGradient.apply(grad, *ctx.saved_tensors)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor
    ) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        return Recurrence.apply(*_with_lanes(info.batch_size, in_dims, tensors)), (0, 0)


class RecurrenceGradient(torch.autograd.Function):
    """The gradients of `Recurrence` with respect to its weights; not differentiable again.

    :param grad: the gradient of the last state, of …×N×H.
    :returns: those of W_x, b and W_h.
    """

    @staticmethod
    def forward(
        grad: Tensor, inputs: Tensor, along: Tensor, states: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        lead, (length, count, width) = along.shape[:-2], states.shape[-3:]
        along, states = along.reshape(-1, width, width), states.reshape(-1, length, count, width)
        errors = torch.empty_like(states)
        after, slopes = grad.reshape(-1, count, width), states.unbind(1)
        for now, error in reversed(list(enumerate(errors.unbind(1)))):
            torch.ops.aten.tanh_backward.grad_input(after, slopes[now], grad_input=error)
            if now:
                after = torch.bmm(error, along)
        # Every weight's sum over steps and examples is one product.
        flat = errors.view(-1, length * count, width)
        across = torch.bmm(inputs.reshape(len(along), length * count, -1).mT, flat).mT
        along = torch.bmm(flat[:, count:].mT, states.view(-1, length * count, width)[:, :-count])
        return (
            across.reshape(*lead, width, -1),
            flat.sum(1).view(*lead, width),
            along.view(*lead, width, width),
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        """Keep nothing: there is no second derivative."""

    @staticmethod
    def backward(_ctx: Any, *_grads: Tensor) -> Any:
        # As torch does for what is once_differentiable: the states are given, and a derivative
        # through them would be wrong.
        raise RuntimeError("the recurrence of temporal-order cannot be differentiated twice")

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return RecurrenceGradient.apply(*_with_lanes(info.batch_size, in_dims, tensors)), (0, 0, 0)


def _with_lanes(
    lanes: int, in_dims: tuple[int | None, ...], tensors: tuple[Tensor, ...]
) -> list[Tensor]:
    """Every tensor with its lanes in front."""
    return [
        tensor.expand(lanes, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        for dim, tensor in zip(in_dims, tensors, strict=True)
    ]


@lru_cache(maxsize=8)
def _plans(length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Every way to place two informative symbols: their two steps, the two symbols (A is 0, B is
    1), and the one-hot rows.

    The plan's remainder by four is its class.
    """
    first = torch.arange(length // 10, 2 * length // 10 + 1)
    second = torch.arange(4 * length // 10, 5 * length // 10 + 1)
    if first[-1] >= second[0]:
        raise UsageError(
            f'workload "temporal-order": the length is {length}, and must be at least 3.'
        )
    places = torch.cartesian_prod(first, second).repeat_interleave(CLASSES, 0)
    labels = torch.arange(len(places)) % CLASSES
    return places, torch.stack([labels // 2, labels % 2], 1), torch.eye(SYMBOLS)
