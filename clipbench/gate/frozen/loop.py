"""The frozen references of one model in the loop: its step, clips, pure rules and batches."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn

from . import BATCH, BATCHES, FED, SHAPES, Work


def _drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _batches() -> list[tuple[Tensor, Tensor]]:
    draw = _drawn()
    return [
        (torch.randn(BATCH, 30, generator=draw), torch.randint(2, (BATCH,), generator=draw))
        for _ in range(BATCHES)
    ]


def _mlp() -> nn.Sequential:
    draw = _drawn()
    layers = [nn.utils.skip_init(nn.Linear, *widths) for widths in ((30, 64), (64, 64), (64, 2))]
    with torch.no_grad():
        for layer in layers:
            for param in layer.parameters():
                param.uniform_(-(layer.in_features**-0.5), layer.in_features**-0.5, generator=draw)
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])


def _with_gradients() -> list[nn.Parameter]:
    draw = _drawn()
    params = [nn.Parameter(torch.randn(shape, generator=draw)) for shape in SHAPES]
    for param in params:
        param.grad = torch.randn(param.shape, generator=draw)
    return params


def _gradients() -> dict[str, Tensor]:
    draw = _drawn()
    return {f"p{number}": torch.randn(shape, generator=draw) for number, shape in enumerate(SHAPES)}


def _leaf_by_leaf(function: Callable[..., Tensor], *trees: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: function(*(tree[name] for tree in trees)) for name in trees[0]}


def step() -> Work:
    """A training step: momentum .9 at lr .001, norm clip at 1."""
    module, batches = _mlp(), cycle(_batches())
    params = list(module.parameters())
    optimizer = torch.optim.SGD(params, lr=1e-3, momentum=0.9, weight_decay=0.0)

    def work() -> Tensor:
        inputs, targets = next(batches)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(module(inputs), targets)
        loss.backward()
        nn.utils.clip_grad_norm_(params, 1.0, 2.0)
        optimizer.step()
        return loss.detach()

    return work


def measured_step() -> Work:
    """A step as above, with inner products of its gradient, of the clipped one, of both, and of
    the update.
    """
    module, batches = _mlp(), cycle(_batches())
    params = list(module.parameters())
    optimizer = torch.optim.SGD(params, lr=1e-3, momentum=0.9, weight_decay=0.0)
    before = torch.cat([param.detach().reshape(-1) for param in params])
    after, raw, clipped, zeros = (torch.zeros_like(before) for _ in range(4))
    differs = torch.empty_like(before, dtype=torch.bool)

    def work() -> Tensor:
        nonlocal before, after
        inputs, targets = next(batches)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(module(inputs), targets)
        loss.backward()
        torch.cat([param.grad.reshape(-1) for param in params if param.grad is not None], out=raw)
        nn.utils.clip_grad_norm_(params, 1.0, 2.0)
        optimizer.step()
        torch.cat(
            [param.grad.reshape(-1) for param in params if param.grad is not None], out=clipped
        )
        changed = torch.count_nonzero(torch.ne(raw, clipped, out=differs))
        torch.cat([param.detach().reshape(-1) for param in params], out=after)
        update = before.sub_(after)
        found = (
            *(
                loss.detach(),
                torch.dot(raw, raw),
                torch.dot(raw, zeros),
                torch.dot(clipped, clipped),
                torch.dot(raw, clipped),
            ),
            *(changed, torch.dot(update, update), torch.dot(update, zeros)),
        )
        before, after = after, before
        return found[0]

    return work


def value_clip() -> Work:
    """``clip_grad_value_`` on six tensors."""
    params = _with_gradients()
    return lambda: nn.utils.clip_grad_value_(params, 0.1)


def norm_clip() -> Work:
    """``clip_grad_norm_`` on six tensors."""
    params = _with_gradients()
    return lambda: nn.utils.clip_grad_norm_(params, 1.0, 2.0)


def value_rule() -> Work:
    """The value clip as a pure function, a clamp a tensor, its limit in the gradient's dtype."""
    grads = _gradients()

    def like(number: Any, tree: dict[str, Tensor]) -> Any:
        return number.to(next(iter(tree.values())).dtype) if isinstance(number, Tensor) else number

    def rule(
        grads: dict[str, Tensor], state: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        limit = like(0.1, grads)
        return _leaf_by_leaf(lambda grad: torch.clamp(grad, -limit, limit), grads), state

    return lambda: rule(grads, {})


def norm_rule() -> Work:
    """The norm clip as a pure function: a norm of norms, and one factor for all."""
    grads = _gradients()

    def norm(tree: dict[str, Tensor]) -> Tensor:
        return torch.linalg.vector_norm(
            torch.stack([torch.linalg.vector_norm(leaf, 2.0) for leaf in tree.values()]), 2.0
        )

    def scaled(tree: dict[str, Tensor], factor: Tensor) -> dict[str, Tensor]:
        return {name: leaf * factor for name, leaf in tree.items()}

    def rule(
        grads: dict[str, Tensor], state: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return scaled(grads, torch.clamp(1.0 / (norm(grads) + 1e-6), max=1.0)), state

    return lambda: rule(grads, {})


def adam_rule() -> Work:
    """Adam's direction as a pure function, its state made anew at every step."""
    grads, params = _gradients(), _gradients()
    one = torch.ones((), dtype=torch.float64)
    state: dict[str, Any] = {
        "mean": {name: torch.zeros_like(grad) for name, grad in grads.items()},
        "square": {name: torch.zeros_like(grad) for name, grad in grads.items()},
        "power1": one,
        "power2": one,
    }

    def decayed(
        grads: dict[str, Tensor], params: dict[str, Tensor], weight_decay: float
    ) -> dict[str, Tensor]:
        return _leaf_by_leaf(lambda g, p: g + weight_decay * p, grads, params)

    def rule(
        grads: dict[str, Tensor], state: dict[str, Any], beta1: float, beta2: float, eps: float
    ) -> tuple[Any, dict[str, Any]]:
        power1, power2 = state["power1"] * beta1, state["power2"] * beta2
        mean = _leaf_by_leaf(lambda m, g: beta1 * m + (1 - beta1) * g, state["mean"], grads)
        square = _leaf_by_leaf(lambda v, g: beta2 * v + (1 - beta2) * g * g, state["square"], grads)
        dtype = next(iter(grads.values())).dtype
        scale, root = (1 - power1).to(dtype), (1 - power2).sqrt().to(dtype)
        direction = _leaf_by_leaf(lambda m, v: m / scale / (v.sqrt() / root + eps), mean, square)
        return direction, {"mean": mean, "square": square, "power1": power1, "power2": power2}

    def work() -> Any:
        nonlocal state
        direction, state = rule(decayed(grads, params, 0.0), state, 0.9, 0.999, 1e-8)
        return direction

    return work


def selected_feed() -> Work:
    """Batches of shuffled epochs, sixteen of them looked up at a time, by ``index_select``."""
    draw = _drawn()
    inputs, targets = torch.randn(341, 30, generator=draw), torch.randint(2, (341,), generator=draw)
    per_epoch = len(inputs) // BATCH

    def rows(split: Tensor, some: Tensor) -> tuple[Tensor, ...]:
        return split.index_select(0, some.flatten()).unflatten(0, some.shape).unbind()

    held = {("frozen", 0, torch.float32, "cpu"): (inputs, targets)}

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        # A named stream, data that are held for the next use, and how many batches make a look-up:
        # without them the reference does 1 % less than ours.
        seed = int.from_bytes(hashlib.sha256(b"frozen\x000\x00batches").digest()[:8], "big") >> 1
        stream = _drawn(seed)
        key = ("frozen", 0, torch.float32, "cpu")
        held[key] = inputs, targets = held.pop(key)
        epochs = [
            torch.randperm(len(inputs), generator=stream)[: per_epoch * BATCH]
            for _ in range(-(-FED // per_epoch))
        ]
        index = torch.cat(epochs).reshape(-1, BATCH)[:FED].to("cpu")
        for some in index.split(max(1, min(16, 2**22 // max(1, inputs[0].nbytes * BATCH)))):
            yield from zip(rows(inputs, some), rows(targets, some), strict=True)

    return lambda: list(batches())[-1][0][0, 0]
