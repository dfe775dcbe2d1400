"""The frozen reference of the batched engine: a measured step of many models at once, in torch's
own operators.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import BATCH, LANES, SHAPES, Work


def eight_lanes() -> Work:  # noqa: PLR0915 - one program, to be read in one go
    """A measured step of eight lanes: stacked products and their gradients, then norm clip,
    momentum and the measures.
    """
    draw = torch.Generator().manual_seed(0)
    sizes = [torch.Size(shape).numel() for shape in SHAPES]
    weights = torch.randn(LANES, sum(sizes), generator=draw) / 8
    momentum = torch.zeros_like(weights)
    inputs = torch.randn(1, BATCH, 30, generator=draw).expand(LANES, BATCH, 30).contiguous()
    targets = torch.randint(2, (1, BATCH), generator=draw).expand(LANES, BATCH).contiguous()
    lr, decay, penalty, limit = (
        torch.full((LANES,), number, dtype=torch.float64) for number in (1e-3, 0.9, 0.0, 1.0)
    )

    def product(left: Tensor, right: Tensor) -> Tensor:
        first = torch.ops.aten.view.default(
            torch.ops.aten.expand.default(left, left.shape), left.shape
        )
        second = torch.ops.aten.view.default(
            torch.ops.aten.expand.default(right, right.shape), right.shape
        )
        found, shape = (
            torch.ops.aten.bmm.default(first, second),
            (LANES, left.shape[1], right.shape[2]),
        )
        return torch.ops.aten._unsafe_view.default(found, shape)  # noqa: SLF001

    def layer(given: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.ops.aten.add.Tensor(
            torch.ops.aten.view.default(
                torch.ops.aten.mul.Scalar(bias, 1), (LANES, 1, bias.shape[1])
            ),
            product(given, weight),
        )

    def weight_gradient(below: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        found = torch.ops.aten.transpose.int(
            product(torch.ops.aten.transpose.int(below, 1, 2), given), 1, 2
        )
        bias = torch.ops.aten.view.default(
            torch.ops.aten.sum.dim_IntList(below, [1], True), (LANES, below.shape[2])
        )
        return torch.ops.aten.transpose.int(found, 1, 2), bias

    def zero(dtype: torch.dtype) -> Tensor:
        return torch.ops.aten.scalar_tensor.default(
            0, dtype=dtype, layout=torch.strided, device=torch.device("cpu")
        )

    def gradient(weights: Tensor, inputs: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        pieces = torch.ops.aten.split_with_sizes.default(weights, sizes, 1)
        w1, b1, w2, b2, w3, b3 = (
            torch.ops.aten.view.default(piece, (LANES, *shape))
            for piece, shape in zip(pieces, SHAPES, strict=True)
        )
        t1, t2, t3 = (torch.ops.aten.transpose.int(weight, 1, 2) for weight in (w1, w2, w3))
        h1 = torch.ops.aten.relu.default(layer(inputs, t1, b1))
        h2 = torch.ops.aten.relu.default(layer(h1, t2, b2))
        logs = torch.ops.aten._log_softmax.default(layer(h2, t3, b3), 2, False)  # noqa: SLF001
        known = torch.ops.aten.where.self(
            torch.ops.aten.ne.Scalar(targets, -100), targets, zero(torch.int64)
        )
        taken = torch.ops.aten.neg.default(
            torch.ops.aten.squeeze.dims(
                torch.ops.aten.gather.default(logs, 2, torch.ops.aten.unsqueeze.default(known, 2)),
                [2],
            )
        )
        taken = torch.ops.aten.where.self(
            torch.ops.aten.ne.Scalar(targets, -100), taken, zero(torch.float32)
        )
        count = torch.ops.aten._to_copy.default(  # noqa: SLF001
            torch.ops.aten.sum.dim_IntList(torch.ops.aten.ne.Scalar(targets, -100), [1]),
            dtype=torch.float32,
            device=torch.device("cpu"),
        )
        losses = torch.ops.aten.div.Tensor(torch.ops.aten.sum.dim_IntList(taken, [1]), count)
        share = torch.ops.aten.div.Tensor(torch.ops.aten.ones_like.default(losses), count)
        column = torch.ops.aten.unsqueeze.default(targets, 2)
        place = torch.ops.aten.where.self(
            torch.ops.aten.ne.Scalar(column, -100), column, zero(torch.int64)
        )
        picked = torch.ops.aten.scatter.value(
            torch.ops.aten.zeros_like.default(logs), 2, place, -1.0
        )
        each = torch.ops.aten.where.self(
            torch.ops.aten.ne.Scalar(column, -100),
            torch.ops.aten.view.default(share, (LANES, 1, 1)),
            zero(torch.float32),
        )
        d3 = torch.ops.aten._log_softmax_backward_data.default(  # noqa: SLF001
            torch.ops.aten.mul.Tensor(picked, each), logs, 2, torch.float32
        )
        d2 = product(d3, torch.ops.aten.transpose.int(t3, 1, 2))
        g3, c3 = weight_gradient(d3, h2)
        d2 = torch.ops.aten.threshold_backward.default(d2, h2, 0)
        d1 = product(d2, torch.ops.aten.transpose.int(t2, 1, 2))
        g2, c2 = weight_gradient(d2, h1)
        d1 = torch.ops.aten.threshold_backward.default(d1, h1, 0)
        g1, c1 = weight_gradient(d1, inputs)
        rows = [
            torch.ops.aten.view.default(found.contiguous(), (LANES, -1))
            for found in (g1, c1, g2, c2, g3, c3)
        ]
        return torch.ops.aten.cat.default(rows, 1), losses

    def spread(numbers: Tensor) -> Tensor:
        torch.ops.aten.select.int(numbers, 0, 0)
        return torch.ops.aten.view.default(
            torch.ops.aten._to_copy.default(numbers, dtype=torch.float32),  # noqa: SLF001
            (LANES, 1),
        )

    def square(rows: Tensor) -> Tensor:
        return torch.ops.aten.pow.Tensor_Scalar(
            torch.ops.aten.linalg_vector_norm.default(rows, 2, [1]), 2
        )

    def largest(rows: Tensor) -> Tensor:
        return torch.ops.aten.maximum.default(
            torch.ops.aten.amax.default(rows, [1]),
            torch.ops.aten.neg.default(torch.ops.aten.amin.default(rows, [1])),
        )

    def update(weights: Tensor, grads: Tensor, momentum: Tensor) -> tuple[Tensor, ...]:
        size = torch.ops.aten.linalg_vector_norm.default(grads, 2.0, [1])
        size = torch.ops.aten.linalg_vector_norm.default(
            torch.ops.aten.stack.default([torch.ops.aten.permute.default(size, [0])], 1), 2.0, [1]
        )
        size = torch.ops.aten.add.Tensor(
            size,
            torch.ops.aten._to_copy.default(1e-6, dtype=torch.float32),  # noqa: SLF001
        )
        clipped = torch.ops.aten.mul.Tensor(
            grads,
            spread(torch.ops.aten.clamp.default(torch.ops.aten.div.Tensor(limit, size), None, 1.0)),
        )
        decayed = torch.ops.aten.add.Tensor(
            clipped, torch.ops.aten.mul.Tensor(spread(penalty), weights)
        )
        momentum = torch.ops.aten.add.Tensor(
            torch.ops.aten.mul.Tensor(spread(decay), momentum), decayed
        )
        moved = torch.ops.aten.sub.Tensor(weights, torch.ops.aten.mul.Tensor(spread(lr), momentum))
        torch.ops.aten.zeros.default([LANES], dtype=torch.int64, device=torch.device("cpu"))
        changed = torch.ops.aten.ne.Tensor_out(
            grads, clipped, out=torch.ops.aten.empty_like.default(grads)
        )
        change = torch.ops.aten.sub.Tensor(weights, moved)
        return (
            *(moved, square(grads), largest(grads), square(clipped)),
            *(
                torch.ops.aten.sum.dim_IntList(torch.ops.aten.mul.Tensor(grads, clipped), [1]),
                torch.ops.aten.sum.dim_IntList(changed, [1]),
            ),
            *(square(change), largest(change), momentum),
        )

    known: dict[Any, Callable[..., tuple[Tensor, ...]]] = {}

    def looked_up(
        program: Callable[..., tuple[Tensor, ...]], settings: tuple[Any, ...], *given: Tensor
    ) -> Any:
        return known.setdefault(
            (program.__name__, settings, *(tensor.shape for tensor in given)), program
        )

    def work() -> Tensor:
        nonlocal weights, momentum
        given = (weights, inputs, targets)
        grads, losses = looked_up(gradient, (), *given)(*given)
        settings = "momentum", (), "norm", (), (1, 1), "gradient"
        numbers = lr, decay, penalty, limit
        lanes = slice(0, LANES)
        pair = weights[lanes], grads[lanes]
        moved, *products, state = looked_up(update, settings, *pair, *numbers, momentum)(
            *pair, momentum
        )
        weights, momentum = moved, state.contiguous()
        found = [losses, *products]
        return found[0]

    return work
